"""The behaviour log as LARR's stages see it: training days, later days, and places held out."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from raysys.data.contexts import FIRST
from raysys.data.histories import UNKNOWN_TS
from raysys.data.prepared import Prepared
from raysys.data.schema import BEHAVIOURS
from raysys.data.split import stable_hash
from raysys.larr.texts import Places, TextConfig, attributes_text, user_text

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
_WEEK_US = 7 * 86_400_000_000
# A user-week of more places says little about any two of them, and costs their square.
_WEEK_PLACES = 100
Part = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Log:
    """Events, places and users of one data set.

    held: [2 + N] places held out of all training (the unseen POIs of the stages' metrics).
    held_valid: [2 + N] those of them that validation asks for; the others are for the test.
    """

    data: Prepared
    config: TextConfig
    places: Places
    held: BoolArray
    held_valid: BoolArray

    @classmethod
    def of(cls, data: Prepared, config: TextConfig, holdout: float, seed: int) -> "Log":
        """holdout: share of places held out, by a hash of their names, so that two places of
        one name never lie on both sides."""
        items = data.dataset.table("items")
        places = Places.of(items, config)
        ids = ["", "", *items["item_id"].to_pylist()]
        names = np.array([name or ids[row] for row, name in enumerate(places.label)], object)
        drawn = stable_hash(names, seed)
        held = (drawn % 1_000_000 < holdout * 1_000_000) & np.array(places.poi)
        return cls(data, config, places, held, held & (drawn // 1_000_000 % 2 == 0))

    @cached_property
    def owner(self) -> Int64Array:
        """User row [E] of each event."""
        return np.repeat(np.arange(len(self.data.histories.users)), np.diff(self.starts))

    @property
    def starts(self) -> Int64Array:
        return np.asarray(self.data.histories.start)

    @cached_property
    def item(self) -> Int64Array:
        """Item row [E] of each event."""
        return np.asarray(self.data.histories.item).astype(np.int64)

    @cached_property
    def train_end(self) -> int | None:
        """First moment (µs) of the days that are not for training; None without times."""
        rows = self.data.impressions
        later = rows.ts[rows.split != 0]
        later = later[later != UNKNOWN_TS]
        return int(later.min()) if len(later) else None

    def asked(self, part: Part) -> BoolArray:
        """[2 + N] held-out places that a part asks for."""
        return self.held_valid if part == "valid" else self.held & ~self.held_valid

    def events_of(self, part: Part) -> BoolArray:
        """[E] events of the days of a part."""
        if part == "train":
            return self.training
        return self.validation if part == "valid" else ~self.training & ~self.validation

    @cached_property
    def training(self) -> BoolArray:
        """[E] events of training days: before the first later request; where there are no
        times, those that a training request points at."""
        ts = np.asarray(self.data.histories.ts)
        rows = self.data.impressions
        reach = self.starts[:-1].copy()
        train = rows.of("train")
        np.maximum.at(reach, rows.user[train], rows.end[train])
        timeless = np.arange(len(ts)) < reach[self.owner] if len(ts) else np.zeros(0, bool)
        if self.train_end is None:
            return np.where(ts == UNKNOWN_TS, timeless, True)
        return np.where(ts == UNKNOWN_TS, timeless, ts < self.train_end)

    @cached_property
    def train_spans(self) -> tuple[Int64Array, Int64Array]:
        """Event span [U] of each user's training days, which are the first part of a history."""
        counts = np.bincount(self.owner[self.training], minlength=len(self.data.histories.users))
        begin = self.starts[:-1]
        return begin, begin + counts

    @cached_property
    def test_start(self) -> int | None:
        """First moment (µs) of the test days; None without times or test requests."""
        rows = self.data.impressions
        test = rows.ts[rows.of("test")]
        test = test[test != UNKNOWN_TS]
        return int(test.min()) if len(test) else None

    @cached_property
    def validation(self) -> BoolArray:
        """[E] events of validation days: between training and the first test request. Without
        times, none is known to be."""
        ts = np.asarray(self.data.histories.ts)
        known = (ts != UNKNOWN_TS) & ~self.training
        return known if self.test_start is None else known & (ts < self.test_start)

    @cached_property
    def seen(self) -> BoolArray:
        """[2 + N] places that occur on training days."""
        seen = np.zeros(len(self.held), bool)
        seen[self.item[self.training]] = True
        rows = self.data.impressions
        seen[np.asarray(rows.item)[rows.rows(rows.of("train"))]] = True
        return seen

    @cached_property
    def usable(self) -> BoolArray:
        """[2 + N] places whose texts may be trained on: not held out, and not known from later
        days alone."""
        later = np.zeros(len(self.held), bool)
        later[self.item[~self.training]] = True
        later[np.asarray(self.data.impressions.item)] = True
        return ~self.held & (self.seen | ~later)

    @cached_property
    def week(self) -> Int64Array:
        """[E] number of the week (UTC) of each event; 0 without a time."""
        ts = np.asarray(self.data.histories.ts)
        return np.where(ts == UNKNOWN_TS, 0, ts // _WEEK_US)

    @cached_property
    def profiles(self) -> list[str]:
        """Attributes of each user row, in words."""
        users = self.data.dataset.table("users", ["user_id", "attributes"])
        found = dict(zip(*(users[name].to_pylist() for name in users.column_names), strict=True))
        ids = self.data.histories.users.to_pylist()
        return [attributes_text(found.get(user)) for user in ids]

    def behaves(self, name: str) -> BoolArray:
        """[E] events of one behaviour."""
        return np.asarray(self.data.histories.behaviour) == BEHAVIOURS.index(name)

    def chosen(self, events: BoolArray, per_week: bool = False) -> sp.csr_matrix:
        """[G, 2 + N] 0/1: places among the given events of each user, or of each user and week.

        Items that are no places are left out.
        """
        poi = np.array(self.places.poi)
        rows = np.flatnonzero(events & poi[self.item])
        group = self.owner[rows]
        count = len(self.data.histories.users)
        if per_week:
            keys = np.stack([group, self.week[rows]])
            group = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)
            rows, group = _newest(rows, group, _WEEK_PLACES)
            count = int(group.max(initial=-1)) + 1
        ones = np.ones(len(rows), np.float32)
        shape = (count, len(poi))
        matrix = sp.csr_matrix((ones, (group, self.item[rows])), shape=shape)
        matrix.data[:] = 1
        return matrix

    def user_text(self, user: int, start: int, end: int, style: str, *, training: bool) -> str:
        """Text of a user from the events [start, end), all of that user.

        training: leave out places that are held out.
        """
        rows = self.item[start:end]
        rows = rows[rows >= FIRST]
        if training:
            rows = rows[~self.held[rows]]
        return user_text(self.profiles[user], rows.tolist(), self.places, self.config, style)  # type: ignore[arg-type]


def _newest(rows: Int64Array, group: Int64Array, limit: int) -> tuple[Int64Array, Int64Array]:
    """The last `limit` of each group; rows are in time order."""
    order = np.lexsort((-rows, group))
    ordered = group[order]
    first = np.searchsorted(ordered, ordered, side="left")
    kept = np.sort(order[np.arange(len(order)) - first < limit])
    return rows[kept], group[kept]


def neighbours(chosen: sp.csr_matrix, top: int, least: float = 2.0) -> sp.csr_matrix:
    """Item-CF: for each column of `chosen` [G, N] its `top` nearest others, as a matrix [N, N].

    Values are cosines, co-count / √(count · count), of pairs that meet `least` times.
    """
    counts = np.asarray(chosen.sum(0)).reshape(-1)
    together = (chosen.T @ chosen).tocsr()
    together.setdiag(0)
    together.data[together.data < least] = 0
    together.eliminate_zeros()
    together.sort_indices()
    rows, cols, values = [], [], []
    for row in range(together.shape[0]):
        span = slice(together.indptr[row], together.indptr[row + 1])
        near, count = together.indices[span], together.data[span]
        cosine = count / np.sqrt(counts[row] * counts[near])
        best = np.argsort(-cosine, kind="stable")[:top]
        rows.append(np.full(len(best), row))
        cols.append(near[best])
        values.append(cosine[best])
    empty = [np.zeros(0, np.int64)]
    where = (np.concatenate(rows or empty), np.concatenate(cols or empty))
    return sp.csr_matrix((np.concatenate(values or empty), where), shape=together.shape)
