"""CTR and CTCVR rankers."""
