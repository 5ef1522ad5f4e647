"""All leak and sanity tests of one protocol in one call."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysys.errors import MetricError
from raysys.metrics import leaks
from raysys.metrics.bootstrap import REPLICATES
from raysys.metrics.leaks import Finding, Scorer, TrainAndScore
from raysys.metrics.names import Key
from raysys.metrics.scored import ScoredRows


@dataclass(frozen=True)
class Training:
    """How to train again: labels [M], groups [M], and the test scores [N] before any training.

    repeats, within_groups: how often and how to shuffle (see `leaks.shuffled_labels`).
    """

    train_and_score: TrainAndScore
    labels: ArrayLike
    groups: ArrayLike
    untrained: ArrayLike | None = None
    repeats: int = 1
    within_groups: bool = True


@dataclass(frozen=True)
class Audit:
    """What is known about the protocol beyond its scored rows; a test without its part is skipped.

    history_lengths: [U] in the order of `ScoredRows.user.values`. position: [N] place in the
    list, `list_is_ours` if an importer of ours built it. impression_time: [N] µs, feature_times:
    [N] µs of the newest fact in each feature. features: [N] each, columns: all feature names.
    train_ids: impression, item and user ids of the training part.
    """

    scorer: Scorer | None = None
    history_lengths: ArrayLike | None = None
    training: Training | None = None
    position: ArrayLike | None = None
    list_is_ours: bool = True
    impression_time: NDArray[np.int64] | None = None
    feature_times: Mapping[str, NDArray[np.int64]] | None = None
    features: Mapping[str, ArrayLike] | None = None
    columns: Iterable[str] | None = None
    train_ids: tuple[Iterable[str], Iterable[str], Iterable[str]] | None = None


def run_suite(
    rows: ScoredRows, key: Key, audit: Audit, seed: int = 0, replicates: int = REPLICATES
) -> list[Finding]:
    """One finding per test, in a fixed order; the protocol is clean if none has `passed` False.

    A test for which the rows are too few says so and leaves the others alone.
    """
    tests: list[tuple[str, str, tuple[Any, ...], Callable[..., Finding]]] = [
        ("random_scorer", "", (), lambda: leaks.random_scorer(rows, key, seed)),
        ("label_oracle", "", (), lambda: leaks.label_oracle(rows, key)),
        (
            "shuffled_labels",
            "a way to train again",
            (audit.training,),
            lambda t: leaks.shuffled_labels(
                rows, key, t.train_and_score, t.labels, t.groups, t.untrained, seed, t.repeats,
                t.within_groups,
            ),
        ),
        (
            "shuffled_history",
            "a scorer and history lengths",
            (audit.scorer, audit.history_lengths),
            lambda scorer, lengths: leaks.shuffled_history(
                rows, key, scorer, lengths, seed, replicates
            ),
        ),
        (
            "candidate_permutation",
            "a scorer",
            (audit.scorer,),
            lambda scorer: leaks.candidate_permutation(rows, key, scorer, seed),
        ),
        (
            "list_position",
            "list positions",
            (audit.position,),
            lambda position: leaks.list_position(rows, key, position, audit.list_is_ours),
        ),
        (
            "time_audit",
            "impression and feature times",
            (audit.impression_time, audit.feature_times),
            leaks.time_audit,
        ),
        ("future_columns", "feature names", (audit.columns,), leaks.future_columns),
        (
            "single_feature_scan",
            "feature columns",
            (audit.features,),
            lambda features: leaks.single_feature_scan(rows, key, features),
        ),
        (
            "overlap",
            "the ids of the training part",
            (audit.train_ids,),
            lambda ids: leaks.overlap(rows, *ids),
        ),
    ]  # fmt: skip
    return [_tried(*test) for test in tests]


def _tried(test: str, needs: str, parts: tuple[Any, ...], run: Callable[..., Finding]) -> Finding:
    if any(part is None for part in parts):
        return Finding(test=test, passed=None, note=f"not run: needs {needs}")
    try:
        return run(*parts)
    except MetricError as error:
        return Finding(test=test, passed=None, note=f"not run: {error}")
