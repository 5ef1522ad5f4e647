"""Selectors: past events per request, whatever its candidates. See `raysys.data.batch.Selector`."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from raysys.ctr.retrievers.alike import AlikeContexts
from raysys.ctr.retrievers.draws import distinct, earlier, mixed
from raysys.data.attribute_counts import CHUNK
from raysys.data.batch import Pointers
from raysys.data.context_index import ContextIndex, held_below, locate
from raysys.data.context_keys import ContextTable
from raysys.data.histories import Histories

Ints = npt.NDArray[np.int64]


class RandomEvents:
    """K events drawn from the whole history; the same request draws the same ones.

    The draw depends on the seed, the time of the request and the length of its history, so that
    a history sent with a request is treated like the same history stored.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed

    def rows(self, pointers: Pointers, histories: Histories) -> Ints:
        """See `Selector`."""
        size = pointers.end - pointers.start
        width = int(min(self.count, max(1, size.max(initial=0))))
        back = distinct(mixed(self.seed, pointers.ts, size), size, width)
        # Counted from the end; a pad sorts behind every event.
        return np.sort(np.where(back >= 0, pointers.end[:, None] - 1 - back, -1), 1)[:, ::-1]


@dataclass(frozen=True)
class _Indexed:
    """Histories by context; node [pairs] of each user's context where contexts are alike."""

    histories: Histories
    index: ContextIndex
    node: Ints | None


class ByContext:
    """K events of contexts like the request's, tier by tier, the newest of a tier first.

    Tier 0 are events in the request's very context, or in one that is alike to it. Where they
    are too few, the features of `table.drop` are given up one after another: tier l are the
    events that agree without the first l of them. Behind these, the last tier, comes all that
    is left.

    Args:
        table: the features that make a context, and in which order they are given up.
        count: K.
        least: a tier is opened where the tiers before it hold fewer events than this; None: K,
            so that a list is full whenever the history is long enough.
        strict: no tier but 0 is opened.
        alike: contexts that count as alike, of the same table; None: each to itself only.
        shuffle: seed of a placebo. Each event has the context of an event drawn at random from
            its user's first events up to itself, with replacement. Where a user's contexts do not
            change in the course of time, a context has as many events as before on average.
    """

    def __init__(
        self,
        table: ContextTable,
        count: int,
        *,
        least: int | None = None,
        strict: bool = False,
        alike: AlikeContexts | None = None,
        shuffle: int | None = None,
    ) -> None:
        self.table = table
        self.count = count
        self.least = least
        self.strict = strict
        self.alike = None if alike is None else alike.matrix
        self.shuffle = shuffle
        self._translator = lru_cache(maxsize=4)(table.codec.translator)
        self._indexed: _Indexed | None = None

    def rows(self, pointers: Pointers, histories: Histories) -> Ints:
        """See `Selector`."""
        return self.retrieve(pointers, histories)[0]

    def retrieve(self, pointers: Pointers, histories: Histories) -> tuple[Ints, Ints]:
        """Event rows and their tiers [B, K], −1 behind the last; K is what the fullest request
        needs."""
        held = self._index_of(histories)
        contexts = held.index.contexts(*locate(histories, pointers.start, pointers.end))
        asked = self.table.keys(self._translator(pointers.codec)(pointers.context))
        alike = None
        if self.alike is not None:
            assert held.node is not None
            near = self.table.nodes(asked)[contexts.request]
            alike = self.alike[near, held.node[contexts.pair]]
        tier = self.table.tiers(contexts.key, asked[contexts.request], alike, strict=self.strict)
        if self.least is not None:
            tier = np.where(held_below(contexts, tier) < self.least, tier, -1)
        positions, tiers = held.index.newest(contexts, tier, self.count)
        width = max(1, int((positions >= 0).any(0).sum()))
        positions, tiers = positions[:, :width], tiers[:, :width]
        return np.where(positions >= 0, positions + pointers.start[:, None], -1), tiers

    def _index_of(self, histories: Histories) -> _Indexed:
        # A collator gathers from one place only; the index is that place's.
        if self._indexed is None or self._indexed.histories is not histories:
            index = ContextIndex.build(np.asarray(histories.start), self._keys(histories))
            node = None if self.alike is None else self.table.nodes(index.key)
            self._indexed = _Indexed(histories, index, node)
        return self._indexed

    def _keys(self, histories: Histories) -> Ints:
        """The context key that each event counts with [N]."""
        translate = self._translator(histories.codec)
        size = len(histories.item)
        keys = np.empty(size, np.int64)
        for low in range(0, size, CHUNK):
            part = slice(low, low + CHUNK)
            keys[part] = self.table.keys(translate(histories.context[part]))
        if self.shuffle is None:
            return keys
        return keys[earlier(histories.start, self.shuffle)]
