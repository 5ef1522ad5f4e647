"""Selectors: past events per request, whatever its candidates. See `raysys.data.batch.Selector`."""

from functools import lru_cache

import numpy as np

from raysys.ctr.retrievers.contexts import Assignment, Ints
from raysys.ctr.retrievers.draws import distinct, mixed
from raysys.ctr.retrievers.index import ContextIndex, Lists
from raysys.data.batch import Pointers
from raysys.data.contexts import ContextCodec
from raysys.data.histories import Histories


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


class ByContext:
    """The K newest events of contexts like the request's.

    Without an assignment, events with exactly the values of the request (exact-context). With
    one, also those of the contexts assigned to the request's; a context the assignment does not
    know is alike to itself only.

    Fewer than `least` events: the values need to agree in fewer features, the last one being
    given up first, until at least `least` are found; without any feature left, all events count.
    What was alike before stays so. The step taken is `depths`.

    Args:
        codec: the features in the order of their weight, see `chosen_features`.
        count: K.
        least: of which number of events on nothing is given up.
        assignment: contexts that count as alike; of the same features.
        shuffle: seed of a placebo in which events have contexts of other events, see
            `ContextIndex.build`.
    """

    def __init__(
        self,
        codec: ContextCodec,
        count: int,
        *,
        least: int = 1,
        assignment: Assignment | None = None,
        shuffle: int | None = None,
    ) -> None:
        if assignment is not None and assignment.codec != codec:
            raise ValueError("the assignment is made of other context features")
        self.codec = codec
        self.count = count
        self.least = least
        self.assignment = assignment
        self.shuffle = shuffle
        self._translator = lru_cache(maxsize=4)(codec.translator)
        self._index: tuple[Histories, ContextIndex] | None = None

    def rows(self, pointers: Pointers, histories: Histories) -> Ints:
        """See `Selector`."""
        index = self._index_of(histories)
        lists, agree, depth = self._agreement(index, pointers)
        chosen = lists.where(agree >= depth[lists.owner])
        return index.newest(chosen, len(depth), self.count)

    def depths(self, pointers: Pointers, histories: Histories) -> Ints:
        """How many features had to agree [B]: F + 1 where the assignment was followed, F where
        all values are the request's, 0 where the newest of all events were taken."""
        return self._agreement(self._index_of(histories), pointers)[2]

    def _index_of(self, histories: Histories) -> ContextIndex:
        # A collator gathers from one place only; the index is that place's.
        if self._index is None or self._index[0] is not histories:
            built = ContextIndex.build(histories, self.codec, self.shuffle)
            self._index = (histories, built)
        return self._index[1]

    def _agreement(self, index: ContextIndex, pointers: Pointers) -> tuple[Lists, Ints, Ints]:
        """The lists of the requests, the depth [X] up to which each agrees, and the depth [B]
        that is asked for."""
        asked = self._translator(pointers.codec)(pointers.context)
        lists = index.lists(pointers.start, pointers.end)
        lived = index.context[lists.number]
        features = len(self.codec.features)
        deepest = features + (self.assignment is not None)
        agree = np.cumprod(lived == asked[lists.owner], axis=1, dtype=np.int64).sum(1)
        if self.assignment is not None:
            agree[self._alike(self.assignment, asked, lists, lived) | (agree == features)] = deepest
        size = np.bincount(
            lists.owner * (deepest + 1) + agree,
            lists.end - lists.begin,
            len(asked) * (deepest + 1),
        ).reshape(len(asked), deepest + 1)
        enough = np.cumsum(size[:, ::-1], axis=1)[:, ::-1] >= self.least
        enough[:, 0] = True
        return lists, agree, deepest - np.argmax(enough[:, ::-1], axis=1)

    @staticmethod
    def _alike(assignment: Assignment, asked: Ints, lists: Lists, lived: Ints) -> Ints:
        target = assignment.places(asked)[lists.owner]
        place = assignment.places(lived)
        known = (target >= 0) & (place >= 0)
        known[known] = assignment.similar[target[known], place[known]]
        return known
