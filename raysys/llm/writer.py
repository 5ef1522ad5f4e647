"""The one writer of a vector table: commits parts atomically, binds owners to keys."""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from raysys.data.files import full_disk, sha256_file, write_text
from raysys.errors import DataError
from raysys.llm.keys import Keys, distinct, keys_of_arrow, keys_to_arrow
from raysys.llm.vectors import (
    BINDING_SCHEMA,
    BINDINGS,
    ENCODERS,
    HEADER,
    INDEX,
    Part,
    TableHeader,
    VectorTable,
    index_batch,
    read_bindings,
    read_encoders,
    read_header,
)


class TableWriter:
    """Holds the lock of the table at `path` and makes the table if there is none::

        with TableWriter(path, TableHeader(width=384)) as writer:
            writer.append(keys, vectors)

    What `append` has committed stays, whatever happens afterwards.

    Raises:
        DataError: another process is writing, the table has another width or dtype, or is
            damaged.
    """

    def __init__(self, path: Path | str, header: TableHeader) -> None:
        self.path = Path(path)
        self.header = header
        self._lock = FileLock(self.path / ".lock", timeout=0)

    def __enter__(self) -> "TableWriter":
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise DataError(
                f"{self.path}: another process is writing this vector table; wait for it to end"
            ) from error
        try:
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
            if not (self.path / HEADER).exists():
                write_text(self.path / HEADER, self.header.model_dump_json() + "\n")
            found = read_header(self.path)
            if found != self.header:
                raise DataError(
                    f"{self.path} holds {found.dtype} vectors of width {found.width}, not "
                    f"{self.header.dtype} of width {self.header.width}; use another table folder"
                )
            self.table = VectorTable(self.path, verify=True)
            self._index_stale = not self.table.indexed
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._index_stale and len(self.table):
                with _replaced(self.path / INDEX) as temporary:
                    _write_arrow(temporary, index_batch(self.table))
        finally:
            self._lock.release()

    def append(self, keys: Keys, vectors: npt.NDArray[Any]) -> int:
        """Commit the vectors [N, D] of keys [N, 2] that the table lacks as one part; their number.

        Raises:
            DataError: vectors of another shape, or a non-finite one.
            StorageFullError: the disk is full; earlier parts are kept.
        """
        if vectors.shape != (len(keys), self.header.width):
            raise DataError(
                f"the encoder gave vectors of shape {vectors.shape} for {len(keys)} texts; "
                f"{self.path} takes width {self.header.width}"
            )
        values = np.asarray(vectors, self.header.dtype)
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            raise DataError(f"the encoder gave a non-finite vector (text {int(bad[0])} of a part)")
        first, _ = distinct(keys)
        first = np.sort(first[self.table.rows(keys[first]) < 0])
        if not len(first):
            return 0
        batch = pa.record_batch(
            [
                keys_to_arrow(keys[first]),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(np.ascontiguousarray(values[first]).reshape(-1)), self.header.width
                ),
            ],
            schema=self.header.schema,
        )
        parts = self.table.parts
        number = int(parts[-1].path.name.split("-")[1]) + 1 if parts else 0
        temporary = self.path / ".part.tmp"
        with _full_disk_in_words(self.path):
            try:
                _write_arrow(temporary, batch)
                digest = sha256_file(temporary)[:16]
                final = self.path / f"part-{number:06d}-{digest}.arrow"
                os.replace(temporary, final)
                _sync(self.path)
            finally:
                temporary.unlink(missing_ok=True)
        self.table.add(Part.open(final, self.header))
        self._index_stale = True
        return len(first)

    def bind(
        self,
        owner_kind: str,
        field: str,
        owner_ids: pa.Array,
        keys: Keys,
        present: npt.NDArray[np.bool_],
        encoder: dict[str, Any],
    ) -> int:
        """Bind a field of N owners to keys [N, 2]; where `present` [N] is false the owner has no
        text and loses its binding. Returns how many owners had another key before.

        A field holds vectors of one encoder: under another one all its old bindings go.

        Raises:
            DataError: an owner twice, a damaged bindings file.
        """
        if len(owner_ids.unique()) < len(owner_ids):
            raise DataError(f"an id of {owner_kind} occurs twice; its {field} cannot be bound")
        old = read_bindings(self.path)
        encoders = read_encoders(old.schema)
        name = f"{owner_kind}/{field}"
        mine = pc.and_(pc.equal(old["owner_kind"], owner_kind), pc.equal(old["field"], field))
        before = old.filter(mine)
        rebound = _changed(before, owner_ids, keys, present)
        dropped = mine
        if encoders.get(name) == encoder:
            dropped = pc.and_(mine, pc.is_in(old["owner_id"], value_set=owner_ids))
        kept = old.filter(pc.invert(dropped))
        ids = owner_ids.filter(pa.array(present))
        new = pa.table(
            [
                pa.repeat(pa.scalar(owner_kind), len(ids)),
                ids,
                pa.repeat(pa.scalar(field), len(ids)),
                keys_to_arrow(keys[present]),
            ],
            schema=BINDING_SCHEMA,
        )
        encoders[name] = encoder
        merged = pa.concat_tables([kept.cast(BINDING_SCHEMA), new]).sort_by(
            [("owner_kind", "ascending"), ("field", "ascending"), ("owner_id", "ascending")]
        )
        metadata = {ENCODERS: json.dumps(encoders, sort_keys=True)}
        with _replaced(self.path / BINDINGS) as temporary:
            pq.write_table(merged.replace_schema_metadata(metadata), temporary, compression="zstd")
        return rebound


def _changed(
    before: pa.Table, owner_ids: pa.Array, keys: Keys, present: npt.NDArray[np.bool_]
) -> int:
    """Owners that were bound to another key than the one they get now."""
    if not len(before):
        return 0
    place = pc.index_in(owner_ids, value_set=before["owner_id"].combine_chunks()).fill_null(-1)
    at = place.to_numpy(zero_copy_only=False)
    both = (at >= 0) & present
    was = keys_of_arrow(before["key"].combine_chunks())[at[both]]
    return int((was != keys[both]).any(1).sum())


def _write_arrow(path: Path, batch: pa.RecordBatch) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _full_disk_in_words(path.parent):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _full_disk_in_words(path: Path) -> AbstractContextManager[None]:
    return full_disk(
        f"no space left on the disk of {path}: the parts committed so far are kept; free "
        "some space and run the same command again"
    )
