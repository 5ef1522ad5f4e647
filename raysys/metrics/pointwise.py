"""Pooled metrics over all rows, from one mergeable table of distinct values and label counts.

Sorted distinct values with how many negatives and positives carry each: that is all `auc`,
`logloss`, `ne`, `ece`, `ece_width` and `calib_ratio` need, so shards merge exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from raysys.errors import MetricError
from raysys.metrics.blocks import Floats, Ints, binary, check_scores, sums

CLIP = 1e-7
BINS = 15
_ROWS_AT_ONCE = 2**20


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


@dataclass(frozen=True)
class Additive:
    """A statistic of sums over rows, which shards, users and bootstrap weights can share.

    terms: probabilities [N] and labels [N] -> [N, C]. finish: sums [..., C] -> [...].
    """

    terms: Callable[[Floats, Floats], Floats]
    finish: Callable[[Floats], Floats]

    def __call__(self, tally: Tally) -> float:
        """The statistic of all rows; MetricError if the label is constant or p no probability."""
        check_probabilities(tally)
        total = np.zeros(())
        for start in range(0, tally.value.size, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            p = tally.value[part]
            total = total + tally.negatives[part] @ self.terms(p, np.zeros(p.size))
            total = total + tally.positives[part] @ self.terms(p, np.ones(p.size))
        return float(self.finish(total))

    def by_user(self, p: Floats, label: Ints, user: Ints, n_users: int) -> Floats:
        """p, label, user code: [N] -> [U, C] the sums of every user's rows."""
        total = np.zeros(())
        for start in range(0, p.size, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            terms = self.terms(p[part], label[part].astype(np.float64))
            total = total + np.stack([sums(user[part], c, n_users) for c in terms.T], axis=1)
        return total


def _loss_terms(p: Floats, y: Floats) -> Floats:
    clipped = np.clip(p, CLIP, 1.0 - CLIP)
    loss = -np.where(y == 1.0, np.log(clipped), np.log1p(-clipped))
    return np.stack((loss, y, np.ones(p.size)), axis=1)


def _calibration_terms(p: Floats, y: Floats) -> Floats:
    return np.stack((p, y), axis=1)


def _bin_terms(p: Floats, y: Floats) -> Floats:
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    excess = np.where(bins[:, None] == np.arange(BINS), (p - y)[:, None], 0.0)
    return np.concatenate((excess, np.ones((p.size, 1))), axis=1)


def _mean_loss(x: Floats) -> Floats:
    return x[..., 0] / x[..., 2]


def _normalised_loss(x: Floats) -> Floats:
    rate = x[..., 1] / x[..., 2]
    return _mean_loss(x) / -(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate))


def _ratio(x: Floats) -> Floats:
    return x[..., 0] / x[..., 1]


def _mean_gap(x: Floats) -> Floats:
    gap: Floats = np.abs(x[..., :-1]).sum(axis=-1) / x[..., -1]
    return gap


logloss = Additive(_loss_terms, _mean_loss)
"""Mean negative log likelihood in nats, probabilities clipped to [1e-7, 1 - 1e-7]."""

ne = Additive(_loss_terms, _normalised_loss)
"""Log loss over the entropy of the base rate (He et al. 2014); 1 is a constant predictor."""

calib_ratio = Additive(_calibration_terms, _ratio)
"""Σ p / Σ y; 1 is calibrated in the large."""

ece_width = Additive(_bin_terms, _mean_gap)
"""As `ece` with bins of equal width in p; nearly one bin at click-through base rates."""


def ece(tally: Tally) -> float:
    """Σ (n_b/n)·|mean p − mean y| over 15 bins of equal mass; equal values share a bin.

    A value belongs to the bin that the middle of its mass falls into.
    """
    check_probabilities(tally)
    weight = tally.weight
    mass = np.cumsum(weight)
    position = (mass - 0.5 * weight) * (BINS / mass[-1])
    bins = np.minimum(position.astype(np.int64), BINS - 1)
    gaps = sums(bins, weight * tally.value - tally.positives, BINS)
    return float(np.abs(gaps).sum() / mass[-1])


def check_probabilities(tally: Tally) -> None:
    """Raise MetricError unless every value lies in [0, 1] and the label varies."""
    tally.check()
    low, high = tally.value[0], tally.value[-1]
    if low < 0.0 or high > 1.0:
        raise MetricError(
            f"probabilities must lie in [0, 1], found {low if low < 0.0 else high}; "
            "pass a probability column, not a raw score"
        )
