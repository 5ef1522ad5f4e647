"""What PerCoNet knows before any weight is learned."""

import numpy as np
import numpy.typing as npt
import torch

from raysys.data.features import training_ends
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError
from raysys.news.entities import EntityTable
from raysys.perconet.config import PersonaOptions
from raysys.perconet.persona import Prominence
from raysys.perconet.placebo import Placebo

_DRAWN = 4096  # users whose clicks the placebo deals out
_AT_ONCE = 1024


def fit_placebo(data: Prepared, table: EntityTable, options: PersonaOptions) -> Placebo | None:
    """What the placebo of the options deals out; training-period clicks alone.

    Raises:
        ConfigError: nobody to shuffle with.
    """
    if options.placebo is None:
        return None
    clicks, owner = training_clicks(data, options.clicks)
    if options.placebo == "shuffled":
        if len(clicks) < 2:
            raise ConfigError("persona.placebo=shuffled needs two users with clicks in training")
        rng = np.random.default_rng(options.placebo_seed)
        some = np.sort(rng.permutation(len(clicks))[:_DRAWN])
        some = some[np.argsort((clicks[some] != 0).sum(1), kind="stable")]
        return Placebo(drawn=clicks[some], owner=owner[some])
    prominence = Prominence(options.model_copy(update={"placebo": None}))
    prominence.bind(table)
    total = np.zeros(1 + len(table))
    for begin in range(0, len(clicks), _AT_ONCE):
        rows = torch.from_numpy(clicks[begin : begin + _AT_ONCE])
        with torch.no_grad():
            found = prominence(rows, rows != 0)
        np.add.at(total, found.entities.numpy(), found.weight.numpy().astype(np.float64))
    total[0] = 0
    best = np.argsort(-total, kind="stable")[: options.size]
    best = best[total[best] > 0]
    weight = (total[best] / total[best].sum()).astype(np.float32)
    return Placebo(popular=best, popular_weight=weight)


def training_clicks(
    data: Prepared, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Catalogue rows [users, L] of the newest clicks of every user before the end of training,
    newest first, 0 behind the last, and where the history of each begins [users]; users without a
    click left out."""
    histories = data.histories
    start, end = histories.start[:-1], training_ends(data)
    chosen = np.flatnonzero(end > start)
    return histories.window(start[chosen], end[chosen], length).items, start[chosen]
