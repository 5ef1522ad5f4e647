"""Pooled metrics over all rows, from one mergeable table of distinct values and label counts.

Sorted distinct values with how many negatives and positives carry each: that is all `auc`,
`logloss`, `ne`, `ece`, `ece_width` and `calib_ratio` need, so shards merge exactly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from raysys.errors import MetricError
from raysys.metrics.blocks import Floats, binary, check_scores

CLIP = 1e-7
BINS = 15


@dataclass(frozen=True)
class Tally:
    """value: [V] distinct, ascending. negatives, positives: [V] weight (by default rows)."""

    value: Floats
    negatives: Floats
    positives: Floats

    @classmethod
    def of(cls, values: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> "Tally":
        """values: [N] finite, labels: [N] 0/1, weights: [N] >= 0. Raises MetricError."""
        value = np.asarray(values, dtype=np.float64)
        label = binary(labels)
        if value.shape != label.shape:
            raise MetricError(f"values and labels differ in shape: {value.shape}, {label.shape}")
        check_scores(value)
        weight = np.ones(value.size) if weights is None else np.asarray(weights, dtype=np.float64)
        return cls._collect(value, weight * (1 - label), weight * label)

    @classmethod
    def _collect(cls, value: Floats, negatives: Floats, positives: Floats) -> "Tally":
        order = np.argsort(value)
        ranked = value[order]
        starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))[: value.size]
        if not value.size:
            return cls(value, negatives, positives)
        return cls(
            ranked[starts],
            np.add.reduceat(negatives[order], starts),
            np.add.reduceat(positives[order], starts),
        )

    def merge(self, other: "Tally") -> "Tally":
        """The tally of both shards' rows together."""
        return self._collect(
            np.concatenate((self.value, other.value)),
            np.concatenate((self.negatives, other.negatives)),
            np.concatenate((self.positives, other.positives)),
        )

    @property
    def weight(self) -> Floats:
        """[V] negatives + positives."""
        return self.negatives + self.positives

    def check(self) -> None:
        """Raise MetricError if the label is constant or there is no row."""
        if not self.positives.sum() > 0 or not self.negatives.sum() > 0:
            raise MetricError(
                f"the label is constant: {self.positives.sum():.0f} positive and "
                f"{self.negatives.sum():.0f} negative rows; a metric needs both"
            )


def auc(tally: Tally) -> float:
    """P(s+ > s-) + P(s+ = s-)/2 over all rows (Mann-Whitney with midranks)."""
    tally.check()
    below = np.cumsum(tally.negatives) - tally.negatives
    wins = np.dot(tally.positives, below + 0.5 * tally.negatives)
    return float(wins / (tally.positives.sum() * tally.negatives.sum()))


def logloss(tally: Tally) -> float:
    """Mean negative log likelihood in nats, probabilities clipped to [1e-7, 1 - 1e-7]."""
    _check_probabilities(tally)
    p = np.clip(tally.value, CLIP, 1.0 - CLIP)
    total = np.dot(tally.positives, np.log(p)) + np.dot(tally.negatives, np.log1p(-p))
    return float(-total / tally.weight.sum())


def ne(tally: Tally) -> float:
    """Log loss over the entropy of the base rate (He et al. 2014); 1 is a constant predictor."""
    loss = logloss(tally)
    rate = tally.positives.sum() / tally.weight.sum()
    entropy = -(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate))
    return float(loss / entropy)


def calib_ratio(tally: Tally) -> float:
    """Σ p / Σ y; 1 is calibrated in the large."""
    _check_probabilities(tally)
    return float(np.dot(tally.weight, tally.value) / tally.positives.sum())


def ece(tally: Tally, bins: int = BINS) -> float:
    """Σ (n_b/n)·|mean p − mean y| over bins of equal mass; equal values share a bin.

    A value belongs to the bin that the middle of its mass falls into.
    """
    _check_probabilities(tally)
    weight = tally.weight
    middle = np.cumsum(weight) - 0.5 * weight
    return _calibration_error(tally, middle / weight.sum() * bins, bins)


def ece_width(tally: Tally, bins: int = BINS) -> float:
    """As `ece` with bins of equal width in p; nearly one bin at click-through base rates."""
    _check_probabilities(tally)
    return _calibration_error(tally, tally.value * bins, bins)


def _calibration_error(tally: Tally, position: Floats, bins: int) -> float:
    index = np.minimum(position.astype(np.int64), bins - 1)
    excess = tally.weight * tally.value - tally.positives
    gaps = np.bincount(index, weights=excess, minlength=bins)
    return float(np.abs(gaps).sum() / tally.weight.sum())


def _check_probabilities(tally: Tally) -> None:
    tally.check()
    low, high = tally.value[0], tally.value[-1]
    if low < 0.0 or high > 1.0:
        raise MetricError(
            f"probabilities must lie in [0, 1], found {low if low < 0.0 else high}; "
            "pass a probability column, not a raw score"
        )
