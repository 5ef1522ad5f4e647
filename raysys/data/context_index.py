"""Each user's events by context: which contexts he had before a moment, and where they lie.

Built once over whole histories. What a request may see is found by binary search in the lists
of its user's contexts; the history itself is not read. A position counts a user's events from 0.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from raysys.data.columns import ColumnFolder
from raysys.data.histories import Histories
from raysys.data.spans import bounds, spans

Ints = npt.NDArray[np.int64]
_BITS = 32  # of an entry for the position; the rest is for the pair
_LOW = (1 << _BITS) - 1


@dataclass(frozen=True)
class UserContexts:
    """The distinct contexts of R requests before their ends, S in all, sorted by request and key.

    user [R], −1 for nobody; end [R] exclusive positions; request [S]; key [S]; pair [S] of the
    index; first [S], count [S]: its entries first:first + count lie before the end.
    """

    user: Ints
    end: Ints
    request: Ints
    key: Ints
    pair: Ints
    first: Ints
    count: Ints


@dataclass(frozen=True)
class ContextIndex:
    """Events of U users sorted by (user, context, position); arrays may be memory-mapped.

    A pair is a user with one of his contexts: user u has the pairs
    pair_begin[u]:pair_begin[u + 1] [U + 1], by ascending key [pairs]. Pair s has the entries
    entry_begin[s]:entry_begin[s + 1] [pairs + 1]; entry [N] = s·2³² + position.
    moves [T, 3] are the distinct steps from one event's context to the next one's: pair, pair,
    position of the event it first led to, in 32 bits where these are enough; user u has
    move_begin[u]:move_begin[u + 1] [U + 1].
    """

    COLUMNS: ClassVar = ("pair_begin", "key", "entry_begin", "entry", "move_begin", "moves")

    pair_begin: Ints
    key: Ints
    entry_begin: Ints
    entry: Ints
    move_begin: Ints
    moves: npt.NDArray[Any]

    @classmethod
    def build(cls, start: Ints, keys: Ints) -> "ContextIndex":
        """The index of histories with offsets start [U + 1] whose events have keys [N]."""
        users = len(start) - 1
        user = np.repeat(np.arange(users), np.diff(start))
        vocabulary, rank = np.unique(keys, return_inverse=True)
        size = max(1, len(vocabulary))
        code = user * size + rank
        order = np.argsort(code, kind="stable")
        pairs, at, lengths = np.unique(code[order], return_index=True, return_counts=True)
        number = np.repeat(np.arange(len(pairs)), lengths)
        entry = (number << _BITS) | (order - start[user[order]])
        pair = np.empty(len(keys), np.int64)
        pair[order] = number
        # Steps are told apart by both ends; np.unique names the first event of each.
        steps = np.flatnonzero(user[1:] == user[:-1])
        step = pair[steps] * max(1, len(pairs)) + pair[steps + 1]
        _, seen = np.unique(step, return_index=True)
        seen = steps[seen]
        moves = np.stack([pair[seen], pair[seen + 1], seen + 1 - start[user[seen]]], 1)
        everyone = np.arange(users + 1)
        return cls(
            pair_begin=np.searchsorted(pairs // size, everyone),
            key=vocabulary[pairs % size],
            entry_begin=np.append(at, len(keys)).astype(np.int64),
            entry=entry,
            move_begin=np.searchsorted(user[seen], everyone),
            moves=_narrow(moves),
        )

    @property
    def users(self) -> int:
        """U."""
        return len(self.pair_begin) - 1

    def contexts(self, user: Ints, end: Ints) -> UserContexts:
        """What R requests of users [R] (−1: nobody) see before the positions `end` [R]."""
        known = np.maximum(user, 0)
        padded = np.append(self.pair_begin, self.pair_begin[-1])  # for an index of nobody
        begin = padded[known]
        size = np.where(user < 0, 0, padded[known + 1] - begin)
        pair = spans(begin, size)
        request = np.repeat(np.arange(len(user)), size)
        first = self.entry_begin[pair]
        count = self._before(first, self.entry_begin[pair + 1], end[request]) - first
        some = count > 0
        return UserContexts(
            user=user,
            end=end,
            request=request[some],
            key=self.key[pair[some]],
            pair=pair[some],
            first=first[some],
            count=count[some],
        )

    def steps(self, contexts: UserContexts) -> tuple[Ints, Ints]:
        """The distinct steps between consecutive events before the ends.

        Returns source and target [T] as numbers 0..S − 1 of `contexts`.
        """
        user = np.maximum(contexts.user, 0)
        padded = np.append(self.move_begin, self.move_begin[-1])
        size = np.where(contexts.user < 0, 0, padded[user + 1] - padded[user])
        request = np.repeat(np.arange(len(user)), size)
        source, target, position = self.moves[spans(padded[user], size)].T
        real = position < contexts.end[request]
        stride = len(self.key) + 1
        place = contexts.request * stride + contexts.pair
        near, far = (
            np.searchsorted(place, request[real] * stride + pair[real]) for pair in (source, target)
        )
        return near, far

    def events(self, contexts: UserContexts) -> tuple[Ints, Ints]:
        """All events of the contexts: number 0..S − 1 and position of each."""
        number = np.repeat(np.arange(len(contexts.pair)), contexts.count)
        return number, self.entry[spans(contexts.first, contexts.count)] & _LOW

    def newest(self, contexts: UserContexts, tier: Ints, limit: int) -> tuple[Ints, Ints]:
        """The K = `limit` best events of each request, newest first.

        tier [S]: contexts of a lower tier go first, those of a negative one never; within a
        tier the newest events go first. Returns positions and tiers [R, K], both −1 where
        there are fewer events.
        """
        requests = len(contexts.user)
        room = np.where(tier >= 0, limit - held_below(contexts, tier), 0)
        # Of one context never more than the newest events that there is room for can be taken.
        take = np.clip(room, 0, contexts.count)
        position = self.entry[spans(contexts.first + contexts.count - take, take)] & _LOW
        request, rank = np.repeat(contexts.request, take), np.repeat(tier, take)
        # One number for each event, because sorting numbers is faster than sorting rows.
        size = int(tier.max(initial=0)) + 1
        best = np.sort(((request * size + rank) << _BITS) | (_LOW - position))
        request = (best >> _BITS) // size
        best = best[np.arange(len(best)) - np.searchsorted(request, request) < limit]
        request, rank = np.divmod(best >> _BITS, size)
        newest = np.sort((((request << _BITS) | (best & _LOW)) * size) + rank)
        rest, rank = np.divmod(newest, size)
        request = rest >> _BITS
        column = np.arange(len(request)) - np.searchsorted(request, request)
        positions = np.full((requests, limit), -1, np.int64)
        tiers = np.full((requests, limit), -1, np.int64)
        positions[request, column] = _LOW - (rest & _LOW)
        tiers[request, column] = rank
        return positions, tiers

    def _before(self, low: Ints, high: Ints, end: Ints) -> Ints:
        """Where the entries low:high [S] reach the position `end` [S]: a binary search in all
        lists at once, which touches no entry outside them. No list is empty."""
        # Most requests lie behind all of a history.
        low = np.where(self.entry[high - 1] & _LOW < end, high, low)
        while True:
            open_ = low < high
            if not open_.any():
                return low
            middle = np.where(open_, (low + high) >> 1, 0)
            before = open_ & (self.entry[middle] & _LOW < end)
            low = np.where(before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)

    def append(self, user: Ints, keys: Ints, position: Ints) -> tuple["ContextIndex", Ints]:
        """The index with n later events of users [n], and where each old pair went [pairs].

        Entries are inserted, not sorted again. Equal to building anew but for the steps, which
        stay as they were until the whole index is refreshed.
        """
        owner = np.repeat(np.arange(self.users), np.diff(self.pair_begin))
        vocabulary = np.union1d(self.key, keys)
        size = max(1, len(vocabulary))
        old = owner * size + np.searchsorted(vocabulary, self.key)
        fresh = user * size + np.searchsorted(vocabulary, keys)
        pairs = np.union1d(old, fresh)
        moved = np.searchsorted(pairs, old)
        added = np.sort((np.searchsorted(pairs, fresh) << _BITS) | position)
        entry = (moved[self.entry >> _BITS] << _BITS) | (self.entry & _LOW)
        entry = np.insert(entry, np.searchsorted(entry, added), added)
        moves = np.column_stack([moved[self.moves[:, :2]], self.moves[:, 2]])
        index = ContextIndex(
            pair_begin=np.searchsorted(pairs // size, np.arange(self.users + 1)),
            key=vocabulary[pairs % size],
            entry_begin=np.searchsorted(entry >> _BITS, np.arange(len(pairs) + 1)),
            entry=entry,
            move_begin=self.move_begin,
            moves=_narrow(moves),
        )
        return index, moved

    def of(self, users: Ints) -> "ContextIndex":
        """The index of the given users only, in their order: they become 0, 1, …

        A user of −1 has no events.
        """
        first, pairs = _part(self.pair_begin, users)
        old = spans(first, pairs)
        lengths = self.entry_begin[old + 1] - self.entry_begin[old]
        position = self.entry[spans(self.entry_begin[old], lengths)] & _LOW
        begin, steps = _part(self.move_begin, users)
        moves = self.moves[spans(begin, steps)].copy()
        pair_begin = bounds(pairs)
        moves[:, :2] += np.repeat(pair_begin[:-1] - first, steps)[:, None]
        return ContextIndex(
            pair_begin=pair_begin,
            key=self.key[old],
            entry_begin=bounds(lengths),
            entry=(np.repeat(np.arange(len(old)), lengths) << _BITS) | position,
            move_begin=bounds(steps),
            moves=moves,
        )

    def pairs_of(self, users: Ints) -> Ints:
        """The pairs that `of` takes, in its order."""
        return spans(*_part(self.pair_begin, users))

    def everything(self) -> tuple[Ints, Ints, Ints]:
        """User, key and position of all N events."""
        owner = np.repeat(np.arange(self.users), np.diff(self.pair_begin))
        pair = self.entry >> _BITS
        return owner[pair], self.key[pair], self.entry & _LOW

    def save(self, folder: Path) -> None:
        """Write the index as Arrow IPC columns into `folder`."""
        columns = ColumnFolder(folder)
        for name in self.COLUMNS:
            columns.write(name, getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "ContextIndex":
        """Open a memory-mapped index written by `save`."""
        columns = ColumnFolder(folder)
        arrays: dict[str, Any] = {name: columns.read(name) for name in cls.COLUMNS}
        return cls(**arrays)


def _part(begin: Ints, users: Ints) -> tuple[Ints, Ints]:
    """Where the part of each user begins, and its length; nothing for a user of −1."""
    padded = np.append(begin, begin[-1])
    row = np.where(users < 0, len(begin) - 1, users)
    return padded[row], padded[row + 1] - padded[row]


def _narrow(moves: Ints) -> npt.NDArray[Any]:
    """The same numbers in 32 bits if they fit; steps are most of an index of long histories."""
    fits = moves.max(initial=0) <= np.iinfo(np.int32).max
    return moves.astype(np.int32) if fits else moves


def locate(histories: Histories, start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Users [R] and exclusive end positions [R] of the pointers start, end [R].

    A pointer starts at its user's first event. Where it holds no event the user is −1.
    """
    user = np.searchsorted(histories.start, start, side="right") - 1
    return np.where(end > start, user, -1), end - start


def held_below(contexts: UserContexts, tier: Ints) -> Ints:
    """[S] how many events the request's contexts of lower tiers hold; those below 0 not at all."""
    width = int(tier.max(initial=0)) + 2
    real = tier >= 0
    cells = contexts.request[real] * width + tier[real] + 1
    held = np.bincount(cells, contexts.count[real], len(contexts.user) * width)
    below = held.astype(np.int64).reshape(-1, width).cumsum(1)
    return below[contexts.request, np.maximum(tier, 0)]
