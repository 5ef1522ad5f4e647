"""Rows with prompts, from Parquet or JSON lines; what cannot be read of a row is its own fault."""

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.errors import ConfigError, DataError
from raysys.llm.texts import Unreadable, fault_of

Row = dict[str, Any] | Unreadable


@dataclass(frozen=True)
class PromptRows:
    """N prompts (None or something else than a text where a row has none), and the ids of their
    rows if a column of ids was named."""

    prompts: list[object]
    ids: list[str | None] | None = None


def read_prompts(
    path: Path, *, column: str = "prompt", template: str | None = None, id_column: str | None = None
) -> PromptRows:
    """Read a .parquet or .jsonl file; `template` words a prompt of the columns in its braces.

    Raises:
        ConfigError: another kind of file, a template with something else than columns in braces.
        DataError: no such file or column, no Parquet file.
    """
    columns = [column] if template is None else _names(template)
    wanted = list(dict.fromkeys([*columns, *([id_column] if id_column else [])]))
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    readers = {".parquet": _parquet, ".jsonl": _json_lines}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: rows come as .parquet or .jsonl, not {path.suffix or 'this'}")
    rows = readers[path.suffix](path, wanted)
    prompts = [_prompt(row, column, template, columns) for row in rows]
    ids = [_id(row, id_column) for row in rows] if id_column else None
    return PromptRows(prompts, ids)


def _names(template: str) -> list[str]:
    try:
        fields = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(f"template: {error}; write {{{{ and }}}} for braces") from error
    names = [name for name, *_ in fields]
    if not names or any(spec or conversion for _, spec, conversion in fields):
        raise ConfigError("template: give the columns it words in braces, e.g. 'Describe {name}.'")
    return [name or "" for name in names]


def _parquet(path: Path, wanted: list[str]) -> list[Row]:
    try:
        file = pq.ParquetFile(path)
        _need(path, wanted, file.schema_arrow.names)
        table = file.read(wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: no Parquet file ({error})") from error
    # As bytes: Arrow does not look whether a string is one, and decoding a column that holds one
    # bad row would fail as a whole.
    fields = [
        pa.field(field.name, pa.large_binary())
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        else field
        for field in table.schema
    ]
    return list(table.cast(pa.schema(fields)).to_pylist())


def _json_lines(path: Path, wanted: list[str]) -> list[Row]:
    rows: list[Row] = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            row = Unreadable(f"not UTF-8: {error.reason} at byte {error.start}")
        except json.JSONDecodeError as error:
            row = Unreadable(f"not JSON: {error.msg} at character {error.pos}")
        rows.append(row if isinstance(row, dict | Unreadable) else Unreadable("no JSON object"))
    named = {name for row in rows if isinstance(row, dict) for name in row}
    if named:
        _need(path, wanted, sorted(named))
    return rows


def _need(path: Path, wanted: list[str], there: list[str]) -> None:
    for name in wanted:
        if name not in there:
            raise DataError(f"{path}: no column {name!r}; there are {', '.join(there)}")


def _prompt(row: Row, column: str, template: str | None, columns: list[str]) -> object:
    if isinstance(row, Unreadable) or template is None:
        return row if isinstance(row, Unreadable) else row.get(column)
    values = {name: _as_text(row.get(name)) for name in columns}
    for name, value in values.items():
        if fault := fault_of(value):
            return Unreadable(f"column {name}: {fault}")
    return template.format_map(
        {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in values.items()
        }
    )


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _id(row: Row, column: str) -> str | None:
    value = None if isinstance(row, Unreadable) else _as_text(row.get(column))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value  # type: ignore[return-value]
