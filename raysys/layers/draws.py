"""Random numbers that belong to what they are drawn for.

Numbers of torch's generator depend on everything drawn before them; with them a model learns
other weights as soon as its batch is cut into other parts.
"""

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def mixed(seed: int, *parts: Tensor) -> Tensor:
    """One of 2^64 int64 numbers for each combination of seed and integers; the parts broadcast.

    The finaliser of SplitMix64 (Steele et al., OOPSLA 2014), part after part.
    """
    word = torch.full((), seed, dtype=torch.int64, device=parts[0].device)
    for part in parts:
        word = word + part + _GAMMA
        word = (word ^ _right(word, 30)) * _FIRST
        word = (word ^ _right(word, 27)) * _SECOND
        word = word ^ _right(word, 31)
    return word


def uniform(words: Tensor) -> Tensor:
    """float32 in [0, 1) of the upper 24 bits of int64 words, any shape → the same shape."""
    return _right(words, 40).float() * 2.0**-24


def _right(word: Tensor, bits: int) -> Tensor:
    """A shift that brings in zeros; torch's brings in the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)
