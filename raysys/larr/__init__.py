"""LARR: a language model that understands places, users and the real-time scene, for
click-through ranking (Wan et al., RecSys 2024).

A reconstruction: the paper's three stages are known, their insides are not, and no published
figures exist to compare with (docs/larr.md).
"""
