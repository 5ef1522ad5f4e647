"""Prepared columns against the rows they were made from; rows that would spoil them are refused."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_fixtures import ITEMS, Log, log
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.check import check
from raysys.data.columns import ColumnFolder, GrowingColumn
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.data.refusals import among
from raysys.data.schema import SPLITS
from raysys.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))


def opened(rows: Log, folder: Path, parts: int = 1) -> Prepared:
    return prepare(Dataset(rows.write(folder, parts)))


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parts", [1, 3])
def test_pointers_and_labels_are_those_of_the_rows(
    tmp_path: Path, seed: int, parts: int, timed: bool
) -> None:
    rows = log(seed, timed=timed)
    data = opened(rows, tmp_path / "data", parts)
    shown, past = data.impressions, data.histories
    names = [None, None, *ITEMS]
    assert shown.ids.to_pylist() == [i["impression_id"] for i in rows.impressions]
    for number, row in enumerate(rows.impressions):
        kept = [
            e for e in rows.events
            if e["user_id"] == row["user_id"] and e["behaviour"] in ("click", "order")
        ]  # fmt: skip
        kept = (
            [e for e in kept if e["ts"] < row["ts"]] if timed else kept[: row["history_end"]]
        )  # fmt: skip
        mine = slice(shown.start[number], shown.end[number])
        assert past.item[mine].tolist() == [
            names.index(e["item_id"]) if e["item_id"] in ITEMS else 1 for e in kept
        ]
        assert past.codec.encode_dicts([e["context"] for e in kept]).tolist() == (
            past.context[mine].tolist()
        )
        listed = slice(shown.offsets[number], shown.offsets[number + 1])
        assert [names[i] for i in shown.item[listed]] == row["candidates"]
        for name, label in (("clicks", shown.click), ("orders", shown.order)):
            assert label[listed].tolist() == [i in row[name] for i in row["candidates"]]
        assert shown.position[listed].tolist() == row["position"]
        assert SPLITS[shown.split[number]] == row["split"]
        assert shown.tz[number] == 60
        context = past.codec.encode_dicts([row["context"]])
        assert shown.context[number].tolist() == context[0].tolist()
    for split in SPLITS:
        chosen = [i["split"] == split for i in rows.impressions]
        assert shown.of(split).tolist() == np.flatnonzero(chosen).tolist()
    some = np.array([3, 0, 4])
    flat = [r for i in some for r in range(shown.offsets[i], shown.offsets[i + 1])]
    assert shown.rows(some).tolist() == flat


def test_values_in_the_log_follow_the_declared_ones(tmp_path: Path) -> None:
    meal = opened(log(0), tmp_path / "data").codec.features[0]
    assert meal.values == ("lunch", "dinner")


def test_the_cache_is_used_and_made_again(tmp_path: Path) -> None:
    path = log(0).write(tmp_path / "data")
    first = prepare(Dataset(path))
    (folder,) = (tmp_path / "cache" / "columns").iterdir()
    stamp = (folder / "DONE").stat().st_mtime_ns
    again = prepare(Dataset(path))
    assert (folder / "DONE").stat().st_mtime_ns == stamp
    (folder / "DONE").unlink()
    for part in folder.rglob("*"):
        if part.is_file():
            part.unlink()
    for name in ("histories", "impressions"):
        (folder / name).rmdir()
    folder.rmdir()
    made = prepare(Dataset(path))
    for name in ("start", "end", "item", "click"):
        for other in (again, made):
            one = getattr(first.impressions, name)
            assert (one == getattr(other.impressions, name)).all()


Change = Callable[[list[dict[str, object]]], None]


def swap(rows: list[dict[str, object]]) -> None:
    rows[0], rows[-1] = rows[-1], rows[0]


def repeat_seq(rows: list[dict[str, object]]) -> None:
    rows[1]["seq"] = rows[0]["seq"]


def fall_back(rows: list[dict[str, object]]) -> None:
    rows[0]["ts"], rows[1]["ts"] = 9, 5


def unknown_after_known(rows: list[dict[str, object]]) -> None:
    rows[0]["ts"], rows[1]["ts"] = 9, None


EVENTS = [
    dict(user_id=user, seq=seq, ts=seq, item_id="i1", behaviour="click")
    for user in ("u0", "u1")
    for seq in range(3)
]


@pytest.mark.parametrize("parts", [1, 2, 6])
@pytest.mark.parametrize(
    ("change", "row"), [(swap, 2), (repeat_seq, 2), (fall_back, 2), (unknown_after_known, 2)]
)
def test_unsorted_events_are_refused_at_their_row(
    tmp_path: Path, change: Change, row: int, parts: int
) -> None:
    rows = log(0)
    rows.events = [dict(e) for e in EVENTS]
    opened(rows, tmp_path / "sorted", parts)
    change(rows.events)
    path = rows.write(tmp_path / "data", parts)
    size = len(EVENTS) // parts
    part, place = (row - 1) // size, (row - 1) % size + 1
    with pytest.raises(DataError, match=rf"part-0000{part}.parquet: row {place}: .* not sorted"):
        prepare(Dataset(path))
    assert len(list((tmp_path / "cache" / "columns").iterdir())) == 1  # of the sorted one only


def test_unknown_times_may_come_first(tmp_path: Path) -> None:
    rows = log(0)
    rows.events = [dict(e) for e in EVENTS]
    rows.events[0]["ts"] = None
    assert opened(rows, tmp_path / "data").histories.item.tolist() == [3] * 6


def not_shown(row: dict[str, object]) -> None:
    row["candidates"], row["clicks"], row["orders"] = ["i1", "i2"], ["i3"], []


def not_clicked(row: dict[str, object]) -> None:
    row["candidates"], row["clicks"], row["orders"] = ["i1", "i2"], ["i1"], ["i2"]


REFUSED: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "click not shown": (not_shown, "clicks holds an item that is not among the candidates"),
    "order not clicked": (not_clicked, "orders holds an item that is not among the clicks"),
    "repeated id": (lambda row: row.update(impression_id="p1"), "impression_id p1 occurs before"),
    "another unit": (lambda row: row.update(ts=9 * 10**15), "ts lies in the future"),
    "no end": (lambda row: row.update(ts=None, history_end=None), "history_end must be 0 or more"),
    "before all": (lambda row: row.update(ts=None, history_end=-1), "history_end must be 0 or"),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("fault", REFUSED)
def test_rows_that_check_would_find_are_refused(tmp_path: Path, fault: str, parts: int) -> None:
    change, message = REFUSED[fault]
    rows = log(0)
    change(rows.impressions[9])
    path = rows.write(tmp_path / "data", parts)
    assert not check(path).ok
    part, row = ("part-00000", 10) if parts == 1 else ("part-00002", 2)
    with pytest.raises(DataError, match=rf"impressions/{part}\.parquet: row {row}: {message}"):
        prepare(Dataset(path))
    assert list((tmp_path / "cache" / "columns").iterdir()) == []


def test_an_event_of_the_future_is_refused(tmp_path: Path) -> None:
    rows = log(0)
    rows.events = [dict(e) for e in EVENTS]
    rows.events[2]["ts"] = 9 * 10**15
    with pytest.raises(DataError, match=r"events/part-00000\.parquet: row 3: ts lies in the futu"):
        opened(rows, tmp_path / "data")


def test_a_history_end_beyond_the_history_is_its_length(tmp_path: Path) -> None:
    rows = log(0, timed=False)
    for row in rows.impressions:
        row["history_end"] = 2**63 - 1
    shown = opened(rows, tmp_path / "data").impressions
    mine = [
        sum(e["user_id"] == i["user_id"] and e["behaviour"] != "view" for e in rows.events)
        for i in rows.impressions
    ]
    assert (shown.end - shown.start).tolist() == mine


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_among_against_python(values: list[int], known: list[int]) -> None:
    found = among(np.array(values, np.int64), np.array(known, np.int64))
    assert found.tolist() == [value in known for value in values]


@pytest.mark.parametrize("shape", [(0,), (3,), (0, 2), (3, 2), (3, 0)])
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float32", "uint8"])
def test_columns_are_views_of_their_files(
    tmp_path: Path, shape: tuple[int, ...], dtype: str
) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    folder = ColumnFolder(tmp_path)
    folder.write("whole", values)
    growing = GrowingColumn(folder, "grown", dtype, *shape[1:])
    for row in range(shape[0]):
        growing.append(values[row : row + 1])
    growing.close()
    for name in ("whole", "grown"):
        read = folder.read(name)
        assert read.dtype == values.dtype
        assert read.shape == values.shape
        assert (read == values).all()
    folder.write("names", pa.array(["a", "é", ""]))
    assert folder.read_strings("names").to_pylist() == ["a", "é", ""]
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".arrow") == []


def test_a_full_disk_is_known_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "grown.raw").symlink_to("/dev/full")
    growing = GrowingColumn(ColumnFolder(tmp_path), "grown", "int64")
    with pytest.raises(OSError, match="No space left") as caught:
        growing.append(np.zeros(100_000))
    assert caught.value.errno == errno.ENOSPC
