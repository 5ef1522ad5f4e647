"""`check`: every kind of fault is found at its file, row and column; sound folders pass."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raysys.data.check import check
from raysys.data.dataset import DatasetWriter
from raysys.data.manifest import DataCard
from raysys.errors import DataError

DAY = 86_400_000_000
KINDS = {"scene": "categorical"}


def card(**changes: Any) -> DataCard:
    values: dict[str, Any] = dict(
        dataset="tiny", version="1", reader="test", label_rule="given", split_rule="time",
        split_bounds={"valid": "1970-01-06T00:00:00Z", "test": "1970-01-08T00:00:00Z"},
        group_key="impression", history_cut="before the request", licence="none",
        time_span=("1970-01-01T00:00:00Z", "1970-01-10T00:00:00Z"),
    )  # fmt: skip
    return DataCard(**(values | changes))


def event(user: str, seq: int, day: int | None, item: str = "a", **other: Any) -> dict[str, Any]:
    row = {"user_id": user, "seq": seq, "ts": None if day is None else day * DAY}
    return row | {"item_id": item, "behaviour": "click", "context": {"scene": "x"}} | other


def shown(name: str, user: str, day: int | None, split: str, **other: Any) -> dict[str, Any]:
    row = {"impression_id": name, "user_id": user, "ts": None if day is None else day * DAY}
    row |= {"candidates": ["a", "b"], "clicks": ["a"], "orders": [], "split": split}
    return row | {"context": {"scene": "x"}} | other


EVENTS = [event("u1", 0, None), event("u1", 1, 2), event("u1", 2, 2), event("u2", 0, 1)]
SHOWN = [
    shown("i1", "u1", 3, "train"), shown("i2", "u2", 4, "train", clicks=["b"]),
    shown("i3", "u1", 6, "valid"), shown("i4", "u1", 8, "test", orders=["a"]),
]  # fmt: skip


def write(
    out: Path,
    *,
    events: list[dict[str, Any]] = EVENTS,
    impressions: list[dict[str, Any]] = SHOWN,
    items: tuple[str, ...] = ("a", "b"),
    users: tuple[str, ...] | None = None,
    contexts: list[dict[str, Any]] | None = None,
    parts: int = 1,
    **changes: Any,
) -> Path:
    with DatasetWriter(out, contexts=KINDS) as writer:
        schemas = writer.schemas
        writer.write("items", pa.table({"item_id": pa.array(items, pa.string())}))
        if users is not None:
            writer.write("users", pa.table({"user_id": pa.array(users, pa.string())}))
        declared = contexts or [{"name": "scene", "kind": "categorical", "values": ["x"]}]
        writer.write("contexts", pa.Table.from_pylist(declared, schemas["contexts"]))
        for name, rows in (("events", events), ("impressions", impressions)):
            size = -(-len(rows) // parts)
            for start in range(0, len(rows), size):
                table = pa.Table.from_pylist(rows[start : start + size], schemas[name])
                writer.write(name, table)
        writer.commit(card(**changes), history_behaviours=("click",))
    return out


def found(path: Path) -> list[tuple[str, str, int | None, str | None]]:
    return [(f.kind, f.file, f.row, f.column) for f in check(path).faults]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_sound_folder_has_no_faults(tmp_path: Path, parts: int) -> None:
    report = check(write(tmp_path / "d", parts=parts, users=("u1", "u2")))
    assert report.ok
    assert report.faults == []
    assert report.warnings == []
    assert report.rows["events"] == 4
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


E0, I0 = "events/part-00000.parquet", "impressions/part-00000.parquet"
FAULTS: dict[str, tuple[dict[str, Any], list[tuple[str, str, int | None, str | None]]]] = {
    "users not ascending": (
        {"events": [event("u2", 0, 1), event("u1", 0, 1)]}, [("unsorted", E0, 2, "user_id")],
    ),
    "users not together": (
        {"events": [event("u1", 0, 1), event("u2", 0, 1), event("u1", 1, 2)]},
        [("unsorted", E0, 3, "user_id")],
    ),
    "seq does not rise": (
        {"events": [event("u1", 1, 1), event("u1", 1, 2)]}, [("unsorted", E0, 2, "seq")],
    ),
    "ts falls": (
        {"events": [event("u1", 0, 2), event("u1", 1, 1)]}, [("unsorted", E0, 2, "ts")],
    ),
    "order over a part border": (
        {"events": [event("u2", 0, 1), event("u1", 0, 1)], "parts": 2, "impressions": SHOWN[:2]},
        [("unsorted", "events/part-00001.parquet", 1, "user_id")],
    ),
    "unknown item in events": (
        {"events": [*EVENTS, event("u3", 0, 1, "zz")]}, [("unknown item", E0, 5, "item_id")],
    ),
    "unknown item among candidates": (
        {"impressions": [*SHOWN[:3], shown("i4", "u1", 8, "test", candidates=["a", "zz"])]},
        [("unknown item", I0, 4, "candidates")],
    ),
    "unknown behaviour": (
        {"events": [*EVENTS, event("u3", 0, 1, behaviour="stare")]},
        [("behaviour", E0, 5, "behaviour")],
    ),
    "unknown users": (
        {"users": ("u1",)},
        [("unknown user", E0, 4, "user_id"), ("unknown user", I0, 2, "user_id")],
    ),
    "future event": (
        {"events": [*EVENTS, event("u3", 0, 80_000)]}, [("future", E0, 5, "ts")],
    ),
    "beyond the time span": (
        {"events": [*EVENTS, event("u3", 0, 12)]}, [("time span", E0, 5, "ts")],
    ),
    "click not shown": (
        {"impressions": [shown("i0", "u1", 3, "train", clicks=["c"]), *SHOWN]},
        [("label", I0, 1, "clicks")],
    ),
    "order not clicked": (
        {"impressions": [shown("i0", "u1", 3, "train", orders=["b"]), *SHOWN]},
        [("label", I0, 1, "orders")],
    ),
    "candidate twice": (
        {"impressions": [shown("i0", "u1", 3, "train", candidates=["a", "a"]), *SHOWN]},
        [("duplicate in list", I0, 1, "candidates")],
    ),
    "no candidates": (
        {"impressions": [shown("i0", "u1", 3, "train", candidates=[], clicks=[]), *SHOWN]},
        [("empty", I0, 1, "candidates")],
    ),
    "positions too few": (
        {"impressions": [shown("i0", "u1", 3, "train", position=[1]), *SHOWN]},
        [("length", I0, 1, "position")],
    ),
    "impression twice": (
        {"impressions": [*SHOWN, SHOWN[0]]}, [("duplicate impression", I0, 5, "impression_id")],
    ),
    "unknown split": (
        {"impressions": [*SHOWN, shown("i5", "u1", 3, "dev")]}, [("split", I0, 5, "split")],
    ),
    "train after the bound": (
        {"impressions": [*SHOWN, shown("i5", "u2", 9, "train")]},
        [("split order", I0, 5, "split")],
    ),
    "train after a test impression of the user": (
        {"impressions": [*SHOWN, shown("i5", "u1", 9, "train")], "split_bounds": {}},
        [("split order", I0, 5, "split")],
    ),
    "no end of history": (
        {"impressions": [*SHOWN, shown("i5", "u1", None, "train")]},
        [("history", I0, 5, "history_end")],
    ),
    "end beyond the history": (
        {"impressions": [*SHOWN, shown("i5", "u1", None, "train", history_end=4)]},
        [("history", I0, 5, "history_end")],
    ),
    "context not declared": (
        {"contexts": [{"name": "mood", "kind": "categorical"}]},
        [("context", "contexts/part-00000.parquet", 1, "name"),
         ("context", "manifest.json", None, "scene")],
    ),
    "item twice": (
        {"items": ("a", "b", "a")}, [("duplicate id", "items/part-00000.parquet", 3, "item_id")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found_where_it_is(tmp_path: Path, name: str) -> None:
    changes, expected = FAULTS[name]
    assert found(write(tmp_path / "d", **changes)) == expected


def test_all_faults_are_counted_but_only_the_first_kept(tmp_path: Path) -> None:
    events = [event(f"u{n:02d}", 0, 1, "zz") for n in range(20)]
    report = check(write(tmp_path / "d", events=events), first=3)
    assert report.counts == {"unknown item": 20}
    assert [fault.row for fault in report.faults] == [1, 2, 3]
    assert report.faults[0].message == "zz is not in the items table"


def test_constant_labels_and_absent_parts_are_warnings(tmp_path: Path) -> None:
    rows = [shown("i1", "u1", 3, "train", clicks=[]), shown("i2", "u1", 8, "test")]
    report = check(write(tmp_path / "d", impressions=rows))
    assert report.ok
    assert report.warnings == [
        "constant labels in split train: 0 of 2 candidates clicked; training and metrics will "
        "refuse it",
        "split valid has no impressions",
    ]


def test_flipped_bytes_truncation_and_missing_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "d")
    part = path / E0
    whole = part.read_bytes()
    part.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    assert ("checksum", E0, None, None) in found(path)
    part.write_bytes(whole[:-10])
    report = check(path)
    assert not report.ok
    assert "the file was cut or changed" in report.faults[0].message
    part.unlink()
    assert "missing, though the manifest lists it" in check(path).faults[0].message


def test_columns_that_do_not_fit_are_named(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = write(tmp_path / "d")
    part = path / E0
    table = pq.read_table(part, partitioning=None)
    for change, expected in (
        (table.drop_columns(["seq"]), ("schema", E0, None, "seq")),
        (table.append_column("mood", pa.nulls(4)), ("schema", E0, None, "mood")),
        (
            table.set_column(1, "seq", pa.array(["first"] * 4)),
            ("schema", E0, None, "seq"),
        ),
        (table.set_column(0, "user_id", pa.array(["u1", None, "u1", "u2"])),
         ("null", E0, 2, "user_id")),
    ):  # fmt: skip
        pq.write_table(change, part)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["tables"]["events"]["files"][0]["bytes"] = part.stat().st_size
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert expected in found(path)


def test_no_folder_and_another_schema_version(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        check(tmp_path)
    path = write(tmp_path / "d")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99, this raysys reads version"):
        check(path)
