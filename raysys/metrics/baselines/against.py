"""A model beside the baselines: the same rows, the same groups, paired intervals."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from raysys.metrics.baselines.compute import PROBABILITIES
from raysys.metrics.blocks import Floats
from raysys.metrics.bootstrap import (
    REPLICATES,
    BootstrapSums,
    Interval,
    bootstrap_sums,
    ratio_interval,
    sums_by_user,
)
from raysys.metrics.evaluate import MetricValue, evaluate, per_group
from raysys.metrics.names import GroupedMetric, PooledMetric, parse
from raysys.metrics.routing import hash_ids
from raysys.metrics.scored import ScoredRows


def baseline_metrics(
    rows: ScoredRows, scores: Mapping[str, Floats], names: Iterable[str]
) -> dict[str, dict[str, MetricValue]]:
    """Metrics by baseline. scores: [N] by baseline.

    Metrics of a click probability are given for the baselines that are one; metrics of an order
    probability for none.
    """
    parsed = [parse(name) for name in names]
    found = {}
    for baseline, values in scores.items():
        columns = {"score"}
        scored = rows.with_scores(values)
        if baseline in PROBABILITIES:
            columns |= {"p_click"}
            scored = replace(scored, p_click=values)
        fitting = [
            metric.name
            for metric in parsed
            if not isinstance(metric, PooledMetric) or metric.column in columns
        ]
        found[baseline] = evaluate(scored, fitting)
    return found


def paired_intervals(
    rows: ScoredRows,
    scores: Mapping[str, Floats],
    names: Iterable[str],
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> dict[str, dict[str, Interval]]:
    """Model minus baseline, by baseline and grouped metric, with 95 % user-bootstrap intervals.

    rows: scored by the model. Pooled metrics are passed over. Raises MetricError if a bootstrap
    replicate draws no usable user.
    """
    metrics = [m for m in map(parse, names) if isinstance(m, GroupedMetric)]
    users = hash_ids(rows.user.values)
    blocks = []
    for metric in metrics:
        own = per_group(rows, metric)
        used = ~np.isnan(own.value)
        weight = own.weight[used]
        differences = [
            weight * (own.value[used] - per_group(rows.with_scores(s), metric).value[used])
            for s in scores.values()
        ]
        blocks.append(sums_by_user(own.user[used], users.size, weight, *differences))
    intervals: dict[str, dict[str, Interval]] = {baseline: {} for baseline in scores}
    if not blocks:
        return intervals
    # One draw of the users serves every metric and baseline.
    sums = bootstrap_sums(users, np.concatenate(blocks, axis=1), seed, replicates)
    width = 1 + len(scores)
    for place, metric in enumerate(metrics):
        for column, baseline in enumerate(scores, 1):
            pair = [place * width + column, place * width]
            drawn = BootstrapSums(sums.point[pair], sums.replicates[:, pair])
            intervals[baseline][metric.name] = ratio_interval(drawn)
    return intervals
