"""What HKFR is held against in direct recommendation (§5): heuristics and sequence models."""
