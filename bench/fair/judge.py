"""From scored seeds to words: paired intervals, Holm over the family, the fixed verdicts."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from raysys.errors import MetricError
from raysys.metrics import evaluate
from raysys.metrics.bootstrap import Interval
from raysys.metrics.compare import ComparedMetric, System, compare
from raysys.metrics.scored import ScoredRows
from raysys.metrics.seeds import SeedSummary, Verdict, holm, non_inferiority, summary, superiority

Mask = npt.NDArray[np.bool_]
Parts = Mapping[str, Mapping[str, Mask]]  # fold ("" if there is one data set) -> slice -> rows [N]


class Claim(BaseModel):
    """`a` against `b` on the rows of a slice ("": all), by one metric.

    kind: `better`, or `not worse` by more than the margin. family: with whose claims Holm's rule
    counts it: those that "supported" asks for, or others that are asked besides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: str
    b: str
    metric: str
    slice: str = ""
    kind: Literal["better", "not worse"] = "better"
    family: str = "supported"


class Judged(BaseModel):
    """delta: a − b over shared seeds. seeds, users: 95 % intervals. p_holm: over the claims of the
    family that say `better`. reason: why nothing could be compared; such a claim does not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    claim: Claim
    a: float | None = None
    b: float | None = None
    delta: float | None = None
    n_seeds: int = 0
    seeds: Interval | None = None
    users: Interval | None = None
    p_holm: float | None = None
    verdict: Verdict = "no verdict"
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the claim is shown."""
        return self.verdict in ("supported", "not inferior")


def judge(
    claims: Sequence[Claim],
    systems: Mapping[str, System],
    slices: Parts,
    *,
    effect: float,
    replicates: int,
) -> list[Judged]:
    """Every claim with its verdict, in order.

    systems: by arm, all over the same rows in the same order. A claim on a slice without rows, or
    with too few users, has no verdict and stays in Holm's family.
    """
    found = [_tried(claim, systems, slices, effect, replicates) for claim in claims]
    families: dict[str, dict[str, float]] = {}
    for place, (claim, row) in enumerate(zip(claims, found, strict=True)):
        if claim.kind == "better":
            p = 1.0 if isinstance(row, str) or row.p is None else row.p
            families.setdefault(claim.family, {})[str(place)] = p
    adjusted = {place: p for family in families.values() for place, p in holm(family).items()}
    return [
        Judged(claim=claim, reason=row)
        if isinstance(row, str)
        else _judged(claim, row, adjusted.get(str(place)), effect)
        for place, (claim, row) in enumerate(zip(claims, found, strict=True))
    ]


def differences(
    a: System,
    others: Mapping[str, System],
    metrics: Sequence[str],
    *,
    replicates: int,
) -> dict[str, dict[str, ComparedMetric]]:
    """`a` minus each other arm, by arm and metric, with intervals and without a verdict."""
    return {
        name: {
            row.name: row
            for row in compare(*_shared(a, other), (), metrics, replicates=replicates).metrics
        }
        for name, other in others.items()
    }


def values(system: System, metrics: Sequence[str]) -> dict[str, SeedSummary]:
    """Each metric over the seeds of an arm, folds averaged within a seed."""
    by_seed = {
        seed: [evaluate(rows, metrics) for rows in folds.values()]
        for seed, folds in system.rows.items()
    }
    return {
        name: summary(
            {
                seed: float(np.mean([fold[name].value for fold in found]))
                for seed, found in by_seed.items()
            }
        )
        for name in metrics
    }


def part(system: System, name: str, slices: Parts) -> System:
    """The system on the slice; folds without any of its rows are left out."""
    taken: dict[int, dict[str, ScoredRows]] = {
        seed: {
            fold: rows.take(slices[fold][name])
            for fold, rows in folds.items()
            if name in slices[fold]
        }
        for seed, folds in system.rows.items()
    }
    return System(system.name, taken)


def _shared(a: System, b: System) -> tuple[System, System]:
    seeds = sorted(a.rows.keys() & b.rows.keys())
    first, second = (System(s.name, {seed: s.rows[seed] for seed in seeds}) for s in (a, b))
    return first, second


def _tried(
    claim: Claim,
    systems: Mapping[str, System],
    slices: Parts,
    effect: float,
    replicates: int,
) -> ComparedMetric | str:
    """What is compared, or why that is not possible."""
    if claim.slice and not any(claim.slice in names for names in slices.values()):
        return "no such rows"
    try:
        return _compared(claim, systems, slices, effect, replicates)
    except MetricError as error:
        return str(error)


def _compared(
    claim: Claim,
    systems: Mapping[str, System],
    slices: Parts,
    effect: float,
    replicates: int,
) -> ComparedMetric:
    a, b = _shared(systems[claim.a], systems[claim.b])
    if claim.slice:
        a, b = part(a, claim.slice, slices), part(b, claim.slice, slices)
    return compare(a, b, (), (claim.metric,), effect=effect, replicates=replicates).metrics[0]


def _judged(claim: Claim, row: ComparedMetric, p_holm: float | None, effect: float) -> Judged:
    if claim.kind == "better":
        assert p_holm is not None
        verdict = superiority(
            row.seeds, row.users, n_seeds=row.a.n, p_adjusted=p_holm, effect=effect
        )
    else:
        verdict = non_inferiority(row.seeds, row.users, n_seeds=row.a.n)
    return Judged(
        claim=claim,
        a=row.a.mean,
        b=row.b.mean,
        delta=row.delta,
        n_seeds=row.a.n,
        seeds=row.seeds,
        users=row.users,
        p_holm=p_holm,
        verdict=verdict,
    )
