"""Uncompressed Arrow IPC columns that are memory-mapped without a copy."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_WIDTH = b"width"  # schema metadata: columns of a 2-D array, absent for a 1-D one


class ColumnFolder:
    """A folder with one Arrow file per column, one record batch each.

    One batch means one contiguous buffer, so that a read is a view of the mapped file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, values: npt.NDArray[Any] | pa.Array) -> None:
        """Write a column: a 1-D or 2-D array (rows of equal width) or an Arrow string array."""
        metadata = {}
        if isinstance(values, np.ndarray):
            if values.ndim == 2:
                metadata = {_WIDTH: str(values.shape[1]).encode()}
            array = pa.array(np.ascontiguousarray(values).reshape(-1))
            if metadata and values.shape[1] == 0:  # no buffer to tell the row count from
                array = pa.array(np.zeros(len(values), values.dtype))
        else:
            array = values
        field = pa.field(name, array.type, metadata=metadata)
        batch = pa.record_batch([array], schema=pa.schema([field]))
        sink = pa.OSFile(str(self.file(name)), "wb")
        with sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    def file(self, name: str) -> Path:
        """Path of a column."""
        return self.path / f"{name}.arrow"

    def _column(self, name: str) -> tuple[pa.Field, pa.Array]:
        source = pa.memory_map(str(self.file(name)), "r")
        batch = pa.ipc.open_file(source).get_batch(0)
        return batch.schema.field(0), batch.column(0)

    def read(self, name: str) -> npt.NDArray[Any]:
        """A numeric column as a read-only view of the mapped file."""
        field, array = self._column(name)
        values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=True)
        if _WIDTH not in (field.metadata or {}):
            return values
        width = int(field.metadata[_WIDTH])
        return values.reshape(-1, width) if width else values[:, None][:, :0]

    def read_strings(self, name: str) -> pa.Array:
        """A string column, mapped."""
        return self._column(name)[1]


class GrowingColumn:
    """A numeric column appended chunk by chunk with bounded memory, then made an Arrow file."""

    def __init__(
        self, folder: ColumnFolder, name: str, dtype: str, width: int | None = None
    ) -> None:
        self._folder = folder
        self._name = name
        self._dtype = np.dtype(dtype)
        self._width = width
        self._raw = folder.path / f"{name}.raw"
        self._handle = self._raw.open("wb")
        self.rows = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        """Append rows [n] or [n, width]."""
        # Not `tofile`, whose error on a full disk carries no errno.
        self._handle.write(np.ascontiguousarray(values, self._dtype).data)
        self.rows += len(values)

    def close(self) -> None:
        """Turn the raw bytes into the Arrow column and remove them."""
        self._handle.close()
        shape = (self.rows,) if self._width is None else (self.rows, self._width)
        values: npt.NDArray[Any] = np.zeros(shape, self._dtype)
        if values.size:
            values = np.memmap(self._raw, self._dtype, mode="r", shape=shape)
        self._folder.write(self._name, values)
        self._raw.unlink()
