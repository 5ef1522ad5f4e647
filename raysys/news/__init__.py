"""News rankers."""
