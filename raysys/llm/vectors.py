"""The vector table: frozen text vectors by content, and what they are bound to.

DIR/table.json           format, width, dtype
DIR/part-NNNNNN-HASH.arrow  keys and vectors of one commit; HASH is of the file's own bytes
DIR/index.arrow          all keys in order with their rows; rebuilt from the parts if missing
DIR/bindings.parquet     (owner_kind, owner_id, field, key, bound_at)
DIR/.lock                held by the one writer

Files are never changed, only added, replaced by renaming and deleted: whoever has opened a table
keeps reading it as it was then, while one writer appends or compacts.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.errors import ConfigError, DataError
from raysys.llm.bindings import Bindings, BindingsFile, whole
from raysys.llm.keys import (
    NO_KEYS,
    Keys,
    SortedKeys,
    VectorIdentity,
    keys_of_arrow,
    sort_keys,
)
from raysys.llm.parts import Part, TableHeader, map_batch, open_parts, read_header

INDEX = "index.arrow"
INDEXED_PARTS = b"raysys.parts"  # metadata of the index: the parts it covers


class VectorTable:
    """A table opened for reading: what was committed at that time.

    Opening maps files and reads next to nothing. verify: also compare the index with the parts,
    as the writer must, whose look-ups decide what is stored twice.

    Raises:
        DataError: no table, a damaged header or part.
    """

    def __init__(self, path: Path | str, *, verify: bool = False) -> None:
        self.path = Path(path)
        self.header: TableHeader = read_header(self.path)
        # Bindings first: a writer appends before it binds, so every bound key is in a part.
        self._file = BindingsFile(self.path)
        self.parts = open_parts(self.path, self.header)
        self._starts: list[int] = [0, *np.cumsum([len(part) for part in self.parts]).tolist()]
        self._segments: list[tuple[SortedKeys, npt.NDArray[np.int64]]] = []
        self._fields: dict[tuple[str, str], BoundField] = {}
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
    def worth_indexing(self) -> bool:
        """Whether enough lies outside of the stored index that it should be written anew, which
        takes as long as the table is big; what it lacks, readers sort themselves."""
        outside = len(self) - self._starts[self._covered]
        return outside > len(self) / 16 or len(self.parts) - self._covered > 16

    @property
    def all_keys(self) -> Keys:
        """Keys [N, 2] in row order."""
        return np.concatenate([NO_KEYS, *(part.keys for part in self.parts)])

    @cached_property
    def bindings(self) -> Bindings:
        """All bindings. Raises DataError: their file is damaged."""
        return self._file.read()

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
        return self.gather(self.rows(keys))

    def gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Vectors [N, D] float32 of rows [N]; zeros for -1. Each mapped part is read once, front
        to back."""
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

    def field(
        self, owner_kind: str, field: str, identity: VectorIdentity | None = None
    ) -> "BoundField":
        """What is bound to a field of one kind of owner; kept open for further calls.

        identity: what the reader expects its vectors to be made with.

        Raises:
            ConfigError: nothing at all is bound to this kind of owner and field.
            DataError: its vectors are stale: made with another model, adapter, template version
                or the like than `identity`.
        """
        origin = self.bindings.origins.get(f"{owner_kind}/{field}")
        if origin is None:
            known = ", ".join(self.bindings.origins) or "nothing"
            raise ConfigError(
                f"{self.path}: no vector is bound to {owner_kind}/{field} (bound: {known}); "
                f"run the embed command with this field"
            )
        if identity is not None:
            _refuse_stale(f"{self.path}: {owner_kind}/{field}", origin.identity, identity)
        if (owner_kind, field) not in self._fields:
            mine = self.bindings.of(owner_kind, field)
            rows = self.rows(keys_of_arrow(whole(mine["key"])))
            self._fields[owner_kind, field] = BoundField(self, mine["owner_id"].to_pylist(), rows)
        return self._fields[owner_kind, field]

    def bound(
        self,
        owner_kind: str,
        field: str,
        owner_ids: pa.Array | Sequence[str | None],
        identity: VectorIdentity | None = None,
    ) -> npt.NDArray[np.float32]:
        """Vectors [N, D] float32 bound to a field of N owners; zeros for owners without one.

        Raises:
            ConfigError, DataError: as `field`.
        """
        return self.gather(self.field(owner_kind, field, identity).rows(owner_ids))

    def encoders(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(owner_kind, field) -> the encoder whose vectors are bound to it."""
        found = {}
        for name, origin in self.bindings.origins.items():
            kind, _, field = name.partition("/")
            found[kind, field] = origin.encoder
        return found

    def add(self, part: Part) -> None:
        """Take in a part that the writer has just committed."""
        self._segments.append(_segment(part.keys, len(self)))
        self.parts.append(part)
        self._starts.append(len(self) + len(part))

    def _read_index(self, verify: bool) -> int:
        """Take the stored index if it fits; how many parts it covers."""
        try:
            batch = map_batch(self.path / INDEX)
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


class BoundField:
    """Vectors of a field by owner, gathered from the mapped parts; holds ids and rows only.

    owner_ids: M distinct ids; rows: [M] of their vectors in `table`.
    """

    def __init__(
        self, table: VectorTable, owner_ids: Sequence[str], rows: npt.NDArray[np.int64]
    ) -> None:
        self.table = table
        self._row: dict[str | None, int] = dict(zip(owner_ids, rows.tolist(), strict=True))

    def rows(self, owner_ids: pa.Array | Sequence[str | None]) -> npt.NDArray[np.int64]:
        """Rows [N] of N owners in the table; -1 for an owner without a vector, and for None."""
        ids = owner_ids.to_pylist() if isinstance(owner_ids, pa.Array) else owner_ids
        return np.fromiter((self._row.get(i, -1) for i in ids), np.int64, len(ids))

    def gather(
        self, owner_ids: pa.Array | Sequence[str | None]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """(vectors [N, D] float32 of N owners, zeros where there is none; found [N])."""
        rows = self.rows(owner_ids)
        return self.table.gather(rows), rows >= 0


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


def _refuse_stale(where: str, stated: VectorIdentity, wanted: VectorIdentity) -> None:
    found, expected = stated.model_dump(), wanted.model_dump()
    other = [name for name in expected if found[name] != expected[name]]
    if other:
        differences = ", ".join(f"{n} {found[n]!r}, not {expected[n]!r}" for n in other)
        raise DataError(
            f"{where} is stale: its vectors were made with {differences}; run the embed command "
            "again"
        )


def _segment(keys: Keys, first_row: int) -> tuple[SortedKeys, npt.NDArray[np.int64]]:
    """Keys [n, 2] of consecutive rows made searchable."""
    order = sort_keys(keys)
    high, low = (np.ascontiguousarray(keys[order, half]) for half in (0, 1))
    return SortedKeys(high, low), order + first_row
