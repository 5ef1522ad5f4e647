"""Tie blocks: scored rows of many groups, sorted once, with equal scores kept together.

Every ranking metric here is the expectation over a random order inside a tie block, so it needs
only four numbers per block, and neither the input order nor the sort can change a value.
Notation: N rows, G groups, T blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysys.errors import MetricError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TieBlocks:
    """Blocks of equal score, ordered by (group, score descending).

    group: [T] group of the block. above: [T] rows of the group with a higher score.
    size: [T] rows in the block. positives: [T] rows of label 1 in the block.
    positives_above: [T] rows of label 1 with a higher score.
    group_rows, group_positives: [G] counts; a group may have no rows.
    """

    group: Ints
    above: Ints
    size: Ints
    positives: Ints
    positives_above: Ints
    group_rows: Ints
    group_positives: Ints

    @property
    def both_labels(self) -> NDArray[np.bool_]:
        """[G] groups that hold a positive and a negative."""
        return (self.group_positives > 0) & (self.group_positives < self.group_rows)

    @property
    def has_positive(self) -> NDArray[np.bool_]:
        """[G] groups that hold a positive."""
        return self.group_positives > 0

    def first_positive(self) -> tuple[Ints, Ints]:
        """(block [F], group [F]) of the best block with a positive, per group that has one."""
        first = np.flatnonzero((self.positives > 0) & (self.positives_above == 0))
        return first, self.group[first]

    def sum_by_group(self, values: Floats) -> Floats:
        """values: [T] -> [G] sums."""
        return sums(self.group, values, self.group_rows.size)


def sums(code: Ints, values: NDArray[Any], size: int) -> Floats:
    """code: [N] in [0, size), values: [N] -> [size] float64 sums by code."""
    # NumPy counts in integers when there is nothing to count.
    return np.bincount(code, weights=values, minlength=size).astype(np.float64, copy=False)


def check_scores(scores: Floats, what: str = "score") -> None:
    """Raise MetricError naming the first row whose value is NaN or infinite."""
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise MetricError(
            f"{what} in row {row} is {scores[row]}; a metric needs finite values in every row"
        )


def binary(labels: ArrayLike) -> Ints:
    """labels as int64; MetricError unless every one is 0 or 1."""
    array = np.asarray(labels)
    if array.dtype != np.bool_ and not ((array == 0) | (array == 1)).all():
        row = int(np.flatnonzero((array != 0) & (array != 1))[0])
        raise MetricError(f"label in row {row} is {array[row]}; labels are 0 or 1")
    return array.astype(np.int64)


def descending_codes(scores: Floats) -> Ints:
    """[N] dense code per row, 0 for the highest score, equal codes for equal scores."""
    order = np.argsort(-scores)
    ranked = scores[order]
    codes = np.empty(scores.size, dtype=np.int64)
    codes[order] = np.concatenate(([0], np.cumsum(ranked[1:] != ranked[:-1])))[: scores.size]
    return codes


def tie_blocks(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, n_groups: int | None = None
) -> TieBlocks:
    """scores: [N] float, labels: [N] 0/1, groups: [N] int codes in [0, n_groups).

    Raises MetricError for a non-finite score, a label other than 0 and 1, or unequal lengths.
    """
    score = np.asarray(scores, dtype=np.float64)
    label = binary(labels)
    code = np.asarray(groups, dtype=np.int64)
    if not score.shape == label.shape == code.shape or score.ndim != 1:
        raise MetricError(
            f"scores, labels and groups differ in shape: {score.shape}, {label.shape}, {code.shape}"
        )
    check_scores(score)
    total = int(code.max()) + 1 if n_groups is None and code.size else n_groups or 0

    # Group, score code and label fit one integer, and sorting plain integers is several times
    # faster than sorting an index by two keys.
    bits = max(int(score.size).bit_length(), 1)
    packed = (((code << bits) | descending_codes(score)) << 1) | label
    packed.sort()
    label = packed & 1
    block_key = packed >> 1

    starts = np.flatnonzero(np.concatenate(([True], block_key[1:] != block_key[:-1])))
    starts = starts[: score.size]
    group = block_key[starts] >> bits
    size = np.diff(starts, append=score.size)
    positives_before = np.concatenate(([0], np.cumsum(label)))
    positives = np.diff(positives_before[np.append(starts, score.size)])
    group_rows = np.bincount(code, minlength=total).astype(np.int64)
    group_positives = sums(group, positives, total).astype(np.int64)
    group_start = np.cumsum(group_rows) - group_rows
    return TieBlocks(
        group=group,
        above=starts - group_start[group],
        size=size,
        positives=positives,
        positives_above=positives_before[starts] - positives_before[group_start[group]],
        group_rows=group_rows,
        group_positives=group_positives,
    )
