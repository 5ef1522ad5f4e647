"""Are the explanations of PerCoNet faithful: does deletion hurt where they point? (§6.10)"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.data.prepared import Prepared
from raysys.data.sampling import pointers_of
from raysys.metrics.bootstrap import paired_bootstrap, sums_by_user
from raysys.metrics.routing import stable_hash
from raysys.perconet.faithful import deletion
from raysys.perconet.ranker import Perconet
from raysys.recipes.split_scorer import SplitScorer

_AT_ONCE = 256


@dataclass(frozen=True)
class Tested:
    """The runs of one fold, a run a seed."""

    data: Prepared
    runs: Sequence[Path]


def faithfulness(folds: Sequence[Tested], users: int, replicates: int) -> dict[str, Any]:
    """By how much more the score of a clicked candidate falls without the clicks behind its top
    entity than without as many others; mean over runs and folds, interval over users.

    None of the figures where no clicked candidate has an entity with clicks behind it.
    """
    measured = [
        _measured(fold.data, run, seed, users)
        for fold in folds
        for seed, run in enumerate(fold.runs)
    ]
    runs = len(folds[0].runs)
    user, place = np.unique(np.concatenate([found.user for found in measured]), return_inverse=True)
    total = np.zeros((len(user), 2))
    np.add.at(total, place, np.concatenate([found.sums for found in measured]))
    some = total[:, 1] > 0
    figures: dict[str, Any] = {
        "candidates": int(total[:, 1].sum() / runs),
        "skipped": sum(found.skipped for found in measured) // runs,
    }
    if not some.any():
        return figures
    interval = paired_bootstrap(user[some], total[some, 0], total[some, 1], replicates=replicates)
    return {
        **figures,
        "effect": interval.delta,
        "users": [interval.low, interval.high],
        "holds": interval.low > 0,
    }


@dataclass(frozen=True)
class _Measured:
    """user: [U] hashes. sums: [U, 2] Σ of the effect and how many candidates."""

    user: npt.NDArray[np.uint64]
    sums: npt.NDArray[np.float64]
    skipped: int


def _measured(data: Prepared, run: Path, seed: int, users: int) -> _Measured:
    log = data.impressions
    names = data.histories.users.to_numpy(zero_copy_only=False)
    total, skipped = np.zeros((len(names), 2)), 0
    scorer = SplitScorer.of(str(run), data, "test", lambda n: None, users)
    model = scorer.predictor.model
    assert isinstance(model, Perconet)
    collate = model.collator(scorer.predictor.histories, scorer.predictor.codec)
    for begin in range(0, len(scorer.impressions), _AT_ONCE):
        chosen = scorer.impressions[begin : begin + _AT_ONCE]
        found = deletion(model, collate(pointers_of(data, chosen)), seed=seed)
        user = log.user[chosen[found.request]]
        total += sums_by_user(user, len(names), found.effect, np.ones(len(user)))
        skipped += found.skipped
    return _Measured(stable_hash(names), total, skipped)
