"""Paired bootstrap over users: all rows of a user are drawn together, both systems alike.

The weight of a user in replicate r is Poisson(1), read from a counter-based stream that depends
on (seed, user) only. A shard therefore needs no other shard: it sums weight × column over its own
users for every replicate, and the sums of shards add up. U users, R replicates, C columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, factorial

import numpy as np
from numpy.typing import NDArray

from raysys.errors import MetricError
from raysys.metrics.blocks import Floats, Ints, sums
from raysys.metrics.pointwise import BINS
from raysys.metrics.routing import Hashes

Weights = NDArray[np.uint8]

REPLICATES = 2_000
_USERS_AT_ONCE = 4_096
_REPLICATES_AT_ONCE = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Interval:
    """A difference with its 95 % interval and two-sided p value."""

    delta: float
    low: float
    high: float
    p: float

    def excludes_zero(self) -> bool:
        """The whole interval lies on one side of 0."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class BootstrapSums:
    """point: [C] column sums over users; replicates: [R, C] the same sums with weights."""

    point: Floats
    replicates: Floats

    def merge(self, other: "BootstrapSums") -> "BootstrapSums":
        """The sums over both shards' users."""
        return BootstrapSums(self.point + other.point, self.replicates + other.replicates)


def bootstrap_sums(
    users: Hashes, columns: Floats, seed: int, replicates: int = REPLICATES
) -> BootstrapSums:
    """users: [U] `stable_hash` of each user id, once each; columns: [U, C] sums of each user."""
    total = np.zeros((replicates, columns.shape[1]))
    for start, weights in _weight_chunks(users, seed, replicates):
        total += weights.T.astype(np.float64) @ columns[start : start + len(weights)]
    return BootstrapSums(columns.sum(axis=0), total)


def user_weights(users: Hashes, seed: int, replicates: int = REPLICATES, first: int = 0) -> Weights:
    """[U, R] Poisson(1) weights, resolved to 1/65536 (weights above 8 have less mass than that).

    `first` is the number of the first replicate wanted, a multiple of 4.

    SplitMix64 (Steele et al. 2014) keyed by hash(seed, user) is read at counters 1, 2, …; each
    of its words gives four replicates.
    """
    words = -(-replicates // 4)
    seeded = _mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    key = _mix(users ^ seeded)
    counters = np.arange(first // 4 + 1, first // 4 + words + 1, dtype=np.uint64) * _GOLDEN
    stream = _mix(key[:, None] + counters[None, :])
    quarters = stream.astype("<u8", copy=False).view("<u2")[:, :replicates]
    weights: Weights = _POISSON[quarters]
    return weights


def ratio_interval(drawn: BootstrapSums) -> Interval:
    """Interval of Σ column 0 / Σ column 1; MetricError if a replicate drew no mass at all."""
    point, replicates = drawn.point, drawn.replicates
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = replicates[:, 0] / replicates[:, 1]
    return interval_of(float(point[0] / point[1]), ratios)


def interval_of(delta: float, drawn: Floats) -> Interval:
    """delta: the estimate; drawn: [R] its replicates. Percentile interval at 95 %.

    p = min(1, 2·(1 + min(#Δ≤0, #Δ≥0)) / (R+1)). Raises MetricError if a replicate is undefined:
    it drew no usable user, or one label only.
    """
    if not np.isfinite(drawn).all():
        bad = int((~np.isfinite(drawn)).sum())
        raise MetricError(f"{bad} bootstrap replicates are undefined; the split has too few users")
    low, high = np.quantile(drawn, (0.025, 0.975))
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Interval(delta, float(low), float(high), min(1.0, 2.0 * (1 + tail) / (drawn.size + 1)))


def paired_bootstrap(
    users: Hashes,
    difference: Floats,
    count: Floats,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Interval:
    """Δ = Σ w·difference / Σ w·count.

    users: [U]. difference: [U] Σ over the user's groups of weight × (A − B); count: [U] Σ of the
    group weights. Both systems must be measured on the same groups.
    """
    columns = np.stack((difference, count), axis=1)
    return ratio_interval(bootstrap_sums(users, columns, seed, replicates))


def sums_by_user(user: Ints, n_users: int, *columns: Floats) -> Floats:
    """user: [G] code of each group's user; columns: [G] each -> [U, C] sums."""
    return np.stack([sums(user, column, n_users) for column in columns], axis=1)


@dataclass(frozen=True)
class WeightedAuc:
    """Pooled AUC as a function of user weights; the rows are sorted once.

    Built from score [N], label [N] and user [N] codes in [0, U).
    """

    negative_user: Ints
    positive_user: Ints
    below: Ints
    not_above: Ints

    @classmethod
    def of(cls, score: Floats, label: Ints, user: Ints) -> "WeightedAuc":
        negative = np.flatnonzero(label == 0)
        negative = negative[np.argsort(score[negative], kind="stable")]
        positive = np.flatnonzero(label == 1)
        positive = positive[np.argsort(score[positive], kind="stable")]
        return cls(
            user[negative],
            user[positive],
            np.searchsorted(score[negative], score[positive], side="left"),
            np.searchsorted(score[negative], score[positive], side="right"),
        )

    def __call__(self, weights: Weights) -> float:
        """weights: [U] -> the AUC with each row counted as often as its user; NaN if undefined."""
        mass = np.zeros(self.negative_user.size + 1, dtype=np.int64)
        # Integer sums are exact, and several times faster than float ones.
        np.cumsum(weights.take(self.negative_user), out=mass[1:])
        positive = weights.take(self.positive_user).astype(np.float64)
        pairs = 2.0 * positive.sum() * mass[-1]
        wins = np.dot(positive, mass.take(self.below) + mass.take(self.not_above))
        return float(wins / pairs) if pairs else float("nan")


@dataclass(frozen=True)
class WeightedEce:
    """Equal-mass calibration error as a function of user weights; the rows are sorted once.

    Built from p [N], label [N] and user [N] codes in [0, U). The bins follow the weighted mass.
    """

    user: Ints
    excess: Floats
    last: Ints

    @classmethod
    def of(cls, p: Floats, label: Ints, user: Ints) -> "WeightedEce":
        order = np.argsort(p)
        ranked = p[order]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        return cls(user[order], ranked - label[order], last)

    def __call__(self, weights: Weights) -> float:
        """weights: [U] -> the error with each row counted as often as its user; NaN if empty."""
        weight = weights.take(self.user)
        mass = np.cumsum(weight, dtype=np.int64)[self.last]
        edges = np.arange(1, BINS) * (mass[-1] / BINS)
        first = np.searchsorted(mass, edges)
        # A block belongs where its middle lies: one that straddles the edge may stay below it.
        below = np.where(first > 0, mass[first - 1], 0)
        first = first + (0.5 * (below + mass[first]) < edges)
        starts = np.unique(np.append(0, self.last[first[first > 0] - 1] + 1))
        gaps = np.add.reduceat(weight * self.excess, starts[starts < weight.size])
        return float(np.abs(gaps).sum() / mass[-1]) if mass[-1] else float("nan")


def paired_resampled(
    users: Hashes,
    a: Sequence[WeightedAuc | WeightedEce],
    b: Sequence[WeightedAuc | WeightedEce],
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Interval:
    """Δ of a statistic that no sums over users give, recomputed in every replicate.

    users: [U]; a, b: one statistic per seed and fold, averaged. Raises MetricError if a replicate
    leaves it undefined.
    """

    def delta(weights: Weights) -> float:
        return float(np.mean([s(weights) for s in a]) - np.mean([s(weights) for s in b]))

    drawn = np.empty(replicates)
    for first in range(0, replicates, _REPLICATES_AT_ONCE):
        count = min(_REPLICATES_AT_ONCE, replicates - first)
        block = np.ascontiguousarray(user_weights(users, seed, count, first).T)
        drawn[first : first + count] = [delta(weights) for weights in block]
    return interval_of(delta(np.ones(users.size, dtype=np.uint8)), drawn)


def paired_sums(
    users: Hashes,
    a: Sequence[Floats],
    b: Sequence[Floats],
    finish: Callable[[Floats], Floats],
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Interval:
    """Δ of a statistic of sums over users.

    users: [U]; a, b: [U, C] sums per seed and fold, whose statistics `finish` are averaged.
    Raises MetricError if a replicate leaves it undefined.
    """
    drawn = bootstrap_sums(users, np.concatenate((*a, *b), axis=1), seed, replicates)

    def delta(sums: Floats) -> Floats:
        values = [finish(part) for part in np.split(sums, len(a) + len(b), axis=-1)]
        difference: Floats = np.mean(values[: len(a)], axis=0) - np.mean(values[len(a) :], axis=0)
        return difference

    with np.errstate(divide="ignore", invalid="ignore"):
        return interval_of(float(delta(drawn.point)), delta(drawn.replicates))


def _weight_chunks(users: Hashes, seed: int, replicates: int) -> Iterator[tuple[int, Weights]]:
    for start in range(0, users.size, _USERS_AT_ONCE):
        yield start, user_weights(users[start : start + _USERS_AT_ONCE], seed, replicates)


def _mix(x: Hashes) -> Hashes:
    """The SplitMix64 finaliser; unsigned arithmetic wraps by definition."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _poisson_table() -> Weights:
    """[65536] quantiles of Poisson(1)."""
    cumulative = np.cumsum([exp(-1.0) / factorial(n) for n in range(12)])
    middles = (np.arange(65_536) + 0.5) / 65_536
    return np.searchsorted(cumulative, middles).astype(np.uint8)


_POISSON = _poisson_table()
