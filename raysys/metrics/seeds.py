"""Statistics over training seeds, and the rule that turns two intervals into words."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.special import stdtr, stdtrit

from raysys.errors import MetricError
from raysys.metrics.bootstrap import Interval

MIN_SEEDS = 5
EFFECT = 0.002
MARGIN = 0.003

Verdict = Literal[
    "supported",
    "contradicted",
    "no difference shown",
    "not inferior",
    "non-inferiority not shown",
    "no verdict",
]


class SeedSummary(BaseModel):
    """One arm over its seeds; sd is the sample deviation (n − 1), None for one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    sd: float | None
    min: float
    max: float
    n: int


def summary(values: Mapping[int, float]) -> SeedSummary:
    """values: metric by seed. Every seed that was planned must be there."""
    array = _finite(values)
    return SeedSummary(
        mean=float(array.mean()),
        sd=float(array.std(ddof=1)) if array.size > 1 else None,
        min=float(array.min()),
        max=float(array.max()),
        n=array.size,
    )


def paired_t(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """95 % t interval of the mean difference a − b over shared seeds.

    Raises MetricError unless both arms have the same two or more seeds: a seed that crashed is
    reported and run again, never dropped.
    """
    if a.keys() != b.keys():
        only = sorted(a.keys() ^ b.keys())
        raise MetricError(f"the arms have different seeds; only one of them has {only}")
    return t_interval(_finite(a) - _finite(b))


def t_interval(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Interval:
    """95 % t interval of the mean of [n] values, n >= 2, and p for mean 0."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        raise MetricError(f"an interval over seeds needs at least 2 seeds, got {array.size}")
    mean, freedom = float(array.mean()), array.size - 1
    error = float(array.std(ddof=1)) / np.sqrt(array.size)
    half = float(stdtrit(freedom, 0.975)) * error
    if error == 0.0:
        p = 1.0 if mean == 0.0 else 0.0
    else:
        p = 2.0 * float(stdtr(freedom, -abs(mean) / error))
    return Interval(mean, mean - half, mean + half, p)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p by comparison -> p adjusted for the family, by Holm's step-down method."""
    adjusted, highest = {}, 0.0
    for done, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - done) * p[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}


def superiority(
    seeds: Interval | None,
    users: Interval,
    *,
    n_seeds: int,
    p_adjusted: float,
    effect: float = EFFECT,
    higher_is_better: bool = True,
) -> Verdict:
    """The claim rule for "a is better than b".

    Supported needs both intervals to exclude 0 on the same side, |Δ| of at least `effect`, and
    the Holm-adjusted p at most 0.05; fewer than five seeds give no verdict.
    """
    if seeds is None or n_seeds < MIN_SEEDS:
        return "no verdict"
    same_side = (seeds.low > 0 and users.low > 0) or (seeds.high < 0 and users.high < 0)
    if not same_side or abs(seeds.delta) < effect or p_adjusted > 0.05:
        return "no difference shown"
    return "supported" if (seeds.delta > 0) == higher_is_better else "contradicted"


def non_inferiority(
    seeds: Interval | None,
    users: Interval,
    *,
    n_seeds: int,
    margin: float = MARGIN,
    higher_is_better: bool = True,
) -> Verdict:
    """ "a is not worse than b": the worse ends of both intervals lie above −margin."""
    if seeds is None or n_seeds < MIN_SEEDS:
        return "no verdict"
    worst = [i.low if higher_is_better else -i.high for i in (seeds, users)]
    return "not inferior" if min(worst) > -margin else "non-inferiority not shown"


def _finite(values: Mapping[int, float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    bad = [seed for seed, value in values.items() if not np.isfinite(value)]
    if bad or not values:
        raise MetricError(f"no finite value for seed {bad[0] if bad else '(none given)'}")
    return np.array([values[seed] for seed in sorted(values)], dtype=np.float64)
