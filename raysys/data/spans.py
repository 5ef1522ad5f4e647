"""Arithmetic of ragged rows that lie one after another."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def spans(begin: Ints, counts: Ints) -> Ints:
    """begin[i], begin[i] + 1, … (counts[i] of them) for every i, concatenated."""
    return np.repeat(begin - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def bounds(counts: Ints) -> Ints:
    """Where each of n ragged rows begins and the last one ends [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
