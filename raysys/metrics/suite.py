"""All leak and sanity tests of one protocol in one call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    """One finding per test, in a fixed order; the protocol is clean if none has `passed` False."""
    findings = [leaks.random_scorer(rows, key, seed), leaks.label_oracle(rows, key)]

    if audit.training is None:
        findings.append(_skipped("shuffled_labels", "a way to train again"))
    else:
        t = audit.training
        train = (t.train_and_score, t.labels, t.groups, t.untrained)
        findings.append(leaks.shuffled_labels(rows, key, *train, seed, t.repeats, t.within_groups))
    if audit.scorer is None or audit.history_lengths is None:
        findings.append(_skipped("shuffled_history", "a scorer and history lengths"))
    else:
        findings.append(
            leaks.shuffled_history(rows, key, audit.scorer, audit.history_lengths, seed, replicates)
        )
    if audit.scorer is None:
        findings.append(_skipped("candidate_permutation", "a scorer"))
    else:
        findings.append(leaks.candidate_permutation(rows, key, audit.scorer, seed))
    if audit.position is None:
        findings.append(_skipped("list_position", "list positions"))
    else:
        findings.append(leaks.list_position(rows, key, audit.position, audit.list_is_ours))
    if audit.impression_time is None or audit.feature_times is None:
        findings.append(_skipped("time_audit", "impression and feature times"))
    else:
        findings.append(leaks.time_audit(audit.impression_time, audit.feature_times))
    if audit.columns is None:
        findings.append(_skipped("future_columns", "feature names"))
    else:
        findings.append(leaks.future_columns(audit.columns))
    if audit.features is None:
        findings.append(_skipped("single_feature_scan", "feature columns"))
    else:
        findings.append(leaks.single_feature_scan(rows, key, audit.features))
    if audit.train_ids is None:
        findings.append(_skipped("overlap", "the ids of the training part"))
    else:
        findings.append(leaks.overlap(rows, *audit.train_ids))
    return findings


def _skipped(test: str, needs: str) -> Finding:
    return Finding(test=test, passed=None, note=f"not run: needs {needs}")
