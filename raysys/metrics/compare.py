"""Two systems side by side on identical rows: Δ, interval over seeds, interval over users, verdict.

A system is a run folder with `scores/SPLIT.parquet`, or a folder of such runs named `seed-N`.
Either may hold `fold-K` folders in turn; folds are averaged within a seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from raysys.errors import MetricError
from raysys.metrics import pointwise
from raysys.metrics.blocks import Floats, Ints
from raysys.metrics.bootstrap import (
    REPLICATES,
    Interval,
    WeightedAuc,
    WeightedEce,
    paired_resampled,
    paired_sums,
    sums_by_user,
)
from raysys.metrics.evaluate import MetricValue, evaluate, per_group, pooled_columns
from raysys.metrics.names import GroupedMetric, Metric, PooledMetric, parse
from raysys.metrics.pointwise import Additive
from raysys.metrics.routing import Hashes, hash_ids
from raysys.metrics.scored import Ids, ScoredRows
from raysys.metrics.seeds import (
    EFFECT,
    SeedSummary,
    Verdict,
    holm,
    non_inferiority,
    paired_t,
    summary,
    superiority,
)

Folds = dict[str, ScoredRows]


@dataclass(frozen=True)
class System:
    """rows: seed -> fold ("" if there are none) -> scored rows."""

    name: str
    rows: Mapping[int, Folds]


class ComparedMetric(BaseModel):
    """One metric of both systems; `p` is the larger of both sources' p values.

    `seeds` and `p` are None for a single seed; `p_holm` and `verdict` belong to claims only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    key: str
    n_rows: int
    n_groups: int
    n_used: int
    a: SeedSummary
    b: SeedSummary
    delta: float
    seeds: Interval | None
    users: Interval
    p: float | None
    p_holm: float | None = None
    verdict: Verdict | None = None
    warning: str | None = None


class Comparison(BaseModel):
    """`mixed_data` marks a comparison across data cards, which proves nothing about the models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: str
    b: str
    split: str
    data_card_ids: list[str]
    mixed_data: bool
    seeds: list[int]
    replicates: int
    effect: float
    metrics: list[ComparedMetric]


def load_system(folder: Path, split: str = "test") -> System:
    """Read every seed and fold below `folder`; MetricError names a folder without scores."""
    found = {_number(path): path for path in sorted(folder.glob("seed-*")) if path.is_dir()}
    runs = dict(sorted(found.items())) or {0: folder}
    return System(str(folder), {seed: _load_folds(run, split) for seed, run in runs.items()})


def compare(
    a: System,
    b: System,
    claims: Sequence[str],
    also: Sequence[str] = (),
    *,
    effect: float = EFFECT,
    non_inferior: bool = False,
    allow_mixed_data: bool = False,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """Is `a` better than `b` (or, `non_inferior`, not worse)?

    claims: metrics that get a verdict, one family for Holm's correction; also: metrics that are
    shown without one. Raises MetricError for other data cards (unless allowed), other rows,
    other seeds, or a claim on a metric without a better direction.
    """
    claimed = [parse(name) for name in claims]
    for metric in claimed:
        if metric.higher_is_better is None:
            raise MetricError(f"{metric.name} has no better direction; it cannot be a claim")
    cards, mixed = _data_cards(a, b)
    if mixed and not allow_mixed_data:
        raise MetricError(
            f"the runs were made from different data (data cards {', '.join(cards)}); "
            "--allow-mixed-data compares them all the same and marks the table"
        )
    a, b = _aligned(a, b)
    shown = [m for m in map(parse, also) if m.name not in claims]
    compared = [_compare(a, b, metric, seed, replicates) for metric in (*claimed, *shown)]

    adjusted = holm({m.name: 1.0 if m.p is None else m.p for m in compared[: len(claimed)]})
    judged = [
        row.model_copy(
            update={
                "p_holm": None if row.p is None else adjusted[row.name],
                "verdict": _verdict(row, metric, adjusted[row.name], effect, non_inferior),
            }
        )
        for row, metric in zip(compared, claimed, strict=False)
    ]
    return Comparison(
        a=a.name,
        b=b.name,
        split=next(iter(next(iter(a.rows.values())).values())).split,
        data_card_ids=cards,
        mixed_data=mixed,
        seeds=sorted(a.rows),
        replicates=replicates,
        effect=effect,
        metrics=[*judged, *compared[len(claimed) :]],
    )


def _number(path: Path) -> int:
    try:
        return int(path.name.removeprefix("seed-"))
    except ValueError:
        raise MetricError(f"{path}: a seed folder is named seed-NUMBER") from None


def _load_folds(run: Path, split: str) -> Folds:
    folds = sorted(path for path in run.glob("fold-*") if path.is_dir())
    return {
        fold.name if folds else "": ScoredRows.read_parquet(fold / "scores" / f"{split}.parquet")
        for fold in folds or [run]
    }


def _data_cards(a: System, b: System) -> tuple[list[str], bool]:
    """All data cards tested or trained on, and whether one fold appears with several."""
    by_fold: dict[str, set[str]] = {}
    for system in (a, b):
        for folds in system.rows.values():
            for fold, rows in folds.items():
                made_from = {rows.data_card_id, rows.trained_on or rows.data_card_id}
                by_fold.setdefault(fold, set()).update(made_from)
    return sorted(set().union(*by_fold.values())), any(len(ids) > 1 for ids in by_fold.values())


def _aligned(a: System, b: System) -> tuple[System, System]:
    """Both systems with all rows in the order of a's first seed."""
    if a.rows.keys() != b.rows.keys():
        raise MetricError(
            f"{a.name} has the seeds {sorted(a.rows)} and {b.name} {sorted(b.rows)}; "
            "a comparison is paired over shared seeds"
        )
    reference = next(iter(a.rows.values()))

    def align(system: System) -> System:
        rows: dict[int, Folds] = {}
        for seed, folds in system.rows.items():
            where = f"{system.name} (seed {seed})"
            if folds.keys() != reference.keys():
                raise MetricError(f"{where} has other folds than {a.name}")
            rows[seed] = {fold: _align(reference[fold], folds[fold], where) for fold in folds}
        return System(system.name, rows)

    return align(a), align(b)


def _align(reference: ScoredRows, rows: ScoredRows, where: str) -> ScoredRows:
    """`rows` in the order of `reference`; MetricError unless they are the same rows and labels."""
    impression = _codes_in(reference.impression, rows.impression, f"{where}: impression")
    item = _codes_in(reference.item, rows.item, f"{where}: item")
    user = _codes_in(reference.user, rows.user, f"{where}: user")
    width = len(reference.item.values)
    expected = reference.impression.codes * width + reference.item.codes
    found = impression * width + item
    order_expected, order_found = np.argsort(expected), np.argsort(found)
    if not np.array_equal(expected[order_expected], found[order_found]):
        missing = np.setdiff1d(expected, found)
        row = (
            reference.where(int(np.flatnonzero(expected == missing[0])[0])) if missing.size else ""
        )
        raise MetricError(
            f"{where} scored {len(rows)} rows, not the {len(reference)} of the first run; "
            + (f"it lacks {row}" if row else "it has more candidates")
        )
    take = np.empty(len(rows), dtype=np.int64)
    take[order_expected] = order_found
    for name, left, right in (
        ("user", reference.user.codes, user[take]),
        ("click", reference.click, rows.click[take]),
        ("order", reference.order, rows.order[take]),
    ):
        differ = np.flatnonzero(left != right)
        if differ.size:
            raise MetricError(f"{where} has another {name} in {reference.where(int(differ[0]))}")
    return replace(
        reference,
        score=rows.score[take],
        p_click=None if rows.p_click is None else rows.p_click[take],
        p_order=None if rows.p_order is None else rows.p_order[take],
        data_card_id=rows.data_card_id,
        model_id=rows.model_id,
    )


def _codes_in(reference: Ids, ids: Ids, what: str) -> Ints:
    """[N] codes of `ids` in the vocabulary of `reference`."""
    place = pc.index_in(ids.values, value_set=reference.values)
    if place.null_count:
        unknown = ids.values[int(np.flatnonzero(place.is_null().to_numpy(False))[0])]
        raise MetricError(f"{what} {str(unknown)!r} is not among those of the first run")
    codes: Ints = place.to_numpy().astype(np.int64)[ids.codes]
    return codes


def _compare(a: System, b: System, metric: Metric, seed: int, replicates: int) -> ComparedMetric:
    values_a, values_b = _values(a, metric), _values(b, metric)
    by_a, by_b = _by_seed(values_a), _by_seed(values_b)
    over_seeds = paired_t(by_a, by_b) if len(by_a) > 1 else None
    over_users = _over_users(a, b, metric, seed, replicates)
    summary_a, summary_b = summary(by_a), summary(by_b)
    first = next(iter(values_a.values()))
    return ComparedMetric(
        name=metric.name,
        key=first[0].key,
        n_rows=sum(value.n_rows for value in first),
        n_groups=sum(value.n_groups for value in first),
        n_used=sum(value.n_used for value in first),
        a=summary_a,
        b=summary_b,
        delta=summary_a.mean - summary_b.mean,
        seeds=over_seeds,
        users=over_users,
        p=None if over_seeds is None else max(over_seeds.p, over_users.p),
        warning=first[0].warning,
    )


def _values(system: System, metric: Metric) -> dict[int, list[MetricValue]]:
    return {
        seed: [evaluate(rows, [metric.name])[metric.name] for rows in folds.values()]
        for seed, folds in system.rows.items()
    }


def _by_seed(values: Mapping[int, list[MetricValue]]) -> dict[int, float]:
    return {seed: float(np.mean([v.value for v in folds])) for seed, folds in values.items()}


def _users(system: System) -> tuple[Hashes, dict[str, Ints]]:
    """Distinct user hashes over all folds, and per fold the place of each of its users."""
    hashes = {
        fold: hash_ids(rows.user.values) for fold, rows in next(iter(system.rows.values())).items()
    }
    every = np.unique(np.concatenate(list(hashes.values())))
    return every, {fold: np.searchsorted(every, users) for fold, users in hashes.items()}


def _over_users(a: System, b: System, metric: Metric, seed: int, replicates: int) -> Interval:
    users, place = _users(a)
    if isinstance(metric, GroupedMetric):
        sums_a, sums_b = (_group_sums(s, metric, place, users.size) for s in (a, b))
        return paired_sums(users, sums_a, sums_b, _mean, seed, replicates)
    if isinstance(metric.statistic, Additive):
        sums_a, sums_b = (_row_sums(s, metric, metric.statistic, place, users.size) for s in (a, b))
        return paired_sums(users, sums_a, sums_b, metric.statistic.finish, seed, replicates)
    kind = WeightedAuc if metric.statistic is pointwise.auc else WeightedEce
    return paired_resampled(
        users,
        [kind.of(*columns) for columns in _pooled(a, metric, place)],
        [kind.of(*columns) for columns in _pooled(b, metric, place)],
        seed,
        replicates,
    )


def _mean(sums: Floats) -> Floats:
    return sums[..., 0] / sums[..., 1]


def _group_sums(
    system: System, metric: GroupedMetric, place: Mapping[str, Ints], n_users: int
) -> list[Floats]:
    """[U, 2] per seed and fold: Σ weight × value and Σ weight of each user's used groups."""
    found = []
    for folds in system.rows.values():
        for fold, rows in folds.items():
            groups = per_group(rows, metric)
            used = ~np.isnan(groups.value)
            user, weight = place[fold][groups.user[used]], groups.weight[used]
            found.append(sums_by_user(user, n_users, weight * groups.value[used], weight))
    return found


def _row_sums(
    system: System,
    metric: PooledMetric,
    statistic: Additive,
    place: Mapping[str, Ints],
    n_users: int,
) -> list[Floats]:
    """[U, C] per seed and fold."""
    pooled = _pooled(system, metric, place)
    return [statistic.by_user(*columns, n_users) for columns in pooled]


def _pooled(
    system: System, metric: PooledMetric, place: Mapping[str, Ints]
) -> Iterator[tuple[Floats, Ints, Ints]]:
    """(prediction [M], label [M], user code [M]) per seed and fold."""
    for folds in system.rows.values():
        for fold, rows in folds.items():
            prediction, label, where = pooled_columns(rows, metric)
            yield prediction, label, place[fold][rows.user.codes[where]]


def _verdict(
    row: ComparedMetric, metric: Metric, p_holm: float, effect: float, non_inferior: bool
) -> Verdict:
    higher = metric.higher_is_better is not False
    if non_inferior:
        return non_inferiority(row.seeds, row.users, n_seeds=row.a.n, higher_is_better=higher)
    return superiority(
        row.seeds,
        row.users,
        n_seeds=row.a.n,
        p_adjusted=p_holm,
        effect=effect,
        higher_is_better=higher,
    )
