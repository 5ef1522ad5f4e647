"""Reading delimited text, JSON lines and Parquet with errors that name the file and the line."""

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.json as pj
import pyarrow.parquet as pq

from raysys.data.clock import now_us
from raysys.errors import DataError

TimeUnit = Literal["s", "ms", "us"]
_UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_YEAR_1 = -62_135_596_800_000_000
# Rows longer than a block are refused by the parser; bodies of articles are long.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Dialect:
    """How a delimited text file is written; without `header` the columns have given names."""

    delimiter: str = ","
    quoted: bool = True
    header: bool = True
    encoding: str = "utf-8"

    @property
    def quoting(self) -> Literal[0, 3]:
        """The csv module's name for `quoted`."""
        return csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE

    def rows(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """(physical line, fields) of every data row: slow, for finding where an error lies."""
        with path.open(encoding=self.encoding, errors="replace", newline="") as handle:
            reader = csv.reader(handle, delimiter=self.delimiter, quoting=self.quoting)
            rows = ((reader.line_num, row) for row in reader if row)
            if self.header:
                next(rows, None)
            yield from rows


CSV = Dialect()
TSV = Dialect(delimiter="\t")
RAW_TSV = Dialect(delimiter="\t", quoted=False, header=False)


@dataclass(frozen=True)
class Source:
    """A file as a table of N rows; text files are all strings until a column is converted.

    start: how many rows of the file come before, where it is read piece by piece.
    """

    path: Path
    table: pa.Table
    dialect: Dialect | None = None
    start: int = 0

    def __len__(self) -> int:
        """N."""
        return len(self.table)

    def where(self, row: int) -> str:
        """`FILE line 7` for text, `FILE row 6` (counted from 1) for Parquet."""
        row += self.start
        if self.dialect is not None:
            for index, (line, _) in enumerate(self.dialect.rows(self.path)):
                if index == row:
                    return f"{self.path} line {line}"
        elif self.path.suffix in (".jsonl", ".json", ".ndjson"):
            return f"{self.path} line {row + 1}"
        return f"{self.path} row {row + 1}"

    def column(self, name: str) -> pa.Array:
        """A column, in one piece.

        Raises:
            DataError: there is none of that name; the nearest is named. Or there are several.
        """
        if self.names.count(name) > 1:
            raise DataError(
                f"{self.path}: {self.names.count(name)} columns are called {name!r}; "
                "give each a name of its own"
            )
        if name not in self.table.column_names:
            raise DataError(f"{self.path}: no column {name!r}" + nearest(name, self.names))
        return combined(self.table[name])

    @property
    def names(self) -> list[str]:
        """Column names."""
        return list(self.table.column_names)

    def strings(self, name: str) -> pa.Array:
        """A column as strings, surrounding space removed; empty text becomes null."""
        column = self.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            if pa.types.is_nested(column.type):
                raise DataError(f"{self.path}: column {name!r} holds {column.type}, not text")
            if pa.types.is_floating(column.type) and whole(column):
                column = column.cast(pa.int64())
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
        return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)

    def required(self, name: str) -> pa.Array:
        """A column of strings without gaps.

        Raises:
            DataError: a value is missing.
        """
        column = self.strings(name)
        if column.null_count:
            row = first(column.is_null())
            raise DataError(f"{self.where(row)}: column {name!r} is empty")
        return column

    def floats(self, name: str) -> pa.Array:
        """A column as float64; empty text becomes null.

        Raises:
            DataError: a value is no finite number.
        """
        text = self.strings(name) if self.dialect is not None else self.column(name)
        try:
            values = text.cast(pa.float64())
            bad = pc.invert(pc.is_finite(values)).fill_null(False)
        except pa.ArrowInvalid:
            bad = pa.array([not _is_number(value) for value in text.to_pylist()])
        if pc.any(bad).as_py():
            row = first(bad)
            raise DataError(f"{self.where(row)}: column {name!r} is no number: {text[row]}")
        return values

    def integers(self, name: str) -> npt.NDArray[np.int64]:
        """A column of whole numbers without gaps, int64 [N].

        Raises:
            DataError: a value is missing or not whole.
        """
        values = self.floats(name)
        bad = pc.or_(values.is_null(), pc.not_equal(values, pc.round(values)).fill_null(True))
        if pc.any(bad).as_py():
            row = first(bad)
            shown = self.column(name)[row]
            raise DataError(f"{self.where(row)}: column {name!r} is no whole number: {shown}")
        return values.to_numpy(zero_copy_only=False).astype(np.int64)

    def labels(self, name: str) -> npt.NDArray[np.bool_]:
        """A column of 0 and 1, or of booleans, without gaps, as booleans [N].

        Raises:
            DataError: a value is missing or another one.
        """
        column = self.column(name)
        if pa.types.is_boolean(column.type):
            if column.null_count:
                row = first(column.is_null())
                raise DataError(f"{self.where(row)}: column {name!r} is empty, it must be 0 or 1")
            return np.asarray(column.to_numpy(zero_copy_only=False), np.bool_)
        values = self.integers(name)
        bad = (values != 0) & (values != 1)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"{self.where(row)}: column {name!r} must be 0 or 1, not {values[row]}")
        return values == 1

    def times(self, name: str, form: str = "iso", *, timezone: str | None = None) -> pa.Array:
        """A column as µs UTC, int64; empty stays null, digits below a µs are cut.

        Args:
            form: `s`, `ms` or `us` since the epoch, `iso`, or a strptime pattern.
            timezone: of local times without an offset (`Europe/Berlin`); UTC if none.

        Raises:
            DataError: not a time in that form, or a time in the future or before the year 1.
        """
        column = self.column(name)
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(column.type):
            unit, kind = column.type.unit, pa.timestamp("us", column.type.tz)
            if unit in ("s", "ms"):
                numbers = column.cast(pa.int64()).cast(pa.float64(), safe=False)
                parsed = _microseconds(numbers, unit).cast(kind)
            else:
                parsed = column.cast(kind, safe=False)
        elif form in _UNIT_US:
            parsed = _microseconds(self.floats(name), form).cast(pa.timestamp("us", "UTC"))
        else:
            parsed = self._parsed(name, form)
        if parsed.type.tz is None and timezone is not None:
            parsed = pc.assume_timezone(
                parsed, timezone, ambiguous="earliest", nonexistent="latest"
            )
        parsed = parsed.cast(pa.int64())
        for bad, place in (
            (pc.greater(parsed, now_us()), "in the future"),
            (pc.less(parsed, _YEAR_1), "before the year 1"),
        ):
            if pc.any(bad).as_py():
                row = first(bad)
                shown = column[row].cast(pa.string())  # Python has no words for a far date
                raise DataError(
                    f"{self.where(row)}: column {name!r} lies {place}: {shown}; "
                    "check the unit and the clock that wrote the log"
                )
        return parsed

    def required_times(
        self, name: str, form: str = "iso", *, timezone: str | None = None
    ) -> pa.Array:
        """As `times`, without gaps.

        Raises:
            DataError: see `times`; or a value is missing.
        """
        ts = self.times(name, form, timezone=timezone)
        if ts.null_count:
            raise DataError(f"{self.where(first(ts.is_null()))}: column {name!r} is empty")
        return ts

    def _parsed(self, name: str, form: str) -> pa.Array:
        text = self.strings(name)
        if form == "iso":
            for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
                try:
                    return text.cast(kind)
                except pa.ArrowInvalid:
                    continue
            bad = pa.array([not _is_iso(value) for value in text.to_pylist()])
            if not pc.any(bad).as_py():  # with and without offset, mixed in one column
                moments = [_iso(value) for value in text.to_pylist()]
                return pa.array(moments, pa.timestamp("us", "UTC"))
        else:
            parsed = pc.strptime(text, format=form, unit="us", error_is_null=True)
            bad = pc.and_(parsed.is_null(), text.is_valid())
            if not pc.any(bad).as_py():
                return parsed
        row = first(bad)
        raise DataError(
            f"{self.where(row)}: column {name!r} is no time in the form {form!r}: {text[row]}"
        )


def _microseconds(numbers: pa.Array, unit: str) -> pa.Array:
    """Floats of a unit as int64 µs; what is too large for them becomes an end that no time is."""
    values = pc.round(pc.multiply(numbers, float(_UNIT_US[unit])))
    values = pc.min_element_wise(values, 9e18, skip_nulls=False)
    return pc.max_element_wise(values, -9e18, skip_nulls=False).cast(pa.int64())


def first(mask: pa.Array) -> int:
    """Index of the first true value of a mask."""
    return int(pc.index(mask, True).as_py())


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.Array):
        return column
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def whole(column: pa.Array) -> bool:
    """Whether a float column holds whole numbers only (ids that pandas made floats)."""
    return bool(pc.all(pc.equal(column, pc.round(column))).as_py())


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` or the list of what there is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _is_number(value: Any) -> bool:
    try:
        return value is None or bool(np.isfinite(float(value)))
    except ValueError:
        return False


def _iso(value: str | None) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_iso(value: str | None) -> bool:
    try:
        _iso(value)
    except ValueError:
        return False
    return True


def require_file(path: Path) -> Path:
    """`path`, if it is a file.

    Raises:
        DataError: it is not.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path


@contextmanager
def csv_parsing(
    path: Path, dialect: Dialect, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Options for a reader of `pyarrow.csv`, whose errors then name the line.

    Raises:
        DataError: see `read_text`.
    """
    require_file(path)
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    names = list(columns or [])
    if dialect.header:
        encoding = "utf-8-sig" if dialect.encoding == "utf-8" else dialect.encoding
        with path.open(encoding=encoding, errors="replace", newline="") as handle:
            reader = csv.reader(handle, delimiter=dialect.delimiter, quoting=dialect.quoting)
            names = next(reader, [])
    try:
        yield dict(
            read_options=pv.ReadOptions(
                column_names=names,
                skip_rows=1 if dialect.header else 0,
                block_size=_BLOCK,
                encoding=dialect.encoding,
            ),
            parse_options=pv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char='"' if dialect.quoted else False,
                newlines_in_values=dialect.quoted,
            ),
            convert_options=pv.ConvertOptions(column_types={n: pa.string() for n in names}),
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {dialect.encoding} text ({error})") from error
    except pa.ArrowInvalid as error:
        for line, fields in dialect.rows(path):
            if len(fields) != len(names):
                raise DataError(
                    f"{path} line {line}: {len(fields)} columns where {len(names)} are expected "
                    f"({', '.join(names)})"
                ) from error
        raise DataError(f"{path}: {error}") from error


def read_text(path: Path, dialect: Dialect, columns: Sequence[str] | None = None) -> Source:
    """Read a delimited file; `columns` names them where there is no header.

    Raises:
        DataError: a row with too few or too many fields, or bytes that are not the dialect's
            encoding.
    """
    with csv_parsing(path, dialect, columns) as options:
        return Source(path, pv.read_csv(path, **options), dialect)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Source:
    """Read a Parquet file.

    Raises:
        DataError: missing, truncated, or without one of `columns`.
    """
    require_file(path)
    try:
        names = pq.read_schema(path).names
        for name in columns or ():
            if name not in names:
                raise DataError(f"{path}: no column {name!r}" + nearest(name, names))
        return Source(
            path, pq.read_table(path, columns=list(columns) if columns else None, partitioning=None)
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: unreadable Parquet file ({error})") from error


def read_json_lines(path: Path) -> Source:
    """Read one JSON object per line.

    Raises:
        DataError: a line is no JSON object; it is named.
    """
    require_file(path)
    try:
        return Source(path, pj.read_json(path, read_options=pj.ReadOptions(block_size=_BLOCK)))
    except pa.ArrowInvalid as error:
        with path.open(encoding="utf-8", errors="replace") as handle:
            for line, text in enumerate(handle, 1):
                try:
                    good = not text.strip() or isinstance(json.loads(text), dict)
                except json.JSONDecodeError:
                    good = False
                if not good:
                    raise DataError(f"{path} line {line}: no JSON object") from error
        raise DataError(f"{path}: {error}") from error


def read_any(path: Path) -> Source:
    """Read a file by its ending: .parquet, .jsonl/.ndjson/.json, .tsv, and .csv or else."""
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return read_parquet(path)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return read_json_lines(path)
    return read_text(path, TSV if suffix in (".tsv", ".tab") else CSV)
