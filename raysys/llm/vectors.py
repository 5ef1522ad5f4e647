"""The vector table: frozen text vectors by content, and what they are bound to.

DIR/table.json           format, width, dtype
DIR/part-NNNNNN-HASH.arrow  keys and vectors of one commit; HASH is of the file's own bytes
DIR/index.arrow          all keys in order with their rows; rebuilt from the parts if missing
DIR/bindings.parquet     (owner_kind, owner_id, field, key)
DIR/.lock                held by the one writer

Parts are never changed, so any number of readers may map them while one writer appends.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysys.data.files import sha256_file
from raysys.errors import ConfigError, DataError
from raysys.llm.keys import KEY_TYPE, NO_KEYS, Keys, SortedKeys, distinct, keys_of_arrow, sort_keys

HEADER = "table.json"
INDEX = "index.arrow"
BINDINGS = "bindings.parquet"
INDEXED_PARTS = b"raysys.parts"  # metadata of the index: the parts it covers
ENCODERS = b"raysys.encoders"  # metadata of the bindings: "kind/field" -> encoder

BINDING_SCHEMA = pa.schema(
    [
        pa.field("owner_kind", pa.string(), nullable=False),
        pa.field("owner_id", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("key", KEY_TYPE, nullable=False),
    ]
)
ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


class TableHeader(BaseModel):
    """`table.json`: every vector of a table has this width and is stored in this dtype."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    width: int = Field(ge=1)
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the parts."""
        vector = pa.list_(ARROW_TYPES[self.dtype], self.width)
        return pa.schema([("key", KEY_TYPE), ("vector", vector)])


@dataclass(frozen=True)
class Part:
    """A mapped part of n rows; vectors [n, D] are a view of the file."""

    path: Path
    column: pa.FixedSizeBinaryArray
    vectors: npt.NDArray[Any]

    @classmethod
    def open(cls, path: Path, header: TableHeader) -> "Part":
        """Map a part; its structure is checked here, its bytes by `VectorTable.check`.

        Raises:
            DataError: cut off, unreadable or of another width or dtype.
        """
        try:
            batch = _map_batch(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(path, str(error)) from error
        if not batch.schema.equals(header.schema):
            raise _damaged(path, f"its columns are not those of {HEADER}")
        values = batch.column("vector").values.to_numpy(zero_copy_only=True)
        return cls(path, batch.column("key"), values.reshape(len(batch), header.width))

    def __len__(self) -> int:
        return len(self.column)

    @property
    def keys(self) -> Keys:
        """Keys [n, 2], read and copied at each call."""
        return keys_of_arrow(self.column)


class VectorTable:
    """A table opened for reading: the parts that were committed at that time.

    Opening maps files and reads next to nothing. verify: also compare the index with the parts,
    as the writer must, whose look-ups decide what is stored twice.

    Raises:
        DataError: no table, a damaged header or part.
    """

    def __init__(self, path: Path | str, *, verify: bool = False) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        self.parts = [Part.open(part, self.header) for part in part_paths(self.path)]
        self._starts: list[int] = [0, *np.cumsum([len(part) for part in self.parts]).tolist()]
        self._segments: list[tuple[SortedKeys, npt.NDArray[np.int64]]] = []
        self._covered = self._read_index(verify)
        rest = slice(self._covered, None)
        for row, part in zip(self._starts[rest], self.parts[rest], strict=False):
            self._segments.append(_segment(part.keys, row))

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def width(self) -> int:
        """Width D of the vectors."""
        return self.header.width

    @property
    def indexed(self) -> bool:
        """Whether the stored index covers all parts."""
        return self._covered == len(self.parts)

    @property
    def all_keys(self) -> Keys:
        """Keys [N, 2] in row order."""
        return np.concatenate([NO_KEYS, *(part.keys for part in self.parts)])

    def rows(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Rows [N] of keys [N, 2]; -1 where the table has none."""
        out = np.full(len(keys), -1, np.int64)
        for segment, rows in self._segments:
            place = segment.find(keys)
            found = place >= 0
            out[found] = rows[place[found]]
        return out

    def get(self, keys: Keys) -> npt.NDArray[np.float32]:
        """Vectors [N, D] float32 of keys [N, 2]; zeros where the table has none."""
        return self._gather(self.rows(keys))

    def bound(
        self, owner_kind: str, field: str, owner_ids: pa.Array | Sequence[str | None]
    ) -> npt.NDArray[np.float32]:
        """Vectors [N, D] float32 bound to a field of N owners; zeros for owners without one.

        Raises:
            ConfigError: nothing at all is bound to this kind of owner and field.
        """
        ids, rows = self._bound_rows(owner_kind, field)
        wanted = owner_ids if isinstance(owner_ids, pa.Array) else pa.array(owner_ids, pa.string())
        place = pc.index_in(wanted, value_set=ids, skip_nulls=True).fill_null(-1)
        at = place.to_numpy(zero_copy_only=False)
        found = np.full(len(at), -1, np.int64)
        found[at >= 0] = rows[at[at >= 0]]
        return self._gather(found)

    def encoders(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(owner_kind, field) -> the encoder whose vectors are bound to it."""
        found = {}
        for name, encoder in read_encoders(self._bindings.schema).items():
            kind, _, field = name.partition("/")
            found[kind, field] = encoder
        return found

    def check(self) -> None:
        """Read every byte and verify it.

        Raises:
            DataError: a part whose bytes changed, a key twice, a non-finite vector, a binding to
                a key that the table lacks; names the file.
        """
        for part in self.parts:
            stated = part.path.stem.rsplit("-", 1)[1]
            if not sha256_file(part.path).startswith(stated):
                raise _damaged(part.path, "its sha256 is not the one in its name")
            if not np.isfinite(part.vectors).all():
                raise _damaged(part.path, "it holds a non-finite vector")
        keys = self.all_keys
        first, _ = distinct(keys)
        if len(first) < len(keys):
            again = int(np.setdiff1d(np.arange(len(keys)), first)[0])
            part = self.parts[int(np.searchsorted(self._starts, again, side="right")) - 1]
            raise _damaged(part.path, "it repeats a key of an earlier part")
        if not np.array_equal(self.rows(keys), np.arange(len(keys))):
            raise DataError(f"{self.path / INDEX}: does not fit the parts; delete it")
        bindings = self._bindings
        bound = keys_of_arrow(_array(bindings["key"]))
        lost = np.flatnonzero(self.rows(bound) < 0)
        if len(lost):
            row = bindings.slice(int(lost[0]), 1).to_pylist()[0]
            raise DataError(
                f"{self.path / BINDINGS}: {row['owner_kind']} {row['owner_id']!r}, field "
                f"{row['field']}: its vector is in no part; run the embed command again "
                f"({len(lost)} such bindings)"
            )

    def add(self, part: Part) -> None:
        """Take in a part that the writer has just committed."""
        self._segments.append(_segment(part.keys, len(self)))
        self.parts.append(part)
        self._starts.append(len(self) + len(part))

    def _gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Vectors [N, D] of rows [N]; zeros for -1. Each part is read once, front to back."""
        out = np.zeros((len(rows), self.width), np.float32)
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self._starts)
        for part, start, begin, end in zip(
            self.parts, self._starts, cuts, cuts[1:], strict=False
        ):  # fmt: skip
            if begin < end:
                chosen = order[begin:end]
                out[chosen] = part.vectors[rows[chosen] - start]
        return out

    def _read_index(self, verify: bool) -> int:
        """Take the stored index if it fits; how many parts it covers."""
        try:
            batch = _map_batch(self.path / INDEX)
            covered = json.loads((batch.schema.metadata or {})[INDEXED_PARTS])
            high, low, rows = (batch.column(name).to_numpy() for name in ("high", "low", "row"))
        except (pa.ArrowException, OSError, KeyError, ValueError):
            return 0
        if covered != [part.path.name for part in self.parts[: len(covered)]]:
            return 0
        if verify:
            keys = np.concatenate([NO_KEYS, *(part.keys for part in self.parts[: len(covered)])])
            order = sort_keys(keys)
            expected = (keys[order, 0], keys[order, 1], order)
            if not all(map(np.array_equal, expected, (high, low, rows))):
                return 0
        self._segments.append((SortedKeys(high, low), rows))
        return len(covered)

    @cached_property
    def _bindings(self) -> pa.Table:
        return read_bindings(self.path)

    @cached_property
    def _bound_cache(self) -> dict[tuple[str, str], tuple[pa.Array, npt.NDArray[np.int64]]]:
        return {}

    def _bound_rows(self, kind: str, field: str) -> tuple[pa.Array, npt.NDArray[np.int64]]:
        if (kind, field) not in self._bound_cache:
            table = self._bindings
            mine = table.filter(
                pc.and_(pc.equal(table["owner_kind"], kind), pc.equal(table["field"], field))
            )
            if not len(mine):
                known = ", ".join("/".join(pair) for pair in self.encoders()) or "nothing"
                raise ConfigError(
                    f"{self.path}: no vector is bound to {kind}/{field} (bound: {known}); "
                    f"run the embed command with this field"
                )
            rows = self.rows(keys_of_arrow(_array(mine["key"])))
            self._bound_cache[kind, field] = (_array(mine["owner_id"]), rows)
        return self._bound_cache[kind, field]


def read_header(path: Path) -> TableHeader:
    """`table.json`. Raises DataError: missing, damaged or of another format."""
    file = path / HEADER
    if not file.is_file():
        raise DataError(f"{path} is no vector table: {HEADER} is missing")
    try:
        return TableHeader.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{file}: damaged or of another format ({error.errors()[0]['msg']})"
        ) from error


def read_bindings(path: Path) -> pa.Table:
    """`bindings.parquet`, or an empty table. Raises DataError if it is damaged."""
    file = path / BINDINGS
    if not file.is_file():
        return BINDING_SCHEMA.empty_table()
    try:
        return pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file}: damaged ({error}); delete it and run the embed command again, "
            "no text is encoded twice"
        ) from error


def read_encoders(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """ "kind/field" -> encoder, from the metadata of the bindings."""
    found: dict[str, dict[str, Any]] = json.loads((schema.metadata or {}).get(ENCODERS, b"{}"))
    return found


def part_paths(path: Path) -> list[Path]:
    """The committed parts in order."""
    return sorted(path.glob("part-*.arrow"))


def index_batch(table: VectorTable) -> pa.RecordBatch:
    """The sorted index over all parts of an opened table."""
    keys = table.all_keys
    order = sort_keys(keys)
    names = json.dumps([part.path.name for part in table.parts])
    columns = {"high": keys[order, 0], "low": keys[order, 1], "row": order}
    batch = pa.RecordBatch.from_pydict({k: np.ascontiguousarray(v) for k, v in columns.items()})
    return batch.replace_schema_metadata({INDEXED_PARTS: names.encode()})


def iter_text(column: pa.Array, size: int = 65_536) -> Iterator[list[str]]:
    """Python strings of a string column, `size` at a time."""
    for begin in range(0, len(column), size):
        yield column.slice(begin, size).to_pylist()


def _segment(keys: Keys, first_row: int) -> tuple[SortedKeys, npt.NDArray[np.int64]]:
    """Keys [n, 2] of consecutive rows made searchable."""
    order = sort_keys(keys)
    high, low = (np.ascontiguousarray(keys[order, half]) for half in (0, 1))
    return SortedKeys(high, low), order + first_row


def _map_batch(path: Path) -> pa.RecordBatch:
    """The one batch of a mapped Arrow file.

    Arrow believes the lengths in a file, and a wrong one makes it read beyond the end, so the
    structure is validated before anything is touched.
    """
    batch = pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)
    batch.validate(full=True)
    for column in batch.columns:
        if column.null_count or (
            pa.types.is_fixed_size_list(column.type) and column.values.null_count
        ):
            raise pa.ArrowInvalid("it holds nulls")
    return batch


def _array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path}: damaged ({why}); delete it and run the embed command again: only the texts of "
        "this part are encoded anew"
    )
