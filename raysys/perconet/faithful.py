"""Deletion faithfulness: do the clicks behind an explanation matter more than others? (§6.10)"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysys.data.batch import Batch
from raysys.perconet.ranker import Perconet

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_DRAWS = 8
_NEAR = 5  # a random click is one of so many nearest in recency


@dataclass(frozen=True)
class Deletion:
    """request [n]: whose clicked candidate it is; effect [n]: how much more its score falls
    without the clicks that support its top entities than without as many others, mean over draws;
    skipped: clicked candidates without an entity that adds, or without enough other clicks."""

    request: Ints
    effect: Floats
    skipped: int


def deletion(
    model: Perconet, batch: Batch, seed: int, draws: int = _DRAWS, entities: int = 1
) -> Deletion:
    """The effect on every clicked candidate of a batch; the model is frozen.

    entities: how many of those that add most lose their clicks. The other clicks are drawn for
    each supporting one among the five nearest in recency.
    """
    assert batch.clicks is not None
    request, column = torch.nonzero((batch.clicks > 0) & batch.candidate_mask, as_tuple=True)
    one = _columns(batch, request, column)
    with torch.inference_mode():
        parts = model.parts(one)
        support = model.support(one, parts.persona) > 0
        value, top = parts.entities[:, 0].topk(min(entities, parts.entities.shape[2]))
    length = one.history_mask.shape[1]
    behind = torch.zeros(len(one), length, dtype=torch.bool)
    chosen_ones = support[torch.arange(len(one)).unsqueeze(1), top] & (value > 0).unsqueeze(-1)
    behind[:, : support.shape[2]] = chosen_ones.any(1)
    real = one.history_mask.numpy()
    enough = (real & ~behind.numpy()).sum(1) >= behind.numpy().sum(1)
    usable = np.flatnonzero(enough & behind.any(1).numpy())
    if len(usable) == 0:
        return Deletion(np.zeros(0, np.int64), np.zeros(0), len(one))
    chosen = torch.from_numpy(usable)
    some, dropped = _rows(one, chosen), behind[chosen]
    effect = np.zeros(len(usable))
    without = _score(model, _without(some, dropped))
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        other = torch.from_numpy(_matched(rng, dropped.numpy(), some.history_mask.numpy()))
        effect += _score(model, _without(some, other)) - without
    return Deletion(request[chosen].numpy(), effect / draws, len(one) - len(usable))


def _score(model: Perconet, batch: Batch) -> Floats:
    with torch.inference_mode():
        found: Floats = model(batch).score[:, 0].double().numpy()
    return found


def _matched(
    rng: np.random.Generator, behind: npt.NDArray[np.bool_], real: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """As many clicks of each row [n, L] as it has supporting ones, none of these, each drawn near
    one of them."""
    out = np.zeros_like(behind)
    for row in range(len(behind)):
        free = list(np.flatnonzero(real[row] & ~behind[row]))
        for place in rng.permutation(np.flatnonzero(behind[row])):
            free.sort(key=lambda other: (abs(int(other) - int(place)), other))
            out[row, free.pop(int(rng.integers(min(_NEAR, len(free)))))] = True
    return out


def _without(batch: Batch, dropped: Tensor) -> Batch:
    """The histories without some clicks [B, L]; those behind move up."""
    keep = batch.history_mask & ~dropped
    order = (~keep).to(torch.int8).argsort(dim=1, stable=True)
    keep = keep.gather(1, order)

    def moved(values: Tensor) -> Tensor:
        return values.gather(1, order) * keep

    return replace(
        batch,
        history_items=moved(batch.history_items),
        history_mask=keep,
        history_behaviour=moved(batch.history_behaviour),
        history_age_s=moved(batch.history_age_s),
        history_context=torch.zeros_like(batch.history_context),
        history_length=keep.sum(1),
    )


def _rows(batch: Batch, rows: Tensor) -> Batch:
    values = {name: value for name, value in vars(batch).items() if value is not None}
    return Batch(**{name: value[rows] for name, value in values.items()})


def _columns(batch: Batch, request: Tensor, column: Tensor) -> Batch:
    """One request for each (request, column), with that candidate alone."""
    some = _rows(batch, request)
    place = column.unsqueeze(1)
    return replace(
        some,
        candidates=some.candidates.gather(1, place),
        candidate_mask=some.candidate_mask.gather(1, place),
        clicks=None,
        orders=None,
    )
