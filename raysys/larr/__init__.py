"""LARR: the real-time scene understood as text (Wan et al., RecSys 2024), a reconstruction.

The paper's three stages are known, their insides are not, and no published figures exist to compare
with (docs/larr.md). Of stage 3 are here: scene features in words, their frozen vectors, the encoder
that aggregates them, the alignment with the ranker's items, and the ranker that uses the result.
"""
