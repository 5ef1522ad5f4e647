"""Events by user and context: lists that are searched instead of scanned.

Built once for the histories of all users. What a request then costs depends on the number of
contexts its user has lived through and on K, and only logarithmically on the number of events.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raysys.ctr.retrievers.contexts import Ints, context_keys
from raysys.ctr.retrievers.draws import mixed
from raysys.data.batch import pad_rows
from raysys.data.contexts import ContextCodec
from raysys.data.histories import Histories

_ROWS_AT_ONCE = 2**20


class Lists(NamedTuple):
    """The lists of B requests, X in all: one for each context of each request's user.

    owner [X] the request, ascending; number [X] the list; begin, end [X]: where the events of
    the request's history lie in `ContextIndex.order`.
    """

    owner: Ints
    number: Ints
    begin: Ints
    end: Ints

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Lists":
        """Some of the lists."""
        return Lists(*(values[chosen] for values in self))


@dataclass(frozen=True)
class ContextIndex:
    """N events of U users in M lists, one per user and context.

    order [N] event rows by user, context, row; first [M + 1]: list x is
    order[first[x]:first[x + 1]]; context [M, F] its codes; owned [U + 1]: user u owns the lists
    owned[u]:owned[u + 1]; start [U + 1] as in `Histories`.
    """

    order: Ints
    first: Ints
    context: Ints
    owned: Ints
    start: Ints

    @classmethod
    def build(
        cls, histories: Histories, codec: ContextCodec, shuffle: int | None = None
    ) -> "ContextIndex":
        """Index by the features of `codec`, which are some of the model's.

        shuffle: a seed. Each event then gets the context of a random event of its user, not
        later than itself: no permutation of the whole history, because which past event had
        which context would depend on the future.
        """
        start = np.asarray(histories.start)
        counts = np.diff(start)
        user = np.repeat(np.arange(len(counts)), counts)
        source = np.arange(len(user))
        if shuffle is not None:
            past = source - start[user]
            drawn = mixed(shuffle, past) % (past + 1).astype(np.uint64)
            source = start[user] + drawn.astype(np.int64)
        translate = codec.translator(histories.codec)
        keys = np.concatenate(
            [np.zeros(0, np.int64)]
            + [
                context_keys(translate(histories.context[source[at : at + _ROWS_AT_ONCE]]), codec)
                for at in range(0, len(user), _ROWS_AT_ONCE)
            ]
        )
        order = np.lexsort((keys, user))
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(user[order]) != 0) | (np.diff(keys[order]) != 0)
        first = np.flatnonzero(new)
        return cls(
            order=order,
            first=np.append(first, len(order)),
            context=translate(histories.context[source[order[first]]]),
            owned=np.searchsorted(user[order[first]], np.arange(len(counts) + 1)),
            start=start,
        )

    def lists(self, start: Ints, end: Ints) -> Lists:
        """The lists of B requests whose histories are [start, end), cut to these."""
        users = len(self.start) - 1
        # Users without events share their start with the next one, who owns it.
        user = np.clip(np.searchsorted(self.start, start, side="right") - 1, 0, max(0, users - 1))
        counts = np.zeros(len(start), np.int64)
        some = end > start
        counts[some] = self.owned[user[some] + 1] - self.owned[user[some]]
        owner = np.repeat(np.arange(len(start)), counts)
        number = self.owned[user[owner]] + _within(counts)
        return Lists(
            owner, number, self._before(number, start[owner]), self._before(number, end[owner])
        )

    def newest(self, lists: Lists, requests: int, count: int) -> Ints:
        """Event rows [B, K] of the newest `count` events of each request's lists, newest first.

        −1 behind the last; K is what the fullest request needs, at most `count`.
        """
        take = np.minimum(lists.end - lists.begin, count)
        back = np.repeat(lists.end - 1, take) - _within(take)
        total = np.bincount(lists.owner, take, requests).astype(np.int64)
        rows = pad_rows(self.order[back], total, -1)
        if rows.shape[1] > count:
            rows = np.partition(rows, rows.shape[1] - count, axis=1)[:, -count:]
        return np.sort(rows, axis=1)[:, ::-1]

    def _before(self, number: Ints, row: Ints) -> Ints:
        """Where in `order` the events of each list from `row` on begin [X]: a binary search in
        all lists at once."""
        low, high = self.first[number], self.first[number + 1]
        while True:
            open_ = low < high
            if not open_.any():
                return low
            middle = np.where(open_, (low + high) >> 1, 0)
            before = open_ & (self.order[middle] < row)
            low = np.where(before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)


def _within(counts: Ints) -> Ints:
    """0..count − 1 for each count, concatenated."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
