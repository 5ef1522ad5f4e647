"""metrics.jsonl: one JSON object per logged step and epoch, cut back exactly on resumption."""

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Append-only log whose length is part of each checkpoint.

    Cutting the file to the length it had at the checkpoint removes the lines of steps that are
    about to be done again (and a last line torn by a crash), so no step appears twice.
    """

    def __init__(self, path: Path, length: int) -> None:
        """Open `path` for appending after its first `length` bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if self._file.tell() > length:
            self._file.truncate(length)

    def append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Flush to the disk; gives the length in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()
