"""From scored rows to named metric values, on one machine or merged over shards."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from raysys.errors import MetricError
from raysys.metrics.blocks import Floats, Ints
from raysys.metrics.names import GroupedMetric, PooledMetric, parse
from raysys.metrics.pointwise import Tally
from raysys.metrics.scored import ScoredRows

MIN_USED = 0.5


class MetricValue(BaseModel):
    """One number with all that is needed to read it; key "all" means pooled over the rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float
    key: str
    n_rows: int
    n_groups: int
    n_used: int
    dropped_all_positive: int
    dropped_all_negative: int
    dropped_empty: int
    data_card_id: str
    warning: str | None = None


@dataclass(frozen=True)
class GroupedPartial:
    """Sums of a grouped metric over the groups of one shard; each group lives in one shard."""

    metric: GroupedMetric
    data_card_id: str
    total: float
    weight: float
    n_rows: int
    n_positive: int
    n_groups: int
    n_used: int
    dropped_all_positive: int
    dropped_all_negative: int
    dropped_empty: int

    def merge(self, other: "PartialMetric") -> "GroupedPartial":
        """The sums over both shards' groups."""
        if not isinstance(other, GroupedPartial):
            raise _mismatch(self, other)
        _check_same(self, other)
        added = [f.name for f in fields(self) if f.name not in ("metric", "data_card_id")]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in added})

    def value(self) -> MetricValue:
        """The metric; MetricError if the label is constant or no group is usable."""
        name = self.metric.name
        if self.n_positive in (0, self.n_rows):
            raise MetricError(
                f"{name}: the label is constant: {self.n_positive} positive of {self.n_rows} rows"
            )
        if not self.n_used:
            raise MetricError(f"{name}: none of the {self.n_groups} groups holds both labels")
        share = self.n_used / self.n_groups
        few = f"only {self.n_used} of {self.n_groups} groups ({share:.0%}) are used"
        return MetricValue(
            name=name,
            value=self.total / self.weight,
            key=self.metric.key,
            n_rows=self.n_rows,
            n_groups=self.n_groups,
            n_used=self.n_used,
            dropped_all_positive=self.dropped_all_positive,
            dropped_all_negative=self.dropped_all_negative,
            dropped_empty=self.dropped_empty,
            data_card_id=self.data_card_id,
            warning=few if share < MIN_USED else None,
        )


@dataclass(frozen=True)
class PooledPartial:
    """The tally of a pooled metric over the rows of one shard."""

    metric: PooledMetric
    data_card_id: str
    tally: Tally

    def merge(self, other: "PartialMetric") -> "PooledPartial":
        """The tally over both shards' rows."""
        if not isinstance(other, PooledPartial):
            raise _mismatch(self, other)
        _check_same(self, other)
        return replace(self, tally=self.tally.merge(other.tally))

    def value(self) -> MetricValue:
        """The metric; MetricError if the label is constant."""
        try:
            value = self.metric.statistic(self.tally)
        except MetricError as error:
            raise MetricError(f"{self.metric.name}: {error}") from error
        return MetricValue(
            name=self.metric.name,
            value=value,
            key="all",
            n_rows=round(float(self.tally.weight.sum())),
            n_groups=1,
            n_used=1,
            dropped_all_positive=0,
            dropped_all_negative=0,
            dropped_empty=0,
            data_card_id=self.data_card_id,
        )


PartialMetric = GroupedPartial | PooledPartial


@dataclass(frozen=True)
class PerGroup:
    """value: [G], NaN where undefined. weight: [G] in the mean. user: [G] code of its user."""

    value: Floats
    weight: Floats
    user: Ints


def per_group(rows: ScoredRows, metric: GroupedMetric) -> PerGroup:
    """The metric of every group of `rows`, in the order of `rows.ids(metric.key).values`."""
    blocks = rows.blocks(metric.key)
    ids = rows.ids(metric.key)
    user = np.zeros(len(ids.values), dtype=np.int64)
    user[ids.codes] = rows.user.codes
    weight = blocks.group_rows.astype(np.float64) if metric.by_rows else np.ones(user.size)
    return PerGroup(metric.per_group(blocks), weight, user)


def partial_metrics(rows: ScoredRows, names: Iterable[str]) -> dict[str, PartialMetric]:
    """Mergeable parts of the named metrics. Grouped ones need each group whole in one shard."""
    tallies: dict[tuple[str, str, bool], Tally] = {}
    parts: dict[str, PartialMetric] = {}
    for name in names:
        metric = parse(name)
        if isinstance(metric, GroupedMetric):
            parts[name] = _grouped(rows, metric)
        else:
            source = (metric.column, metric.label, metric.clicked_only)
            if source not in tallies:
                prediction, label, _ = pooled_columns(rows, metric)
                tallies[source] = Tally.of(prediction, label)
            parts[name] = PooledPartial(metric, rows.data_card_id, tallies[source])
    return parts


def merge(parts: Iterable[dict[str, PartialMetric]]) -> dict[str, MetricValue]:
    """The values over all shards; MetricError if the shards differ in metrics or data card."""
    every = list(parts)
    if not every or any(shard.keys() != every[0].keys() for shard in every):
        raise MetricError("the shards hold different metrics")
    return {name: reduce(_merge, (shard[name] for shard in every)).value() for name in every[0]}


def evaluate(rows: ScoredRows, names: Iterable[str]) -> dict[str, MetricValue]:
    """The named metrics (see `raysys.metrics.names`) of `rows`.

    A metric that uses less than half of its groups carries a `warning`, to be printed beside the
    number. Raises MetricError for an unknown name, a constant label or a missing probability.
    """
    return merge([partial_metrics(rows, names)])


def pooled_columns(rows: ScoredRows, metric: PooledMetric) -> tuple[Floats, Ints, Ints]:
    """(prediction [M], label [M], row [M]) of the rows the metric looks at."""
    where = np.flatnonzero(rows.click) if metric.clicked_only else np.arange(len(rows))
    label = rows.click if metric.label == "click" else rows.order
    return _column(rows, metric)[where], label[where], where


def _column(rows: ScoredRows, metric: PooledMetric) -> Floats:
    if metric.column == "score":
        return rows.score
    if metric.column != "p_cvr":
        return _probability(rows, metric.name, metric.column)
    click, order = (
        _probability(rows, metric.name, "p_click"),
        _probability(rows, metric.name, "p_order"),
    )
    return np.divide(order, click, out=np.zeros(len(rows)), where=click > 0)


def _probability(rows: ScoredRows, name: str, column: Literal["p_click", "p_order"]) -> Floats:
    values = rows.p_click if column == "p_click" else rows.p_order
    if values is None:
        raise MetricError(f"{name} needs {column}, which these scores do not have")
    return values


def _grouped(rows: ScoredRows, metric: GroupedMetric) -> GroupedPartial:
    groups = per_group(rows, metric)
    used = ~np.isnan(groups.value)
    blocks = rows.blocks(metric.key)
    n_rows, n_positive = blocks.group_rows, blocks.group_positives
    full = (n_positive == n_rows) & (n_rows > 0)
    empty = int((n_rows == 0).sum()) + rows.empty.get(metric.key, 0)
    return GroupedPartial(
        metric=metric,
        data_card_id=rows.data_card_id,
        total=float(np.dot(groups.value[used], groups.weight[used])),
        weight=float(groups.weight[used].sum()),
        n_rows=int(n_rows.sum()),
        n_positive=int(n_positive.sum()),
        n_groups=n_rows.size + rows.empty.get(metric.key, 0),
        n_used=int(used.sum()),
        dropped_all_positive=int(full.sum()) if metric.needs_both_labels else 0,
        dropped_all_negative=int(((n_positive == 0) & (n_rows > 0)).sum()),
        dropped_empty=empty,
    )


def _merge(a: PartialMetric, b: PartialMetric) -> PartialMetric:
    return a.merge(b)


def _check_same(a: PartialMetric, b: PartialMetric) -> None:
    if a.metric.name != b.metric.name or a.data_card_id != b.data_card_id:
        raise _mismatch(a, b)


def _mismatch(a: PartialMetric, b: PartialMetric) -> MetricError:
    return MetricError(
        f"cannot merge {a.metric.name} of data {a.data_card_id!r} "
        f"with {b.metric.name} of data {b.data_card_id!r}"
    )
