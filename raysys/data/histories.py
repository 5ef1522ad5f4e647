"""User histories, stored once and gathered by pointer.

A history is the user's events whose behaviour counts as history, in `seq` order. A request
points at [start, end): the events strictly before it. Nothing is materialised per request
but the gathered window.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.columns import ColumnFolder
from raysys.data.contexts import ContextCodec

UNKNOWN_TS = np.iinfo(np.int64).min
_ARRAYS = ("start", "item", "ts", "behaviour", "context")


@dataclass(frozen=True)
class Window:
    """L events of each of B histories; column 0 is the newest.

    items [B, L] int64 item rows (0 where masked), mask [B, L] bool (True = a real event),
    context [B, L, F] int64 codes, behaviour [B, L] int64, age_s [B, L] float32 seconds before
    the request (0 where unknown), length [B] int64 full history lengths, before
    the choice of L.
    """

    items: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    context: npt.NDArray[np.int64]
    behaviour: npt.NDArray[np.int64]
    age_s: npt.NDArray[np.float32]
    length: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Histories:
    """Events of U users in N rows; arrays may be memory-mapped.

    users: user ids [U]; start [U + 1]: rows of user u are start[u]:start[u + 1];
    item [N] item rows, ts [N] µs UTC (UNKNOWN_TS where null), behaviour [N] codes,
    context [N, F] codes of `codec`; owners [U]: whose history each is, where `users` are other
    keys (histories sent with requests); not saved.
    """

    users: pa.Array
    start: npt.NDArray[np.int64]
    item: npt.NDArray[np.int32]
    ts: npt.NDArray[np.int64]
    behaviour: npt.NDArray[np.int8]
    context: npt.NDArray[np.int32]
    codec: ContextCodec
    owners: pa.Array | None = None

    def rows(self, user_ids: pa.Array) -> npt.NDArray[np.int64]:
        """Row of each user id, −1 for a user without events here."""
        found = pc.index_in(user_ids, value_set=self.users).fill_null(-1)
        return found.to_numpy(zero_copy_only=False).astype(np.int64)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users.to_pylist())}

    def lookup(self, user_ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """As `rows`, through a hash table that is kept: for few ids, many times."""
        get = self._row_of.get
        return np.fromiter((get(user, -1) for user in user_ids), np.int64)

    def end_before(
        self, user_rows: npt.NDArray[np.int64], ts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """First event row of each user with time ≥ ts: the exclusive end of the history [B].

        A binary search over all requests at once: log2(longest history) passes.
        """
        low, high = self.begin(user_rows), self.finish(user_rows)
        while True:
            open_ = low < high
            if not open_.any():
                return low
            middle = (low + high) >> 1
            before = np.zeros(len(low), bool)
            before[open_] = self.ts[middle[open_]] < ts[open_]
            low = np.where(open_ & before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)

    def begin(self, user_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """First event row of each user [B]; 0 for an unknown user, whose end is 0 too."""
        return self._bound(user_rows, 0)

    def finish(self, user_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Last event row + 1 of each user [B]; 0 for an unknown user."""
        return self._bound(user_rows, 1)

    def _bound(self, user_rows: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.int64]:
        if len(self.users) == 0:
            return np.zeros(len(user_rows), np.int64)
        return np.where(user_rows < 0, 0, self.start[np.maximum(user_rows, 0) + shift])

    def newest(
        self, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], length: int
    ) -> npt.NDArray[np.int64]:
        """Event rows [B, K] of the newest `length` events of each [start, end), newest first.

        Padded with −1; K is what the longest history in the batch needs, at most `length`.
        """
        width = int(min(length, max(1, (end - start).max(initial=0))))
        rows = end[:, None] - 1 - np.arange(width)
        return np.where(rows >= start[:, None], rows, -1)

    def gather(
        self,
        rows: npt.NDArray[np.int64],
        length: npt.NDArray[np.int64],
        ts: npt.NDArray[np.int64] | None = None,
    ) -> Window:
        """The given events: rows [B, K], −1 where padded; length [B] of the whole histories.

        ts [B] µs of the requests, from which the ages are counted.
        """
        mask = rows >= 0
        shape = rows.shape
        if len(self.item) == 0:
            return Window(
                np.zeros(shape, np.int64),
                mask,
                np.zeros((*shape, self.context.shape[1]), np.int64),
                np.zeros(shape, np.int64),
                np.zeros(shape, np.float32),
                length,
            )
        index = np.where(mask, rows, 0)
        items = np.where(mask, self.item[index], 0).astype(np.int64)
        behaviour = np.where(mask, self.behaviour[index], 0).astype(np.int64)
        context = np.where(mask[..., None], self.context[index], 0).astype(np.int64)
        age = np.zeros(shape, np.float32)
        if ts is not None:
            event_ts = self.ts[index]
            known = mask & (event_ts != UNKNOWN_TS) & (ts[:, None] != UNKNOWN_TS)
            age = np.where(known, (ts[:, None] - event_ts) / 1e6, 0).astype(np.float32)
        return Window(items, mask, context, behaviour, age, length)

    def window(
        self,
        start: npt.NDArray[np.int64],
        end: npt.NDArray[np.int64],
        length: int,
        ts: npt.NDArray[np.int64] | None = None,
    ) -> Window:
        """The newest `length` events of each [start, end), newest first."""
        return self.gather(self.newest(start, end, length), end - start, ts)

    def save(self, folder: Path) -> None:
        """Write the histories as Arrow IPC columns into `folder`."""
        columns = ColumnFolder(folder)
        columns.write("users", self.users)
        for name in _ARRAYS:
            columns.write(name, getattr(self, name))
        (folder / "codec.json").write_text(self.codec.model_dump_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Histories":
        """Open memory-mapped histories written by `save`."""
        columns = ColumnFolder(folder)
        codec = ContextCodec.model_validate_json((folder / "codec.json").read_text("utf-8"))
        arrays: dict[str, Any] = {name: columns.read(name) for name in _ARRAYS}
        return cls(users=columns.read_strings("users"), codec=codec, **arrays)

    @classmethod
    def empty(cls, codec: ContextCodec) -> "Histories":
        """Histories of nobody: every user is cold."""
        return cls(
            users=pa.array([], pa.string()),
            start=np.zeros(1, np.int64),
            item=np.zeros(0, np.int32),
            ts=np.zeros(0, np.int64),
            behaviour=np.zeros(0, np.int8),
            context=np.zeros((0, len(codec.features)), np.int32),
            codec=codec,
        )
