"""Evaluate a run on a split: the model, every cheap baseline on the same rows, and the checks.

No number of a model is printed alone. If the gradient-boosted trees on eight features rank
better, the first sentence says so.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from raysys.artifacts.run import read_config
from raysys.data.contexts import FIRST
from raysys.data.dataset import Dataset
from raysys.data.files import write_text
from raysys.data.histories import UNKNOWN_TS
from raysys.data.mapping import progress_line
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError, MetricError
from raysys.metrics import GapShare, MetricValue, ScoredRows, gap_share
from raysys.metrics import evaluate as measure
from raysys.metrics.anchors import Anchor, anchors_of
from raysys.metrics.baselines import (
    GBDT,
    NAMES,
    NEEDS,
    Counts,
    baseline_metrics,
    compute_baselines,
    oracle_scores,
    paired_intervals,
)
from raysys.metrics.blocks import Floats
from raysys.metrics.bootstrap import REPLICATES, Interval
from raysys.metrics.leaks import Finding
from raysys.metrics.names import Key, parse
from raysys.metrics.suite import Audit, run_suite
from raysys.recipes.split_scorer import SplitScorer

# Baselines whose distance to the oracle is the yardstick on planted worlds.
_GAP_FROM = ("popularity", GBDT[0])
Scores = dict[str, Floats]
T = TypeVar("T")


class Evaluation(BaseModel):
    """What `metrics.json` and `--json` hold.

    summary: one sentence, with the GBDT in it. model: value by metric. baselines: the same by
    baseline. intervals: model minus baseline, by baseline and metric, 95 % over users. groups:
    counts of the headline metric. oracle, oracle_gap: planted worlds only; the share of the gap
    from a baseline to the oracle that the model closes. counts: whether item counts stop at the
    split or follow the impressions. left_out: baselines that could not be computed, with the
    reason. findings: leak and sanity tests. anchors: published figures on this public set, for
    orientation. unknown: see `Predictor`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str
    recipe: str
    model_id: str
    data_card_id: str
    trained_on: str
    split: str
    groups: dict[str, str | int]
    model: dict[str, MetricValue]
    baselines: dict[str, dict[str, MetricValue]]
    intervals: dict[str, dict[str, Interval]]
    oracle: dict[str, MetricValue]
    oracle_gap: dict[str, GapShare]
    counts: Counts
    left_out: dict[str, str]
    findings: list[Finding]
    anchors: tuple[Anchor, ...] = ()
    unknown: dict[str, int]
    warnings: list[str]
    seed: int
    replicates: int


def evaluate(
    run: Path,
    data: Path,
    split: str = "test",
    *,
    metrics: Sequence[str] | None = None,
    baselines: bool = True,
    counts: Counts = "frozen",
    leak_tests: bool = False,
    other_data: bool = False,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Evaluation:
    """Score `split`, measure model and baselines; writes RUN/scores/SPLIT.parquet, RUN/metrics.json.

    metrics: names as in `raysys.metrics.names`; by default those that suit the data set's group
    key, the first being the headline. leak_tests: also score with other users' histories and in
    another candidate order. other_data: the run may have been trained on another data set, say an
    older one; otherwise that is refused, because another fold's training rows may be tested here.
    Its results go to RUN/other/CARD.

    Raises:
        ConfigError: the run was trained on other data.
        ArtifactError: the run folder is unfinished or damaged.
        DataError: the split is empty, or `data` is no data set folder.
        MetricError: constant labels, or an unknown metric.
    """  # noqa: E501
    prepared = prepare(Dataset(data))
    for name in metrics or ():
        parse(name)  # refuses unknown ones before anything is scored
    if split not in ("train", "valid", "test"):
        raise ConfigError(f"no split is called {split!r}; use train, valid or test")
    trained_on, card = read_config(Path(run)).data_card_id, prepared.dataset.manifest.data_card_id
    if trained_on != card and not other_data:
        raise ConfigError(
            f"{run} was trained on data {trained_on} and {data} is {card}: it may have learned the "
            "very rows it would be tested on. Give the data it was trained on, or --other-data if "
            "they are known to share no impression"
        )
    with progress_line() as progress:
        bar = progress.add_task("scoring", total=len(prepared.impressions.of(split)))
        scorer = SplitScorer.of(str(run), prepared, split, lambda n: progress.advance(bar, n))
        rows, key = scorer.rows, group_key(prepared)
        names = list(metrics or default_metrics(rows, key))
        model = measure(rows, names)

        bar = progress.add_task("baselines and checks", total=3)
        scores: Scores = {}
        if baselines:
            vectors = _item_vectors(scorer, prepared)
            scores = compute_baselines(prepared, split, seed=seed, counts=counts, vectors=vectors)
        table = baseline_metrics(rows, scores, names)
        progress.advance(bar)
        warnings = [f"{v.name}: {v.warning}" for v in model.values() if v.warning]
        intervals = _tried(
            lambda: paired_intervals(rows, scores, names, seed=seed, replicates=replicates),
            warnings,
        )
        oracle, gaps = _oracle(prepared, split, rows, scores, names, seed, replicates, warnings)
        progress.advance(bar)
        audit = audit_of(prepared, scorer, scores, counts, leak_tests)
        findings = run_suite(rows, key, audit, seed, replicates)
        progress.advance(bar)

    config = scorer.predictor.run.config
    if trained_on != card:
        warnings.append(f"the run was trained on data {trained_on}, this is {card}")
    failed = [finding for finding in findings if finding.passed is False]
    warnings += [f"{f.test} failed: {f.note or f.figures}" for f in failed]
    headline = names[0]
    result = Evaluation(
        summary="".join(f"NOT TO BE TRUSTED, {f.test} failed: " for f in failed[:1])
        + _summary(config.recipe, prepared, split, headline, model, table, intervals or {}),
        recipe=config.recipe,
        model_id=config.model_id,
        data_card_id=card,
        trained_on=trained_on,
        split=split,
        groups=_groups(model[headline]),
        model=model,
        baselines=table,
        intervals=intervals or {},
        oracle=oracle,
        oracle_gap=gaps,
        counts=counts,
        left_out=_left_out(scores) if baselines else {},
        findings=findings,
        anchors=anchors_of(prepared.dataset.card.dataset),
        unknown=dict(scorer.predictor.unknown),
        warnings=warnings,
        seed=seed,
        replicates=replicates,
    )
    # The run's own results stay; `compare` takes the folder of the others like a run.
    folder = Path(run) if trained_on == card else Path(run) / "other" / card
    rows.write_parquet(folder / "scores" / f"{split}.parquet")
    write_text(folder / "metrics.json", result.model_dump_json(indent=1) + "\n")
    return result


def group_key(data: Prepared) -> Key:
    """The key to group by; sessions have no column of their own and count as users."""
    return "impression" if data.dataset.card.group_key == "impression" else "user"


def default_metrics(rows: ScoredRows, key: Key) -> list[str]:
    """The headline first; probability metrics where the model gives probabilities."""
    names = [f"{base}@{key}" for base in ("gauc_mean", "gauc_weighted")]
    names += ["auc", *(f"{base}@{key}" for base in ("mrr", "ndcg@5", "ndcg@10", "hr@10~slate"))]
    if rows.p_click is not None:
        names += ["logloss", "ne", "ece", "calib_ratio"]
    if rows.p_order is not None and 0 < rows.order.sum() < len(rows):
        names.append("auc_ctcvr")
        ordered = rows.order[rows.click == 1]
        if rows.p_click is not None and 0 < ordered.sum() < ordered.size:
            names.append("auc_cvr")
    return names


def _item_vectors(scorer: SplitScorer, data: Prepared) -> npt.NDArray[np.float32] | None:
    """[2 + items, D] the first vector field of the run, by item row of the data set."""
    catalogue = scorer.predictor.run.catalogue
    if not catalogue.vectors:
        return None
    rows = np.concatenate([np.arange(FIRST), catalogue.rows(data.item_ids.to_pylist())])
    return next(iter(catalogue.vectors.values()))[rows]


def _tried(compute: Callable[[], T], warnings: list[str]) -> T | None:
    """What `compute` gives; on too little data, None and a warning."""
    try:
        return compute()
    except MetricError as error:
        warnings.append(str(error))
        return None


def _oracle(
    data: Prepared,
    split: str,
    rows: ScoredRows,
    scores: Scores,
    names: Sequence[str],
    seed: int,
    replicates: int,
    warnings: list[str],
) -> tuple[dict[str, MetricValue], dict[str, GapShare]]:
    """Metrics of the planted truth, and the gap shares of the headline."""
    truth = oracle_scores(data, split)
    if truth is None:
        return {}, {}
    values = baseline_metrics(rows, {"oracle": truth}, names)["oracle"]
    shares = {
        name: _tried(
            partial(
                gap_share,
                {seed: rows},
                scores[name],
                truth,
                names[0],
                seed=seed,
                replicates=replicates,
            ),
            warnings,
        )
        for name in _GAP_FROM
        if name in scores
    }
    gaps = {name: share for name, share in shares.items() if share is not None}
    return values, gaps


def audit_of(
    data: Prepared,
    scorer: SplitScorer,
    scores: Scores,
    counts: Counts = "frozen",
    leak_tests: bool = True,
) -> Audit:
    """What the suite may look at; tests that need another training are left to the benchmarks.

    scores: [N] of each baseline on the rows of `scorer`, `counts` as they were computed with.
    leak_tests: also what needs the model to score again.
    """
    log = data.impressions
    chosen = scorer.impressions
    flat = log.rows(chosen)
    first = np.repeat(log.offsets[chosen], np.diff(log.offsets)[chosen])
    place = np.where(log.position[flat] >= 0, log.position[flat], flat - first)
    ts = np.repeat(log.ts[chosen], np.diff(log.offsets)[chosen])
    times = None
    if not (ts == UNKNOWN_TS).any():
        times = {"history": scorer.newest_event(data)}
        if counts == "frozen":
            last = log.ts[log.of("train")].max(initial=UNKNOWN_TS)
            times["item counts"] = np.full(ts.size, last)
    train = log.of("train")
    items = np.unique(log.item[log.rows(train)])
    items = items[items >= FIRST] - FIRST
    alone = {name: s for name, s in scores.items() if name != "random" and name not in GBDT}
    return Audit(
        scorer=scorer if leak_tests else None,
        history_lengths=scorer.history_lengths() if leak_tests else None,
        position=place,
        list_is_ours=data.dataset.manifest.candidates == "built",
        impression_time=ts if times else None,
        feature_times=times,
        features={**alone, "position": place},
        columns=data.codec.names,
        train_ids=(
            log.ids.take(train).to_pylist(),
            data.item_ids.take(items).to_pylist(),
            data.histories.users.take(np.unique(log.user[train])).to_pylist(),
        ),
    )


def _groups(value: MetricValue) -> dict[str, str | int]:
    fields = ("key", "n_rows", "n_groups", "n_used")
    dropped = ("dropped_all_positive", "dropped_all_negative", "dropped_empty")
    return {name: getattr(value, name) for name in (*fields, *dropped)}


def _left_out(scores: Scores) -> dict[str, str]:
    optional = [name for name in NAMES if name not in scores and name in NEEDS]
    return {name: f"needs {NEEDS[name]}" for name in optional}


def _summary(
    recipe: str,
    data: Prepared,
    split: str,
    headline: str,
    model: dict[str, MetricValue],
    table: dict[str, dict[str, MetricValue]],
    intervals: dict[str, dict[str, Interval]],
) -> str:
    """The first sentence of every report."""
    own = model[headline].value
    text = f"{recipe} reaches {headline} {own:.4f} on {split} of {data.dataset.card.dataset}"
    found = {name: table[name] for name in GBDT if name in table}
    trees = {name: values[headline].value for name, values in found.items() if headline in values}
    if not trees:
        return f"{text}; no GBDT baseline was computed."
    higher = parse(headline).higher_is_better is not False
    best = (max if higher else min)(trees, key=lambda name: trees[name])
    ahead = own > trees[best] if higher else own < trees[best]
    side = ("above" if ahead else "below") if higher else ("better than" if ahead else "worse than")
    text = f"{text}, {side} the 8-feature GBDT ({best} {trees[best]:.4f}"
    interval = intervals.get(best, {}).get(headline)
    if interval is not None:
        sure = "" if interval.excludes_zero() else "; no difference shown"
        bounds = f"[{interval.low:+.4f}, {interval.high:+.4f}]"
        text = f"{text}, difference {interval.delta:+.4f} {bounds} over users{sure}"
    every = {name: values[headline].value for name, values in table.items() if headline in values}
    first = (max if higher else min)(every, key=lambda name: every[name])
    rival = "" if first in GBDT else f" The best baseline is {first}, {every[first]:.4f}."
    return f"{text}).{rival}"
