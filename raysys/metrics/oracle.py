"""Share of the gap between a baseline and the oracle that a model closes.

The oracle is the known click probability of a planted world, without position; a model that
learns the whole law closes 1, one that learns nothing more than the baseline closes 0.
"""

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict

from raysys.errors import MetricError
from raysys.metrics.blocks import Floats
from raysys.metrics.bootstrap import (
    REPLICATES,
    Interval,
    bootstrap_sums,
    ratio_interval,
    sums_by_user,
)
from raysys.metrics.evaluate import per_group
from raysys.metrics.names import GroupedMetric, parse
from raysys.metrics.routing import hash_ids
from raysys.metrics.scored import ScoredRows
from raysys.metrics.seeds import SeedSummary, summary, t_interval


class GapShare(BaseModel):
    """(model − baseline) / (oracle − baseline) of one metric, 95 % intervals over both sources.

    `seeds` is None for a single seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    share: float
    baseline: float
    oracle: float
    model: SeedSummary
    seeds: Interval | None
    users: Interval
    n_groups: int


def gap_share(
    models: Mapping[int, ScoredRows],
    baseline: Floats,
    oracle: Floats,
    metric: str,
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> GapShare:
    """models: rows by training seed, the same rows in the same order for every seed.

    baseline, oracle: [N] scores of those rows. metric: a grouped metric. Raises MetricError if
    the metric is pooled, the seeds' rows differ, or the oracle does not beat the baseline.
    """
    parsed = parse(metric)
    if not isinstance(parsed, GroupedMetric):
        raise MetricError(f"the gap share needs a grouped metric, {metric} is pooled")
    reference = next(iter(models.values()))
    for number, rows in models.items():
        if not _same_rows(reference, rows):
            raise MetricError(f"seed {number} scored other rows than seed {next(iter(models))}")

    low = per_group(reference.with_scores(baseline), parsed)
    used = ~np.isnan(low.value)
    weight = low.weight[used]
    low_value = low.value[used]
    high_value = per_group(reference.with_scores(oracle), parsed).value[used]
    by_seed = {number: per_group(rows, parsed).value[used] for number, rows in models.items()}

    gap = float(np.average(high_value - low_value, weights=weight))
    if gap <= 0:
        raise MetricError(f"the oracle does not beat the baseline in {metric} (gap {gap:.4f})")
    means = {number: float(np.average(v, weights=weight)) for number, v in by_seed.items()}
    base = float(np.average(low_value, weights=weight))
    shares = [(mean - base) / gap for mean in means.values()]
    closed = np.mean(list(by_seed.values()), axis=0) - low_value
    users = hash_ids(reference.user.values)
    sums = sums_by_user(
        low.user[used], users.size, weight * closed, weight * (high_value - low_value)
    )
    return GapShare(
        metric=metric,
        share=float(np.mean(shares)),
        baseline=base,
        oracle=base + gap,
        model=summary(means),
        seeds=t_interval(shares) if len(shares) > 1 else None,
        users=ratio_interval(bootstrap_sums(users, sums, seed, replicates)),
        n_groups=int(used.sum()),
    )


def _same_rows(a: ScoredRows, b: ScoredRows) -> bool:
    return (
        a.impression.values.equals(b.impression.values)
        and a.item.values.equals(b.item.values)
        and np.array_equal(a.impression.codes, b.impression.codes)
        and np.array_equal(a.item.codes, b.item.codes)
        and np.array_equal(a.click, b.click)
    )
