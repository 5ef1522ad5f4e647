"""Files of a vector table: its header and its parts.

A part is one Arrow IPC file, `part-NNNNNN-HASH.arrow`, that is never changed. Its metadata says
when its rows were encoded and which older parts it replaces: renaming it into the folder is the
commit of all that at once, and no list of parts has to be kept in step with the files.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysys.data.files import full_disk, sha256_file
from raysys.errors import DataError
from raysys.llm.keys import KEY_TYPE, Keys, keys_of_arrow, keys_to_arrow

HEADER = "table.json"
WRITTEN = b"raysys.written"  # [[rows, µs UTC], ...]: when runs of rows were encoded
REPLACES = b"raysys.replaces"  # names of parts whose rows this one holds now

ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
# A listing that other processes keep changing under a reader settles within a few tries.
_TRIES = 20

Runs = tuple[tuple[int, int], ...]
FORMAT: Literal[2] = 2


class TableHeader(BaseModel):
    """`table.json`: every vector of a table has this width and is stored in this dtype."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = FORMAT
    width: int = Field(ge=1)
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the parts."""
        vector = pa.list_(ARROW_TYPES[self.dtype], self.width)
        return pa.schema([("key", KEY_TYPE), ("vector", vector)])

    @property
    def row_bytes(self) -> int:
        """Bytes of a key and its vector."""
        return KEY_TYPE.byte_width + self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Part:
    """A mapped part of n rows; vectors [n, D] are a view of the file.

    runs: (rows, µs UTC) of consecutive rows that were encoded at that time; replaces: names of
    the parts that this one stands for.
    """

    path: Path
    column: pa.FixedSizeBinaryArray
    vectors: npt.NDArray[Any]
    runs: Runs
    replaces: frozenset[str]

    @classmethod
    def open(cls, path: Path, header: TableHeader) -> "Part":
        """Map a part; its structure is checked here, its bytes by `check_table`.

        Raises:
            FileNotFoundError: there is none of that name.
            DataError: cut off, unreadable or of another width or dtype.
        """
        try:
            batch = map_batch(path)
            metadata = batch.schema.metadata or {}
            runs = tuple((int(rows), int(at)) for rows, at in json.loads(metadata[WRITTEN]))
            replaces = frozenset(json.loads(metadata[REPLACES]))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(path, str(error)) from error
        if not batch.schema.equals(header.schema):
            raise damaged(path, f"its columns are not those of {HEADER}")
        if sum(rows for rows, _ in runs) != len(batch):
            raise damaged(path, "its times are not those of its rows")
        values = batch.column("vector").values.to_numpy(zero_copy_only=True)
        vectors = values.reshape(len(batch), header.width)
        return cls(path, batch.column("key"), vectors, runs, replaces)

    def __len__(self) -> int:
        return len(self.column)

    @property
    def keys(self) -> Keys:
        """Keys [n, 2], read and copied at each call."""
        return keys_of_arrow(self.column)

    @property
    def written(self) -> npt.NDArray[np.int64]:
        """When each row [n] was encoded, µs UTC."""
        return np.repeat([at for _, at in self.runs], [rows for rows, _ in self.runs])

    @property
    def intact(self) -> bool:
        """Whether the file's bytes are those that its name states; reads all of them."""
        return sha256_file(self.path).startswith(self.path.stem.rsplit("-", 1)[1])


def read_header(path: Path) -> TableHeader:
    """`table.json`. Raises DataError: missing, damaged or of another format."""
    file = path / HEADER
    if not file.is_file():
        raise DataError(f"{path} is no vector table: {HEADER} is missing")
    try:
        return TableHeader.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{file}: damaged or of another format ({error.errors()[0]['msg']}); choose another "
            "table folder, or delete this one and run the embed command again"
        ) from error


def part_paths(path: Path) -> list[Path]:
    """Files of parts in order, replaced ones included, as they stood at one moment.

    A listing that overlaps a compaction may have missed both the old parts and the new one; two
    that agree have not.
    """
    found = sorted(path.glob("part-*.arrow"))
    for _ in range(_TRIES):
        again = sorted(path.glob("part-*.arrow"))
        if again == found:
            break
        found = again
    return found


def open_parts(path: Path, header: TableHeader) -> list[Part]:
    """The live parts in order.

    Raises:
        DataError: a damaged part, or a folder that never comes to rest.
    """
    for _ in range(_TRIES):
        try:
            parts = [Part.open(file, header) for file in part_paths(path)]
        except FileNotFoundError:  # replaced meanwhile
            continue
        return live(parts)
    raise DataError(f"{path}: its parts are being replaced faster than they can be opened")


def live(parts: Sequence[Part]) -> list[Part]:
    """The parts that no other one replaces."""
    gone = frozenset().union(*(part.replaces for part in parts))
    return [part for part in parts if part.path.name not in gone]


def write_part(
    path: Path,
    header: TableHeader,
    number: int,
    keys: Keys,
    vectors: npt.NDArray[Any],
    runs: Runs,
    replaces: Sequence[str] = (),
) -> Path:
    """Commit keys [n, 2] and vectors [n, D] as part `number`; its file.

    Raises:
        StorageFullError: the disk is full; nothing is left of the part.
    """
    stated = {WRITTEN: json.dumps(runs), REPLACES: json.dumps(sorted(replaces))}
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    batch = pa.record_batch(
        [keys_to_arrow(keys), pa.FixedSizeListArray.from_arrays(flat, header.width)],
        schema=header.schema.with_metadata(stated),
    )
    temporary = path / ".part.tmp"
    with full_disk_in_words(path):
        try:
            write_arrow(temporary, batch)
            digest = sha256_file(temporary)[:16]
            final = path / f"part-{number:06d}-{digest}.arrow"
            os.replace(temporary, final)
            sync(path)
        finally:
            temporary.unlink(missing_ok=True)
    return final


def part_number(path: Path) -> int:
    """The number in a part's name."""
    return int(path.name.split("-")[1])


def map_batch(path: Path) -> pa.RecordBatch:
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


def write_arrow(path: Path, batch: pa.RecordBatch) -> None:
    """Write a file of one batch and flush it to the disk."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.tmp")
    with full_disk_in_words(path.parent):
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def full_disk_in_words(path: Path) -> AbstractContextManager[None]:
    """Turns a full disk into a StorageFullError that says what is kept."""
    return full_disk(
        f"no space left on the disk of {path}: the parts committed so far are kept; free "
        "some space and run the same command again"
    )


def damaged(path: Path, why: str) -> DataError:
    """The error of a damaged part, with its remedy."""
    return DataError(
        f"{path}: damaged ({why}); delete it and run the embed command again: only the texts of "
        "this part are encoded anew"
    )
