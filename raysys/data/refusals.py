"""Rows that would give prepared columns a wrong label or a history that leaks: refused.

Far fewer rules than `raysys.data.check` has, and cheap: data sets have millions of rows.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.clock import now_us
from raysys.data.histories import UNKNOWN_TS
from raysys.errors import DataError

Int64Array = npt.NDArray[np.int64]


def refuse_unsorted(path: Path, order: Int64Array) -> None:
    """order [3, 1 + N]: user row, seq and ts of the event before the part, then of its N events.

    Histories are slices of the table that are searched by time, so any other order would give
    users events of others, or of their future.

    Raises:
        DataError: an event out of order.
    """
    (user, seq, ts), (user_before, seq_before, ts_before) = order[:, 1:], order[:, :-1]
    stuck = (seq <= seq_before) | (ts < ts_before)
    bad = (user < user_before) | ((user == user_before) & stuck)
    _refuse(path, bad, "events are not sorted by user_id, seq and ts (unknown times first)")


def refuse_future(path: Path, ts: Int64Array) -> None:
    """ts [N] µs: a time that has not come is one of another unit.

    Raises:
        DataError: a time in the future.
    """
    _refuse(path, ts > now_us(), "ts lies in the future")


def refuse_endless(path: Path, ts: Int64Array, history_end: Int64Array) -> None:
    """ts, history_end [N], UNKNOWN_TS where null: one of them must end the history.

    Raises:
        DataError: neither does.
    """
    bad = (ts == UNKNOWN_TS) & (history_end < 0)
    _refuse(path, bad, "history_end must be 0 or more where ts is null, or the history has no end")


def refuse_outside(
    path: Path, inner: str, outer: str, keys: Int64Array, within: Int64Array, size: int
) -> None:
    """keys [K], within [W]: impression row × size + item row of columns `inner` and `outer`.

    Raises:
        DataError: an item of `inner` that is not in `outer`; its label would be lost.
    """
    outside = keys[~among(keys, within)]
    if len(outside):
        rows = np.arange(int(outside[0]) // size + 1)
        fault = f"{inner} holds an item that is not among the {outer}"
        _refuse(path, rows == rows[-1], fault)


def refuse_repeated(files: list[Path], rows: list[int], ids: pa.Array) -> None:
    """ids [I] of impressions in files of so many rows each: metrics and scores go by them.

    Raises:
        DataError: an id occurs twice.
    """
    encoded = pc.dictionary_encode(ids)
    if len(encoded.dictionary) == len(ids):
        return
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    # Codes rise by one with every id that is new.
    before = np.concatenate([[-1], np.maximum.accumulate(codes)[:-1]])
    bad = codes <= before
    index = int(np.argmax(bad))
    part = int(np.searchsorted(np.cumsum(rows), index, side="right"))
    _refuse(files[part], bad[sum(rows[:part]) :], f"impression_id {ids[index]} occurs before")


def among(values: Int64Array, known: Int64Array) -> npt.NDArray[np.bool_]:
    """Whether each of the values [V] is among the known [K]; several times faster than isin."""
    if not len(known):
        return np.zeros(len(values), bool)
    known = np.sort(known)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def _refuse(path: Path, bad: npt.NDArray[np.bool_], fault: str) -> None:
    if bad.any():
        raise DataError(
            f"{path}: row {int(np.argmax(bad)) + 1}: {fault}; import the log again (importers see "
            "to it), or see all faults with `raysys data check`"
        )
