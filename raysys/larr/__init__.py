"""LARR: a language model that understands places and users, for click-through ranking.

A reconstruction: the paper's three stages are known, their insides are not (docs/larr.md).
"""
