"""Files of requests: one JSON object a line, or a Parquet table. Checked whole, read by slices."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from raysys.data.contexts import ContextCodec
from raysys.data.requests import Fit, Request, Requests
from raysys.data.schema import CONTEXT_TYPES
from raysys.errors import DataError

_OPTIONAL = {
    "ts": pa.int64(),
    "tz_offset_min": pa.int16(),
    "history_end": pa.int64(),
    "context": None,
    "since": pa.int64(),
    "hidden": pa.list_(pa.string()),
}
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class RequestSlice:
    """`count` requests of a file from its line (JSONL, 1-based) or row (Parquet, 0-based) `first`.

    offset: the byte at which that line starts; 0 for Parquet.
    """

    path: Path
    first: int
    count: int
    offset: int


def cut(path: Path, size: int, fit: Fit) -> list[RequestSlice]:
    """Slices of `size` requests, the last one smaller; every request is checked.

    fit: what the model asks of requests.

    Raises:
        DataError: no such file, no request in it, or a bad one, with its line or row.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of requests")
    starts: list[tuple[int, int]] = []
    total = 0
    if path.suffix == ".jsonl":
        for line, offset, _ in _lines(path, 1, 0, fit):
            if total % size == 0:
                starts.append((line, offset))
            total += 1
    elif path.suffix == ".parquet":
        total = _checked_rows(path, fit)
        starts = [(row, 0) for row in range(0, total, size)]
    else:
        raise DataError(f"{path}: requests are read from .jsonl and .parquet files")
    if not total:
        raise DataError(f"{path}: holds no request")
    return [
        RequestSlice(path, first, min(size, total - part * size), offset)
        for part, (first, offset) in enumerate(starts)
    ]


def read(part: RequestSlice, fit: Fit) -> Requests:
    """The requests of a slice in columns."""
    if part.path.suffix == ".jsonl":
        lines = _lines(part.path, part.first, part.offset, fit)
        chosen = [request for _, (_, _, request) in zip(range(part.count), lines, strict=False)]
        return Requests.of(chosen, fit.codec)
    with _open(part.path) as file:
        start, skipped, groups = 0, 0, []
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start + rows <= part.first:
                skipped += rows
            elif start < part.first + part.count:
                groups.append(group)
            start += rows
        table = file.read_row_groups(
            groups, columns=_columns(part.path, file.schema_arrow, fit.codec)
        )
    return Requests.of_table(
        table.slice(part.first - skipped, part.count).combine_chunks(), fit.codec
    )


def _lines(path: Path, line: int, offset: int, fit: Fit) -> Iterator[tuple[int, int, Request]]:
    """(line, offset, request) from a place in the file on; empty lines are passed over."""
    with path.open("rb") as file:
        file.seek(offset)
        for number, text in enumerate(file, line):
            if text.strip():
                try:
                    request = Request.model_validate_json(text)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(str(step) for step in first["loc"])
                    message = first["msg"].removeprefix("Value error, ")
                    raise DataError(
                        f"{path}, line {number}: {where + ': ' if where else ''}{message}"
                    ) from error
                fault = fit.misfit(request)
                if fault:
                    raise DataError(f"{path}, line {number}: {fault}")
                yield number, offset, request
            offset += len(text)


def _checked_rows(path: Path, fit: Fit) -> int:
    with _open(path) as file:
        columns = _columns(path, file.schema_arrow, fit.codec)
        rows = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
            lists = batch["candidates"]
            holes = pc.list_parent_indices(lists).filter(pc.list_flatten(lists).is_null())
            faults = {
                columns[0]: batch[columns[0]].is_null(),
                "user_id": batch["user_id"].is_null(),
                "candidates": pc.or_(
                    pc.less(pc.fill_null(pc.list_value_length(lists), 0), 1),
                    pc.is_in(pa.array(range(len(batch))), value_set=holes.cast(pa.int64())),
                ),
            }
            for name, missing in faults.items():
                bad = pc.index(missing, True).as_py()
                if bad >= 0:
                    raise DataError(f"{path}, row {rows + bad}: {name} is missing or empty")
            if "history_end" in columns:
                bad = pc.index(pc.less(batch["history_end"], 0), True).as_py()
                if bad >= 0:
                    raise DataError(f"{path}, row {rows + bad}: history_end is less than 0")
            if "ts" in columns:
                bad = pc.index(pc.less(batch["ts"], fit.since), True).as_py()
                if bad >= 0:
                    fault = fit.early(batch["ts"][bad].as_py())
                    raise DataError(f"{path}, row {rows + bad}: {fault}")
            bad = _repeated(lists)
            if bad is not None:
                raise DataError(f"{path}, row {rows + bad}: a candidate is there twice")
            rows += len(batch)
    return rows


def _repeated(lists: pa.ListArray) -> int | None:
    """The first row of `lists` with a value twice."""
    owner = pc.list_parent_indices(lists).to_numpy()
    codes = pc.list_flatten(lists).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    keys = np.sort(owner.astype(np.int64) * (int(codes.max(initial=0)) + 1) + codes)
    again = keys[1:][keys[1:] == keys[:-1]]
    return int(again[0] // (int(codes.max(initial=0)) + 1)) if len(again) else None


def _columns(path: Path, schema: pa.Schema, codec: ContextCodec) -> list[str]:
    """The columns a request is made of, its id first; their types are checked."""
    key = "request_id" if "request_id" in schema.names else "impression_id"
    expected = {key: pa.string(), "user_id": pa.string(), "candidates": pa.list_(pa.string())}
    for name in expected:
        if name not in schema.names:
            raise DataError(f"{path}: column {name} is missing")
    for name, kind in {**expected, **_OPTIONAL}.items():
        if name in schema.names and kind is not None and schema.field(name).type != kind:
            raise DataError(
                f"{path}: column {name} is {schema.field(name).type}, it must be {kind}"
            )
    if "context" in schema.names:
        _check_context(path, schema.field("context").type, codec)
    return [*expected, *(name for name in _OPTIONAL if name in schema.names)]


def _check_context(path: Path, kind: pa.DataType, codec: ContextCodec) -> None:
    if not pa.types.is_struct(kind):
        raise DataError(f"{path}: column context is {kind}, it must be a struct")
    have = {field.name: field.type for field in kind}
    for feature in codec.features:
        wanted = CONTEXT_TYPES[feature.kind]
        if have.get(feature.name, wanted) != wanted:
            raise DataError(
                f"{path}: column context.{feature.name} is {have[feature.name]}, "
                f"it must be {wanted}"
            )


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: unreadable Parquet file ({error})") from error
