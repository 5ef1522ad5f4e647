"""Leak and sanity tests that belong to every benchmark, over any protocol.

A protocol is the scored test rows plus, for some tests, a scorer, a way to retrain, feature
columns or times. Each test returns a named `Finding`; `raysys.metrics.suite` runs them together.
N test rows, M training rows, U test users.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from raysys.errors import MetricError
from raysys.metrics import ranking
from raysys.metrics.blocks import Floats, Ints, TieBlocks, check_scores, tie_blocks
from raysys.metrics.bootstrap import REPLICATES, paired_bootstrap, sums_by_user
from raysys.metrics.names import Key
from raysys.metrics.routing import hash_ids
from raysys.metrics.scored import ScoredRows

FUTURE_COLUMNS = frozenset(
    {
        "next_read_time",
        "next_scroll_percentage",
        "total_inviews",
        "total_pageviews",
        "total_read_time",
    }
)
POSITION_LIMIT = 0.55
FEATURE_LIMIT = 0.9
SAME = 1e-9
# Float32 sums over another batch move a score by about 1e-7 of the largest; that swaps near ties
# of an untrained model. Whatever depends on the order on purpose moves scores by far more.
FLOAT_NOISE = 1e-6


class Finding(BaseModel):
    """`passed` is None for what is only printed, or could not be run (then `note` says why)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test: str
    passed: bool | None
    figures: dict[str, float] = {}
    note: str = ""


class Scorer(Protocol):
    """Scores test rows exactly as the evaluation does."""

    def __call__(self, rows: Ints, history_of: Ints | None) -> ArrayLike:
        """rows: [n] indices into the N test rows, in any order -> [n] scores.

        history_of: [U] the user (code of `ScoredRows.user`) whose history each user is given;
        None for everyone's own.
        """
        ...


class TrainAndScore(Protocol):
    """Trains from scratch on other labels and scores the test rows."""

    def __call__(self, labels: Ints) -> ArrayLike:
        """labels: [M] for the training rows -> [N] test scores."""
        ...


def gauc(rows: ScoredRows, score: ArrayLike, key: Key) -> tuple[float, float, TieBlocks]:
    """(mean AUC over groups, its standard error, tie blocks) of other scores on these rows."""
    ids = rows.ids(key)
    blocks = tie_blocks(score, rows.click, ids.codes, len(ids.values))
    values = ranking.auc(blocks)
    values = values[~np.isnan(values)]
    if values.size < 2:
        raise MetricError(f"a leak test needs at least 2 groups ({key}) that hold both labels")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)), blocks


def random_scorer(rows: ScoredRows, key: Key, seed: int = 0) -> Finding:
    """Random scores: gauc 0.5, nDCG and MRR at the analytic expectation, all within 3 SE."""
    scores = np.random.default_rng(seed).random(len(rows))
    mean, error, blocks = gauc(rows, scores, key)
    # A constant scorer's value is the exact expectation over random orders.
    constant = gauc(rows, np.zeros(len(rows)), key)[2]
    figures = {"gauc": mean, "gauc_se": error}
    passed = abs(mean - 0.5) <= 3 * error + SAME
    tests: dict[str, Callable[[TieBlocks], Floats]] = {
        "mrr": ranking.mrr,
        "ndcg@10": lambda b: ranking.ndcg(b, 10),
    }
    for name, function in tests.items():
        got, expected = function(blocks), function(constant)
        used = ~np.isnan(got)
        excess = got[used] - expected[used]
        figures |= {name: float(got[used].mean()), f"{name}_expected": float(expected[used].mean())}
        limit = 3 * float(excess.std(ddof=1)) / np.sqrt(excess.size) + SAME
        passed &= abs(float(excess.mean())) <= limit
    return Finding(test="random_scorer", passed=passed, figures=figures)


def label_oracle(rows: ScoredRows, key: Key) -> Finding:
    """The labels as scores give 1, the inverted labels 0."""
    best, worst = gauc(rows, rows.click, key)[0], gauc(rows, -rows.click, key)[0]
    return Finding(
        test="label_oracle",
        passed=best == 1.0 and worst == 0.0,
        figures={"gauc": best, "gauc_inverted": worst},
    )


def shuffle_labels(
    labels: ArrayLike, groups: ArrayLike, seed: int = 0, within_groups: bool = True
) -> Ints:
    """Labels [M] permuted within their groups [M]; over all rows if every group is one row."""
    label, group = np.asarray(labels, dtype=np.int64), np.asarray(groups)
    rng = np.random.default_rng(seed)
    code = np.unique(group, return_inverse=True)[1]
    if not within_groups or label.size == np.max(code, initial=-1) + 1:
        return rng.permutation(label)
    shuffled = np.empty_like(label)
    shuffled[np.argsort(code, kind="stable")] = label[np.lexsort((rng.random(label.size), code))]
    return shuffled


def shuffled_labels(
    rows: ScoredRows,
    key: Key,
    train_and_score: TrainAndScore,
    train_labels: ArrayLike,
    train_groups: ArrayLike,
    untrained: ArrayLike | None = None,
    seed: int = 0,
    repeats: int = 1,
    within_groups: bool = True,
) -> Finding:
    """Trained on shuffled labels, gauc is 0.5 within 3 SE, or no better than untrained scores.

    A model of few parameters learns some direction by chance and then ranks far from 0.5 either
    way; with `repeats` > 1 the spread over shuffles enters the standard error. Where slates hold
    several clicks, a shuffle within groups keeps how many, and a pointwise model can learn from
    that what good slates are made of: shuffle over all rows there (`within_groups` False).
    """
    shuffles = (
        shuffle_labels(train_labels, train_groups, seed + i, within_groups) for i in range(repeats)
    )
    draws = [gauc(rows, train_and_score(labels), key) for labels in shuffles]
    means = np.array([draw[0] for draw in draws])
    mean, error = float(means.mean()), float(np.mean([draw[1] for draw in draws]))
    if repeats > 1:
        error = float(np.hypot(error, means.std(ddof=1) / np.sqrt(repeats)))
    figures = {"gauc": mean, "gauc_se": error, "repeats": float(repeats)}
    passed = abs(mean - 0.5) <= 3 * error + SAME
    if untrained is not None:
        before, before_error, _ = gauc(rows, untrained, key)
        figures["gauc_untrained"] = before
        ranks_already = before > 0.5 + 3 * before_error
        passed = passed or (ranks_already and mean <= before + 3 * error)
    return Finding(
        test="shuffled_labels",
        passed=passed,
        figures=figures,
        note="pooled auc may stay above 0.5: base rates survive the shuffle",
    )


def shuffle_histories(lengths: ArrayLike, seed: int = 0) -> Ints:
    """lengths: [U] history length -> [U] the user whose history each one gets.

    Another user of the same length bin (powers of two); a user alone in a bin keeps its own.
    """
    bins = np.floor(np.log2(np.maximum(np.asarray(lengths, dtype=np.float64), 0.5)))
    noise = np.random.default_rng(seed).random(bins.size)
    order = np.lexsort((noise, bins))
    starts = np.flatnonzero(np.concatenate(([True], np.diff(bins[order]) != 0)))[: bins.size]
    # A turn by one place within each bin leaves no one at home.
    following = np.arange(1, bins.size + 1)
    following[np.append(starts[1:], bins.size)[: starts.size] - 1] = starts
    other = np.empty(bins.size, dtype=np.int64)
    other[order] = order[following]
    return other


def shuffled_history(
    rows: ScoredRows,
    key: Key,
    scorer: Scorer,
    history_lengths: ArrayLike,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Finding:
    """With another user's history gauc falls, and the user interval of the fall excludes 0."""
    every = np.arange(len(rows))
    own = gauc(rows, scorer(every, None), key)
    other = gauc(rows, scorer(every, shuffle_histories(history_lengths, seed)), key)
    fall = ranking.auc(own[2]) - ranking.auc(other[2])
    used = ~np.isnan(fall)
    user = np.zeros(fall.size, dtype=np.int64)
    user[rows.ids(key).codes] = rows.user.codes
    users = hash_ids(rows.user.values)
    columns = sums_by_user(user[used], users.size, fall[used], np.ones(int(used.sum())))
    interval = paired_bootstrap(users, columns[:, 0], columns[:, 1], seed, replicates)
    return Finding(
        test="shuffled_history",
        passed=interval.low > 0,
        figures={
            "gauc": own[0],
            "gauc_shuffled": other[0],
            "fall_low": interval.low,
            "fall_high": interval.high,
        },
        note="" if interval.low > 0 else "the history is unused, or the negatives leak",
    )


def candidate_permutation(rows: ScoredRows, key: Key, scorer: Scorer, seed: int = 0) -> Finding:
    """Rows handed to the scorer in another order give identical metrics, or identical scores but
    for the noise of float32."""
    every = np.arange(len(rows))
    order = np.random.default_rng(seed).permutation(len(rows))
    back = np.empty(len(rows))
    back[order] = np.asarray(scorer(order, None), dtype=np.float64)
    straight = np.asarray(scorer(every, None), dtype=np.float64)
    difference = abs(gauc(rows, straight, key)[0] - gauc(rows, back, key)[0])
    moved = float(np.abs(straight - back).max(initial=0.0))
    noise = FLOAT_NOISE * float(np.abs(straight).max(initial=0.0))
    return Finding(
        test="candidate_permutation",
        passed=difference <= SAME or moved <= noise,
        figures={"gauc_difference": difference, "score_difference": moved},
    )


def list_position(rows: ScoredRows, key: Key, position: ArrayLike, list_is_ours: bool) -> Finding:
    """A scorer that knows the place in the list only; position: [N].

    Above 0.55 (in either direction) fails where our importer built the list. On logged lists it
    is the position bias of the log, printed, and position may be a training-only feature.
    """
    first = gauc(rows, -np.asarray(position, dtype=np.float64), key)[0]
    if not list_is_ours:
        note = "position bias of the logged lists; position is a training-only feature"
        return Finding(test="list_position", passed=None, figures={"gauc": first}, note=note)
    return Finding(
        test="list_position",
        passed=max(first, 1.0 - first) <= POSITION_LIMIT,
        figures={"gauc": first},
    )


def time_audit(
    impression_time: NDArray[np.int64], feature_times: Mapping[str, NDArray[np.int64]]
) -> Finding:
    """No feature, popularity, document-frequency or persona time at or after its impression.

    impression_time: [N] µs; feature_times: by name, [N] µs of the newest fact that went in.
    """
    late = {
        name: int((times >= impression_time).sum()) for name, times in sorted(feature_times.items())
    }
    worst = [name for name, count in late.items() if count]
    return Finding(
        test="time_audit",
        passed=not worst,
        figures={name: float(count) for name, count in late.items()},
        note=f"facts from the impression's future in: {', '.join(worst)}" if worst else "",
    )


def future_columns(columns: Iterable[str]) -> Finding:
    """Columns that EB-NeRD logs after the impression may not be features."""
    barred = sorted(FUTURE_COLUMNS.intersection(columns))
    return Finding(
        test="future_columns",
        passed=not barred,
        figures={"barred": float(len(barred))},
        note=f"known only after the impression: {', '.join(barred)}" if barred else "",
    )


def single_feature_scan(rows: ScoredRows, key: Key, features: Mapping[str, ArrayLike]) -> Finding:
    """No single feature ranks, in either direction, with gauc above 0.9. features: [N] each."""
    found = {}
    for name, values in sorted(features.items()):
        check_scores(np.asarray(values, dtype=np.float64), f"feature {name!r}")
        found[name] = gauc(rows, values, key)[0]
    leaking = [name for name, value in found.items() if max(value, 1 - value) > FEATURE_LIMIT]
    return Finding(
        test="single_feature_scan",
        passed=not leaking,
        figures=found,
        note=(
            f"{', '.join(leaking)} alone nearly decides the click: look for events that belong to "
            "the choice itself in the history, or negatives that are told apart by how they were "
            "drawn"
            if leaking
            else ""
        ),
    )


def overlap(
    rows: ScoredRows,
    train_impressions: Iterable[str],
    train_items: Iterable[str],
    train_users: Iterable[str],
) -> Finding:
    """No test impression in training; how many test items and users were seen is printed."""
    figures = {}
    for name, ids, known in (
        ("impressions", rows.impression, set(train_impressions)),
        ("items", rows.item, set(train_items)),
        ("users", rows.user, set(train_users)),
    ):
        figures[name] = float(len(ids.values))
        figures[f"{name}_shared"] = float(sum(i in known for i in ids.values.to_pylist()))
    return Finding(test="overlap", passed=not figures["impressions_shared"], figures=figures)
