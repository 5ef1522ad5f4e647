"""The data set folder: written whole or not at all, refused if it is not what it says."""

import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import CARD, ITEMS, log
from pydantic import ValidationError

from raysys.data.check import check
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.files import new_folder, standing, write_text
from raysys.data.manifest import DataCard, Manifest, canonical_json
from raysys.data.schema import context_struct, table_schemas
from raysys.errors import DataError, StorageFullError

ITEMS_TABLE = pa.table({"item_id": ITEMS})


def broken_off(out: Path, error: BaseException) -> None:
    with DatasetWriter(out, overwrite=True) as writer:
        writer.write("items", ITEMS_TABLE)
        raise error


def written(out: Path, table: str, columns: dict[str, object]) -> None:
    with DatasetWriter(out) as writer:
        writer.write(table, pa.table(columns))
        writer.commit(CARD)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("parts", [1, 3])
def test_what_is_written_is_what_is_read(tmp_path: Path, parts: int) -> None:
    rows = log(0)
    data = Dataset(rows.write(tmp_path / "data", parts))
    assert len(data.files("events")) == parts
    assert data.manifest.tables["events"].rows == len(rows.events)
    assert data.card.counts["events"] == len(rows.events)
    got = data.table("events").select(list(rows.events[0])).to_pylist()
    assert got == rows.events
    assert sum(len(part) for part in data.parts("impressions", ["split"])) == 12
    assert not data.has("users")
    assert data.table("users", ["user_id"]).schema.names == ["user_id"]
    assert tree(rows.write(tmp_path / "again", parts)) == tree(tmp_path / "data")


def test_without_context_features_nothing_is_made_up(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "data") as writer:
        writer.write("items", ITEMS_TABLE)
        rows = [{"user_id": "u", "seq": 0, "behaviour": "click"}]
        writer.write("events", pa.Table.from_pylist(rows))
        shown: dict[str, object] = {
            "impression_id": "p",
            "user_id": "u",
            "candidates": ["i0"],
            "split": "train",
        }
        shown["history_end"] = 1
        empty = pa.array([[]], pa.list_(pa.string()))
        table = pa.Table.from_pylist([shown]).append_column("clicks", empty)
        writer.write("impressions", table.append_column("orders", empty))
        manifest = writer.commit(CARD, history_behaviours=("click",))
    assert manifest.contexts == {}
    data = Dataset(tmp_path / "data")
    assert data.table("events")["context"].to_pylist() == [None]
    assert check(tmp_path / "data").ok
    assert [f.name for f in context_struct({"meal": "categorical"})] == ["meal"]


def test_nothing_is_seen_before_the_commit(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with DatasetWriter(out) as writer:
        writer.write("items", ITEMS_TABLE)
        assert not out.exists()
        writer.commit(CARD)
        assert not out.exists()
    assert Dataset(out).table("items")["item_id"].to_pylist() == ITEMS
    with pytest.raises(DataError, match="was never committed"), DatasetWriter(tmp_path / "b"):
        pass
    with pytest.raises(KeyboardInterrupt):
        broken_off(tmp_path / "c", KeyboardInterrupt())
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_an_existing_folder_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    out = log(0).write(tmp_path / "data")
    before = tree(out)
    with pytest.raises(DataError, match=r"exists already; choose another --out or pass --over"):
        DatasetWriter(out).__enter__()
    with pytest.raises(ValueError, match="broken"):
        broken_off(out, ValueError("broken"))
    assert tree(out) == before
    with DatasetWriter(out, overwrite=True) as writer:
        writer.write("items", ITEMS_TABLE)
        writer.commit(CARD)
    assert list(Dataset(out).manifest.tables) == ["items"]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_columns_are_cast_or_refused(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with pytest.raises(DataError, match="table events: column seq is missing"):
        written(out, "events", {"user_id": ["u"], "behaviour": ["click"]})
    with pytest.raises(DataError, match="table items: unknown columns colour, mood"):
        written(out, "items", {"item_id": ITEMS, "mood": ITEMS, "colour": ITEMS})
    written(out, "items", {"item_id": ITEMS, "price": np.arange(10)})
    assert Dataset(tmp_path / "data").table("items").schema == table_schemas({})["items"]
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    path = log(0).write(tmp_path / "data", parts=2)
    manifest = path / "manifest.json"
    good = manifest.read_text()
    for text, message in (
        ("{", "manifest.json: not valid JSON"),
        ("[]", "schema version None, this raysys reads version"),
        (good.replace('"schema_version": 1', '"schema_version": 99'), "schema version 99"),
        (good.replace('"dataset": "tiny"', '"dataset": 3'), r"manifest.json: data_card.dataset:"),
        (good.replace('"click"', '"stare"'), r"manifest.json: history_behaviours: .*stare"),
    ):
        manifest.write_text(text)
        with pytest.raises(DataError, match=message):
            Dataset(path)
    manifest.write_text(good)
    part = path / "events" / "part-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"part-00001.parquet: \d+ bytes where the manifest says"):
        Dataset(path)
    part.write_bytes(whole[:-8] + bytes(8))  # the length is right, the footer is not
    with pytest.raises(DataError, match=r"part-00001.parquet: unreadable Parquet file"):
        Dataset(path).table("events")
    part.unlink()
    (path / "items" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match="missing, though the manifest lists it"):
        Dataset(path)
    assert [f.file for f in check(path).faults] == [
        "events/part-00001.parquet",
        "items/part-00000.parquet",
    ]
    manifest.unlink()
    with pytest.raises(DataError, match=r"is no data set folder: manifest.json is missing"):
        Dataset(path)


def test_the_card_names_what_results_depend_on() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    again = DataCard.model_validate_json(CARD.model_dump_json())
    assert again.id == CARD.id
    assert len(CARD.id) == 12
    others = [
        CARD.model_copy(update=change)
        for change in ({"version": "2"}, {"negative_seed": 1}, {"counts": {"events": 1}})
    ]
    assert len({CARD.id, *(other.id for other in others)}) == 4
    with pytest.raises(ValidationError, match="holds no floats"):
        DataCard.model_validate(CARD.model_dump() | {"notes": {"share": [{"x": 0.5}]}})
    one = Manifest(data_card_id=CARD.id, data_card=CARD, tables={})
    assert one.hash != one.model_copy(update={"candidates": "built"}).hash


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    where = str(disk).encode()
    if libc.mount(b"tmpfs", where, b"tmpfs", 0, b"size=64k") != 0:
        pytest.skip(f"file systems cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield disk
    libc.umount2(where, 2)


def test_a_full_disk_keeps_nothing(tiny_disk: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [rng.bytes(40).hex() for _ in range(2_000)]
    with pytest.raises(StorageFullError, match=r"no space left on the disk of .*disk: nothing"):
        written(tiny_disk / "data", "items", {"item_id": ids})
    assert list(tiny_disk.iterdir()) == []


def test_a_disk_that_fills_at_the_end_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFullError, match="no space left"):
        log(0).write(tmp_path / "data")
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "small.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_other_faults_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), new_folder(tmp_path / "out"):
        raise PermissionError(13, "Permission denied")
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "a.json", "1")
    write_text(tmp_path / "a.json", "2")
    assert tree(tmp_path) == {"a.json": b"2"}


@pytest.mark.parametrize("killed", [True, False])
def test_a_swap_that_is_cut_short_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    target = tmp_path / "out"

    def write(text: str, overwrite: bool = True) -> None:
        with new_folder(target, overwrite=overwrite) as scratch:
            (scratch / "a").write_text(text)

    write("1")
    rename, turns = os.rename, [True, False, not killed]

    def cut_short(source: Path, to: Path) -> None:
        if not turns.pop(0):
            raise PermissionError(13, "the end")
        rename(source, to)

    monkeypatch.setattr(os, "rename", cut_short)
    with pytest.raises(PermissionError, match="the end"):
        write("2")
    monkeypatch.undo()
    assert target.exists() != killed
    assert (standing(target) / "a").read_text() == "1"
    with pytest.raises(DataError, match="exists already"):
        write("3", overwrite=False)
    assert tree(target) == {"a": b"1"}
    write("4")
    assert standing(target) == target
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert tree(target) == {"a": b"4"}


@pytest.mark.parametrize("kind", ["missing", "ragged"])
def test_a_part_that_does_not_fit_its_table_is_named(tmp_path: Path, kind: str) -> None:
    path = log(0).write(tmp_path / "data")
    part = path / "items" / "part-00000.parquet"
    other = {"missing": {"id": ITEMS}, "ragged": {"item_id": ITEMS, "price": ["dear"] * 10}}[kind]
    pq.write_table(pa.table(other), part)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["tables"]["items"]["files"][0]["bytes"] = part.stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DataError, match=r"items/part-00000.parquet: columns do not fit table items"
    ):
        Dataset(path).table("items")
