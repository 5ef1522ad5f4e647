"""Looking into a vector table: a check of every byte, and a summary."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from raysys.data.faults import FIRST_FAULTS, Report
from raysys.errors import DataError
from raysys.llm.bindings import BINDINGS, Bindings, BindingsFile, whole
from raysys.llm.keys import NO_KEYS, SortedKeys, VectorIdentity, distinct, keys_of_arrow, sort_keys
from raysys.llm.parts import Part, TableHeader, live, map_batch, part_paths, read_header
from raysys.llm.vectors import INDEX, INDEXED_PARTS, VectorTable

DELETE_PART = "delete the file and run the embed command again: only its texts are encoded anew"


def check_table(path: Path | str, *, first: int = FIRST_FAULTS) -> Report:
    """Read every byte of the table at `path` and report all faults, the first `first` per kind.

    part: cut off, unreadable or of another width; checksum: bytes that are not those of the
    file's name; non-finite vector; duplicate key; index: not that of the parts; bindings:
    unreadable, an owner bound twice, a field without its origin; dangling binding: to a vector
    that is in no part. Rows count from 1 within their file.

    Raises:
        DataError: no table, or a header that cannot be read.
    """
    path = Path(path)
    report = Report(path=str(path), first=first)
    header = read_header(path)
    parts = live(_parts(path, header, report))
    for part in parts:
        _check_part(part, report)
    _check_index(path, parts, report)
    keys = _check_keys(parts, report)
    try:
        bindings = BindingsFile(path).read()
    except DataError as error:
        report.add("bindings", BINDINGS, None, None, str(error))
    else:
        _check_bindings(bindings, keys, report)
        report.rows = {"vectors": sum(map(len, parts)), "bindings": len(bindings.table)}
    return report


def _parts(path: Path, header: TableHeader, report: Report) -> list[Part]:
    """The parts that open; the others are reported."""
    parts = []
    for file in part_paths(path):
        try:
            parts.append(Part.open(file, header))
        except FileNotFoundError:
            continue  # replaced meanwhile
        except DataError as error:
            report.add("part", file.name, None, None, str(error))
    return parts


def _check_part(part: Part, report: Report) -> None:
    name = part.path.name
    if not part.intact:
        message = f"its sha256 is not the one in its name; {DELETE_PART}"
        report.add("checksum", name, None, None, message)
    bad = np.flatnonzero(~np.isfinite(part.vectors).all(1))
    for row in bad[: report.first].tolist():
        report.add("non-finite vector", name, row + 1, "vector", DELETE_PART)
    report.add_uncounted("non-finite vector", len(bad))


def _check_keys(parts: list[Part], report: Report) -> SortedKeys:
    """Every key once; all of them, searchable."""
    keys = np.concatenate([NO_KEYS, *(part.keys for part in parts)])
    once, _ = distinct(keys)
    again = np.setdiff1d(np.arange(len(keys)), once)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    for row in again[: report.first].tolist():
        number = int(np.searchsorted(starts, row, side="right")) - 1
        report.add(
            "duplicate key", parts[number].path.name, row - int(starts[number]) + 1, "key",
            f"it is in the table before; {DELETE_PART}",
        )  # fmt: skip
    report.add_uncounted("duplicate key", len(again))
    return SortedKeys(*np.ascontiguousarray(keys[once].T))


def _check_index(path: Path, parts: list[Part], report: Report) -> None:
    """An index of other parts is only out of date; one of these parts must be theirs."""
    if not (path / INDEX).is_file():
        return
    message = "does not fit the parts; delete it, the next run writes it anew"
    try:
        batch = map_batch(path / INDEX)
        covered = json.loads((batch.schema.metadata or {})[INDEXED_PARTS])
        found = [batch.column(name).to_numpy() for name in ("high", "low", "row")]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        report.add("index", INDEX, None, None, f"unreadable ({error}); {message}")
        return
    if covered != [part.path.name for part in parts[: len(covered)]]:
        report.warnings.append(f"{INDEX} is of other parts and not used; the next run renews it")
        return
    if report.counts["checksum"]:
        return  # the keys of a damaged part say nothing of the index
    keys = np.concatenate([NO_KEYS, *(part.keys for part in parts[: len(covered)])])
    order = sort_keys(keys)
    if not all(map(np.array_equal, (keys[order, 0], keys[order, 1], order), found)):
        report.add("index", INDEX, None, None, message)


def _check_bindings(bindings: Bindings, keys: SortedKeys, report: Report) -> None:
    table = bindings.table
    owner = pc.binary_join_element_wise(
        table["owner_kind"], table["field"], table["owner_id"], "\x00"
    )
    codes = whole(owner.dictionary_encode()).indices.to_numpy()
    twice = np.ones(len(codes), bool)
    twice[np.unique(codes, return_index=True)[1]] = False
    lost = keys.find(bindings.keys) < 0
    for kind, rows, column, message in (
        ("bindings", twice, "owner_id", "is bound before; delete the file and run the embed "
         "command again, no text is encoded twice"),
        ("dangling binding", lost, "key", "is bound to a vector that is in no part; run the embed "
         "command again"),
    ):  # fmt: skip
        where = np.flatnonzero(rows)
        for row in where[: report.first].tolist():
            names = [table[name][row].as_py() for name in ("owner_kind", "owner_id", "field")]
            said = "{} {!r}, field {}: {}".format(*names, message)
            report.add(kind, BINDINGS, row + 1, column, said)
        report.add_uncounted(kind, len(where))
    fields = pc.unique(pc.binary_join_element_wise(table["owner_kind"], table["field"], "/"))
    for name in sorted(set(fields.to_pylist()) - set(bindings.origins)):
        message = f"{name}: it is not said what made its vectors; run the embed command again"
        report.add("bindings", BINDINGS, None, None, message)


class FieldSummary(BaseModel):
    """What is bound to a field: owners, different vectors, last confirmations (days, UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owners: int
    vectors: int
    oldest: date
    newest: date
    identity: VectorIdentity
    encoder: dict[str, Any]


class TableSummary(BaseModel):
    """What a table holds; `unbound`: vectors that nothing is bound to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    width: int
    dtype: str
    vectors: int
    unbound: int
    parts: int
    bytes: int
    fields: dict[str, FieldSummary]


def summarise(path: Path | str) -> TableSummary:
    """Summary of the table at `path`, without reading its vectors.

    Raises:
        DataError: no table, or a damaged file.
    """
    table = VectorTable(path)
    bindings = table.bindings
    used, _ = distinct(bindings.keys)
    fields = {}
    for name, origin in sorted(bindings.origins.items()):
        mine = bindings.of(*name.split("/", 1))
        if not len(mine):
            continue
        times = pc.min_max(mine["bound_at"]).as_py()
        fields[name] = FieldSummary(
            owners=len(mine),
            vectors=len(distinct(keys_of_arrow(whole(mine["key"])))[0]),
            oldest=_day(times["min"]),
            newest=_day(times["max"]),
            identity=origin.identity,
            encoder=origin.encoder,
        )
    return TableSummary(
        table=str(path),
        width=table.width,
        dtype=table.header.dtype,
        vectors=len(table),
        unbound=len(table) - int((table.rows(bindings.keys[used]) >= 0).sum()),
        parts=len(table.parts),
        bytes=sum(part.path.stat().st_size for part in table.parts),
        fields=fields,
    )


def _day(ts: int) -> date:
    return datetime.fromtimestamp(ts // 1_000_000, UTC).date()
