"""Ranking metrics per group, exact in ties; NaN marks a group for which one is undefined.

Each function takes the `TieBlocks` of N scored rows and returns [G] float64. A block that takes
the ranks a+1 .. a+b and holds m positives counts as its mean over all orders of the block.
MRR follows the MIND evaluation (Wu et al. 2020): all clicks of an impression are averaged.
"""

import numpy as np
from numpy.typing import NDArray

from raysys.metrics.blocks import Floats, Ints, TieBlocks, sums


def auc(blocks: TieBlocks) -> Floats:
    """P(s+ > s-) + P(s+ = s-)/2 within the group; groups that hold both labels."""
    negatives = blocks.group_rows - blocks.group_positives
    in_block = blocks.size - blocks.positives
    above = blocks.above - blocks.positives_above
    below = negatives[blocks.group] - above - in_block
    # Twice the count keeps the sum an exact integer below 2**53.
    twice = blocks.sum_by_group((blocks.positives * (2 * below + in_block)).astype(np.float64))
    return _divide(twice, 2.0 * blocks.group_positives * negatives, blocks.both_labels)


def mrr(blocks: TieBlocks) -> Floats:
    """Mean of 1/rank over all positives of the group; groups that hold a positive."""
    gain = _block_gain(blocks, 1.0 / _ranks(blocks))
    return _divide(gain, blocks.group_positives, blocks.has_positive)


def mrr_first(blocks: TieBlocks) -> Floats:
    """1/rank of the group's best positive; groups that hold a positive."""
    first, group = blocks.first_positive()
    above, size, positives = blocks.above[first], blocks.size[first], blocks.positives[first]
    # The first of m positives takes place x of b with probability C(b-x, m-1) / C(b, m).
    span = size - positives + 1
    owner = np.repeat(np.arange(first.size), span)
    x = np.arange(owner.size) - np.repeat(np.cumsum(span) - span, span) + 1
    log_factorial = _log_factorials(blocks)
    log_p = (
        _log_binomial(log_factorial, size[owner] - x, positives[owner] - 1)
        - _log_binomial(log_factorial, size, positives)[owner]
    )
    value = np.full(blocks.group_rows.size, np.nan)
    value[group] = sums(owner, np.exp(log_p) / (above[owner] + x), first.size)
    return value


def ndcg(blocks: TieBlocks, k: int) -> Floats:
    """DCG@k / IDCG@k with binary gains; groups that hold a positive."""
    ranks = _ranks(blocks)
    discount = np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)
    ideal = np.concatenate(([0.0], np.cumsum(discount)))[blocks.group_positives]
    return _divide(_block_gain(blocks, discount), ideal, blocks.has_positive)


def hit_rate(blocks: TieBlocks, k: int) -> Floats:
    """Probability of at least one positive in the top k; groups that hold a positive."""
    first, group = blocks.first_positive()
    above, size, positives = blocks.above[first], blocks.size[first], blocks.positives[first]
    drawn = np.clip(k - above, 0, size)
    log_factorial = _log_factorials(blocks)
    can_miss = drawn <= size - positives
    log_miss = _log_binomial(
        log_factorial, np.where(can_miss, size - positives, drawn), drawn
    ) - _log_binomial(log_factorial, size, drawn)
    value = np.full(blocks.group_rows.size, np.nan)
    value[group] = np.where(can_miss, -np.expm1(log_miss), 1.0)
    return value


def recall(blocks: TieBlocks, k: int) -> Floats:
    """Share of the group's positives in the top k; groups that hold a positive."""
    share = np.clip(k - blocks.above, 0, blocks.size) / blocks.size
    return _divide(
        blocks.sum_by_group(blocks.positives * share), blocks.group_positives, blocks.has_positive
    )


def _ranks(blocks: TieBlocks) -> Floats:
    """[R] 1 .. the largest group."""
    return np.arange(1.0, blocks.group_rows.max(initial=0) + 1.0)


def _block_gain(blocks: TieBlocks, discount: Floats) -> Floats:
    """discount: [R] by rank -> [G] expected Σ over positives of the discount at their rank."""
    with_positive = np.flatnonzero(blocks.positives)
    above, size = blocks.above[with_positive], blocks.size[with_positive]
    total = np.concatenate(([0.0], np.cumsum(discount)))
    # A lone row reads its discount directly: a difference of sums would lose its last bits.
    mean = np.where(size == 1, discount[above], (total[above + size] - total[above]) / size)
    gain = blocks.positives[with_positive] * mean
    return sums(blocks.group[with_positive], gain, blocks.group_rows.size)


def _log_factorials(blocks: TieBlocks) -> Floats:
    """ln n! for n = 0 .. the largest block."""
    return np.concatenate(
        ([0.0], np.cumsum(np.log(np.arange(1.0, blocks.size.max(initial=0) + 1))))
    )


def _log_binomial(log_factorial: Floats, n: Ints, k: Ints) -> Floats:
    value: Floats = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    return value


def _divide(numerator: Floats, denominator: Floats | Ints, defined: NDArray[np.bool_]) -> Floats:
    value = np.full(numerator.size, np.nan)
    np.divide(numerator, denominator, out=value, where=defined)
    return value
