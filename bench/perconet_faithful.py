"""Are the explanations of PerCoNet faithful: does deletion hurt where they point? (§6.10)"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysys.data.prepared import Prepared
from raysys.data.sampling import pointers_of
from raysys.metrics.bootstrap import paired_bootstrap, sums_by_user
from raysys.metrics.routing import stable_hash
from raysys.perconet.faithful import deletion
from raysys.perconet.ranker import Perconet
from raysys.recipes.split_scorer import SplitScorer

_AT_ONCE = 256


def faithfulness(
    data: Prepared, runs: Sequence[Path], users: int, replicates: int
) -> dict[str, Any]:
    """By how much more the score of a clicked candidate falls without the clicks behind its top
    entity than without as many others; mean over runs, interval over users.

    None of the figures where no clicked candidate has an entity with clicks behind it.
    """
    log = data.impressions
    names = data.histories.users.to_numpy(zero_copy_only=False)
    total = np.zeros((len(names), 2))
    skipped = 0
    for number, run in enumerate(runs):
        scorer = SplitScorer.of(str(run), data, "test", lambda n: None, users)
        model = scorer.predictor.model
        assert isinstance(model, Perconet)
        collate = model.collator(scorer.predictor.histories, scorer.predictor.codec)
        for begin in range(0, len(scorer.impressions), _AT_ONCE):
            chosen = scorer.impressions[begin : begin + _AT_ONCE]
            found = deletion(model, collate(pointers_of(log, chosen, data.codec)), seed=number)
            user = log.user[chosen[found.request]]
            total += sums_by_user(user, len(names), found.effect, np.ones(len(user)))
            skipped += found.skipped
    some = total[:, 1] > 0
    figures: dict[str, Any] = {
        "candidates": int(total[:, 1].sum() / len(runs)),
        "skipped": skipped // len(runs),
    }
    if not some.any():
        return figures
    interval = paired_bootstrap(
        stable_hash(names[some]), total[some, 0], total[some, 1], replicates=replicates
    )
    return {
        **figures,
        "effect": interval.delta,
        "users": [interval.low, interval.high],
        "holds": interval.low > 0,
    }
