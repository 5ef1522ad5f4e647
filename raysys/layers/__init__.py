"""Small torch parts: embeddings, attention, pooling, gates and losses. No Ray, no data sets."""
