"""The one writer of a vector table: commits parts atomically, binds owners to keys."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from filelock import FileLock, Timeout

from raysys.data.clock import now_us
from raysys.data.files import write_text
from raysys.errors import DataError
from raysys.llm.bindings import Bindings, BindingsFile, Origin, changed
from raysys.llm.keys import Keys, VectorIdentity, distinct
from raysys.llm.parts import (
    HEADER,
    Part,
    TableHeader,
    damaged,
    part_number,
    part_paths,
    read_header,
    replaced,
    sync,
    write_arrow,
    write_part,
)
from raysys.llm.vectors import INDEX, VectorTable, index_batch


class TableWriter:
    """Holds the lock of the table at `path` and makes the table if there is none::

        with TableWriter(path, TableHeader(width=384)) as writer:
            writer.append(keys, vectors)

    What `append` has committed stays, whatever happens afterwards. wait_s: how long another writer
    is waited for.

    Raises:
        DataError: another process is still writing, the table has another width or dtype, or is
            damaged.
    """

    def __init__(self, path: Path | str, header: TableHeader, *, wait_s: float = 0.0) -> None:
        self.path = Path(path)
        self.header = header
        self._lock = FileLock(self.path / ".lock", timeout=wait_s)

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
            self._open(verify=True)
            self._index_stale = not self.table.indexed
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._index_stale and self.table.worth_indexing:
                with replaced(self.path / INDEX) as temporary:
                    write_arrow(temporary, index_batch(self.table))
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
        if len(first):
            runs = ((len(first), now_us()),)
            path = write_part(
                self.path, self.header, self._next_number, keys[first], values[first], runs
            )
            self.table.add(Part.open(path, self.header))
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
        identity: VectorIdentity,
    ) -> int:
        """Bind a field of N owners to keys [N, 2]; where `present` [N] is false the owner has no
        text and loses its binding. Returns how many owners had another key before.

        encoder: what is to be known of the model; identity: what the keys were made with. A
        field holds vectors of one identity: under another one all its old bindings go.

        Raises:
            DataError: an owner twice, a damaged bindings file.
        """
        if len(owner_ids.unique()) < len(owner_ids):
            raise DataError(f"an id of {owner_kind} occurs twice; its {field} cannot be bound")
        old = self.bindings
        rebound = changed(old.of(owner_kind, field), owner_ids, keys, present)
        origin = Origin(identity=identity, encoder=encoder)
        new = old.upserted(owner_kind, field, owner_ids, keys, present, origin, now_us())
        new.write(self.path)
        return rebound

    @property
    def bindings(self) -> Bindings:
        """As they are on the disk now. Raises DataError: their file is damaged."""
        return BindingsFile(self.path).read()

    def replace(self, groups: Sequence[Sequence[tuple[Part, npt.NDArray[np.bool_]]]]) -> None:
        """Put one part in the place of each group of parts, with the rows [n] of each that are
        true; a group without any such row just goes.

        Readers see the old parts of a group or its new one, never both and never neither.

        Raises:
            DataError: a part whose bytes have changed.
            StorageFullError: the disk is full.
            After either, groups not yet replaced stay as they were.
        """
        self._index_stale = True
        try:
            for number, group in enumerate(groups, self._next_number):
                for part, _ in group:
                    if not part.intact:  # the new part's name would vouch for its bytes
                        raise damaged(part.path, "its sha256 is not the one in its name")
                runs = tuple(run for part, rows in group for run in _runs(part.written[rows]))
                if runs:
                    write_part(
                        self.path,
                        self.header,
                        number,
                        np.concatenate([part.keys[rows] for part, rows in group]),
                        np.concatenate([part.vectors[rows] for part, rows in group]),
                        runs,
                        [part.path.name for part, _ in group],
                    )
                for part, _ in group:
                    part.path.unlink()
        finally:
            self._open(verify=False)

    @property
    def _next_number(self) -> int:
        return max((part_number(part.path) for part in self.table.parts), default=-1) + 1

    def _open(self, *, verify: bool) -> None:
        """Open the table anew and delete what a compaction that was killed left behind."""
        self.table = VectorTable(self.path, verify=verify)
        alive = {part.path for part in self.table.parts}
        for path in part_paths(self.path):
            if path not in alive:
                path.unlink()
        sync(self.path)


def _runs(written: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs (rows, value) of equal consecutive values [n]."""
    cuts = np.flatnonzero(np.diff(written)) + 1
    return [(len(run), int(run[0])) for run in np.split(written, cuts) if len(run)]
