"""The one `Batch` type: B requests with their candidates and events of their history."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysys.data.contexts import ContextCodec
from raysys.data.feature_table import DatedFeature
from raysys.data.histories import Histories


@dataclass(frozen=True)
class Batch:
    """B requests. Item values are rows of the catalogue: 0 padding, 1 unknown, 2.. items.

    context [B, F] int64 codes of the request;
    history_items [B, L] int64, newest first; history_mask [B, L] bool, True = real;
    history_context [B, L, F] int64; history_behaviour [B, L] int64;
    history_age_s [B, L] float32 seconds; history_length [B] int64 before the choice of L;
    candidates [B, C] int64; candidate_mask [B, C] bool, True = real;
    clicks, orders [B, C] float32 labels, None when scoring;
    owner [B] int64: where in the histories those of the user begin, the same for all requests of
    a user; None where nobody asks;
    hidden [B, H] int64: rows, in the model's own table of entities, of those that must not count
    for the request, 0 padding; None where nobody hides any;
    dated [B, W] float32: what dated tables say of the user, NaN where they say nothing; None for a
    model that reads none.
    """

    context: Tensor
    history_items: Tensor
    history_mask: Tensor
    history_context: Tensor
    history_behaviour: Tensor
    history_age_s: Tensor
    history_length: Tensor
    candidates: Tensor
    candidate_mask: Tensor
    clicks: Tensor | None = None
    orders: Tensor | None = None
    owner: Tensor | None = None
    hidden: Tensor | None = None
    dated: Tensor | None = None

    def __len__(self) -> int:
        """B."""
        return self.candidates.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def slice(self, start: int, stop: int) -> "Batch":
        """Requests start:stop."""
        return self._map(lambda tensor: tensor[start:stop])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            changed[field.name] = None if value is None else change(value)
        return Batch(**changed)


@dataclass(frozen=True)
class Pointers:
    """B requests before gathering: where their histories lie and what is to be ranked.

    start, end, ts [B] int64; context [B, F] int codes of `codec`; candidates [B, C] item rows,
    0 where padded; clicks, orders [B, C] or None; draw [B] int64, a random number of each request
    in this epoch of training, None elsewhere; users: ids [B]; days [B] int64, of local time since
    1970, see `local_day`; only dated features need those two.
    """

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    ts: npt.NDArray[np.int64]
    context: npt.NDArray[np.int32]
    codec: ContextCodec
    candidates: npt.NDArray[np.int64]
    clicks: npt.NDArray[np.float32] | None = None
    orders: npt.NDArray[np.float32] | None = None
    draw: npt.NDArray[np.int64] | None = None
    users: Sequence[str] | None = None
    days: npt.NDArray[np.int64] | None = None


class Selector(Protocol):
    """Chooses, for all candidates of a request alike, the past events a model is shown."""

    def rows(self, pointers: Pointers, histories: Histories) -> npt.NDArray[np.int64]:
        """Event rows [B, K] of `histories`, all inside [start, end) of their request.

        Newest first, none twice, −1 behind the last; K may differ from batch to batch. What is
        chosen for a request depends on nothing but the request and its events before `end`.
        """


class Collator:
    """Gathers histories and translates context codes to a model's vocabulary.

    Args:
        histories: where the pointers point.
        codec: the model's context features.
        length: L, the longest window to gather; 0 gathers none.
        selector: chooses the events instead; without it they are the newest `length`.
        dated: features of users, looked up by the day of the request.
    """

    def __init__(
        self,
        histories: Histories,
        codec: ContextCodec,
        length: int,
        selector: Selector | None = None,
        dated: Sequence[DatedFeature] = (),
    ) -> None:
        self.histories = histories
        self.codec = codec
        self.length = length
        self.selector = selector
        self.dated = dated
        self._past = codec.translator(histories.codec)
        # Requests come from one or two codecs for the life of a collator.
        self._present = lru_cache(maxsize=4)(codec.translator)

    def over(self, codec: ContextCodec) -> "Collator":
        """The same histories and events with other vocabularies."""
        return Collator(self.histories, codec, self.length, self.selector, self.dated)

    def rows(self, pointers: Pointers) -> npt.NDArray[np.int64]:
        """Event rows [B, L] behind the history of the batch, −1 where padded."""
        if self.selector is not None:
            return self.selector.rows(pointers, self.histories)
        return self.histories.newest(pointers.start, pointers.end, self.length)

    def __call__(self, pointers: Pointers) -> Batch:
        """Make the batch; its window is as wide as its longest list of events needs."""
        length = pointers.end - pointers.start
        window = self.histories.gather(self.rows(pointers), length, pointers.ts)
        tensor = torch.from_numpy
        # Padding keeps code 0 in every feature, so that masked slots carry nothing.
        context = self._present(pointers.codec)(pointers.context)
        clicks, orders = pointers.clicks, pointers.orders
        return Batch(
            context=tensor(context),
            history_items=tensor(window.items),
            history_mask=tensor(window.mask),
            history_context=tensor(self._past(window.context)),
            history_behaviour=tensor(window.behaviour),
            history_age_s=tensor(window.age_s),
            history_length=tensor(window.length),
            candidates=tensor(pointers.candidates),
            candidate_mask=tensor(pointers.candidates != 0),
            clicks=None if clicks is None else tensor(clicks),
            orders=None if orders is None else tensor(orders),
            owner=tensor(pointers.start),
            dated=tensor(self._known(pointers)) if self.dated else None,
        )

    def _known(self, pointers: Pointers) -> npt.NDArray[np.float32]:
        users, days = pointers.users, pointers.days
        assert users is not None
        assert days is not None
        return np.concatenate([feature.at(users, days) for feature in self.dated], 1)


def pad_rows(
    values: npt.NDArray[Any], counts: npt.NDArray[np.int64], fill: float = 0
) -> npt.NDArray[Any]:
    """Ragged rows, concatenated [sum(counts)], as a padded array [B, max(counts)]."""
    width = int(counts.max(initial=1))
    out = np.full((len(counts), width), fill, values.dtype)
    out[np.arange(width) < counts[:, None]] = values
    return out
