"""Histories: windows and time cuts against plain Python, and the folder they are kept in."""

import bisect
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.contexts import ContextCodec, ContextFeature
from raysys.data.histories import UNKNOWN_TS, Histories

CODEC = ContextCodec(
    features=(
        ContextFeature(name="meal", kind="categorical", values=("lunch", "dinner")),
        ContextFeature(name="degrees", kind="numeric", edges=(0.0,)),
    )
)
TIMES = st.lists(st.lists(st.integers(0, 8), max_size=6), min_size=1, max_size=5)


def histories(times: list[list[int]], unknown: int = 0) -> Histories:
    """One user per list of times; the first `unknown` events of each have none."""
    rows = [[UNKNOWN_TS] * min(unknown, len(t)) + sorted(t)[unknown:] for t in times]
    count = sum(map(len, rows))
    rng = np.random.default_rng(count)
    return Histories(
        users=pa.array([f"u{i}" for i in range(len(rows))], pa.string()),
        start=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        item=rng.integers(1, 50, count).astype(np.int32),
        ts=np.array([ts for own in rows for ts in own], np.int64),
        behaviour=rng.integers(0, 5, count).astype(np.int8),
        context=rng.integers(0, 4, (count, 2)).astype(np.int32),
        codec=CODEC,
    )


@given(times=TIMES, ts=st.integers(-1, 10), unknown=st.integers(0, 2))
def test_the_end_is_where_bisect_says(times: list[list[int]], ts: int, unknown: int) -> None:
    past = histories(times, unknown)
    users = np.arange(-1, len(times))
    end = past.end_before(users, np.full(len(users), ts))
    assert end[0] == 0  # a user without events
    for user in range(len(times)):
        begin, limit = past.start[user], past.start[user + 1]
        own = past.ts[begin:limit].tolist()
        assert end[user + 1] - begin == bisect.bisect_left(own, ts)


@given(times=TIMES, length=st.integers(1, 8), seed=st.integers(0, 100))
def test_a_window_is_the_newest_events_newest_first(
    times: list[list[int]], length: int, seed: int
) -> None:
    past = histories(times, unknown=1)
    rng = np.random.default_rng(seed)
    user = rng.integers(0, len(times), 4)
    start = past.start[user]
    end = start + rng.integers(0, past.start[user + 1] - start, endpoint=True)
    ts = np.where(rng.random(4) < 0.8, 10_000_000, UNKNOWN_TS)
    got = past.window(start, end, length, ts)
    assert got.items.shape[1] == min(length, max(1, (end - start).max()))
    for row in range(4):
        events = list(range(start[row], end[row]))[::-1][:length]
        assert got.length[row] == end[row] - start[row]
        for column in range(got.items.shape[1]):
            cell = (row, column)
            if column >= len(events):
                assert not got.mask[cell]
                assert (got.items[cell], got.behaviour[cell], got.age_s[cell]) == (0, 0, 0)
                assert not got.context[cell].any()
                continue
            event = events[column]
            known = UNKNOWN_TS not in (past.ts[event], ts[row])
            assert got.mask[cell]
            assert got.items[cell] == past.item[event]
            assert got.behaviour[cell] == past.behaviour[event]
            assert got.context[cell].tolist() == past.context[event].tolist()
            age = (10_000_000 - int(past.ts[event])) / 1e6 if known else 0.0
            assert got.age_s[cell] == np.float32(age)


@given(times=TIMES)
@settings(max_examples=10)
def test_saved_histories_are_the_same_and_mapped(
    tmp_path_factory: object, times: list[list[int]]
) -> None:
    folder: Path = tmp_path_factory.mktemp("histories")  # type: ignore[attr-defined]
    past = histories(times)
    past.save(folder)
    again = Histories.load(folder)
    assert again.users.equals(past.users)
    assert again.codec == past.codec
    for name in ("start", "item", "ts", "behaviour", "context"):
        saved, kept = getattr(again, name), getattr(past, name)
        assert saved.dtype == kept.dtype
        assert saved.shape == kept.shape
        assert (saved == kept).all()
        assert not saved.flags.owndata


def test_users_are_found_by_name_or_not_at_all() -> None:
    past = histories([[1], [2, 3], []])
    names = ["u2", "stranger", "u0"]
    assert past.rows(pa.array(names)).tolist() == [2, -1, 0]
    assert past.lookup(names).tolist() == [2, -1, 0]
    nobody = Histories.empty(CODEC)
    assert nobody.lookup(names).tolist() == [-1, -1, -1]
    rows = nobody.lookup(names)
    end = nobody.end_before(rows, np.zeros(3, np.int64))
    window = nobody.window(nobody.begin(rows), end, 5)
    assert window.items.shape == (3, 1)
    assert window.context.shape == (3, 1, 2)
    assert not window.mask.any()
