"""Random numbers that are functions of what they are drawn for, so that nothing is remembered."""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
MAX_SEED = 2**63 - 1
_ROUNDS = 4


def mixed(seed: int, *parts: npt.NDArray[Any]) -> Words:
    """One of 2^64 numbers [...] for each combination of seed and integers [...].

    The finaliser of SplitMix64 (Steele et al., OOPSLA 2014), part after part.
    """
    word = np.full(np.broadcast_shapes(*(part.shape for part in parts)), seed, np.uint64)
    for part in parts:
        word = word + part.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word = word ^ (word >> np.uint64(31))
    return word


def distinct(key: Words, size: Ints, count: int) -> Ints:
    """`count` distinct numbers [B, count] in 0..size − 1 for each row; −1 behind the last.

    key [B] says which draw, size [B]. The first numbers of a random permutation, each computed
    by itself: a Feistel network over the next power of four, walked on until it is inside.
    """
    place = np.arange(count)
    real = place < size[:, None]
    half = np.ceil(np.log2(np.maximum(size, 2)) / 2).astype(np.uint64)[:, None]
    low = (np.uint64(1) << half) - np.uint64(1)
    limit = np.maximum(size, 1).astype(np.uint64)[:, None]
    word = np.where(real, place, 0).astype(np.uint64)
    open_ = real.copy()
    while open_.any():
        left, right = word >> half, word & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (mixed(turn, key[:, None], right) & low)
        word = np.where(open_, (left << half) | right, word)
        open_ = real & (word >= limit)
    return np.where(real, word.astype(np.int64), -1)


def earlier(start: Ints, seed: int) -> Ints:
    """For each of N events one of its user's first events up to itself [N], with replacement.

    start [U + 1] first event row of each user. Not a permutation of the whole history, in which
    the past would depend on the future.
    """
    begin = np.repeat(start[:-1], np.diff(start))
    place = np.arange(len(begin)) - begin
    drawn = mixed(seed, place) % (place + 1).astype(np.uint64)
    return begin + drawn.astype(np.int64)
