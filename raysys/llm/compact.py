"""Compaction: many small parts into few large ones, and what nobody uses any more dropped.

With a time to live, bindings go that no run has confirmed for so many days, then vectors that
nothing is bound to and that were encoded as long ago. A bound vector has no age: it never changes,
so one that is bound every night stays. One that a killed run has encoded but not bound yet is
young, and kept for the run that resumes it.
"""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from raysys.data.clock import now_us
from raysys.data.split import DAY_US
from raysys.errors import ConfigError
from raysys.llm.keys import SortedKeys, distinct
from raysys.llm.parts import Part, read_header
from raysys.llm.writer import TableWriter

# Large enough that a table has few, small enough to be copied in memory.
BYTES_PER_PART = 256 << 20

BoolArray = npt.NDArray[np.bool_]


class CompactReport(BaseModel):
    """What a compaction did; `dropped_*` are 0 without a time to live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    ttl_days: int | None
    parts_before: int
    parts: int
    vectors: int
    dropped_vectors: int
    dropped_bindings: int
    bytes_before: int
    bytes: int
    seconds: float


def compact(
    path: Path | str,
    ttl_days: int | None = None,
    *,
    now: int | None = None,
    bytes_per_part: int = BYTES_PER_PART,
) -> CompactReport:
    """Merge the parts of the table at `path`; with `ttl_days` also drop what is out of use.

    Readers that have the table open keep reading it as it was. Killed half-way, what is merged
    stays merged and nothing is lost. now: the present, µs UTC.

    Raises:
        ConfigError: ttl_days below 1.
        DataError: no table, another writer at work, or a damaged file.
        StorageFullError: the disk has no room for the merged parts.
    """
    if ttl_days is not None and ttl_days < 1:
        raise ConfigError(f"ttl_days={ttl_days}: a time to live is 1 day or more")
    started = time.monotonic()
    path = Path(path)
    with TableWriter(path, read_header(path)) as writer:
        before, bytes_before = writer.table.parts, _bytes(writer.table.parts)
        total, dropped_bindings = len(writer.table), 0
        kept = [np.ones(len(part), bool) for part in before]
        if ttl_days is not None:
            oldest = (now_us() if now is None else now) - ttl_days * DAY_US
            dropped_bindings = _expire(writer, oldest)
            kept = _in_use(writer, oldest)
        writer.replace(_groups(before, kept, bytes_per_part, writer.header.row_bytes))
        return CompactReport(
            table=str(path),
            ttl_days=ttl_days,
            parts_before=len(before),
            parts=len(writer.table.parts),
            vectors=len(writer.table),
            dropped_vectors=total - len(writer.table),
            dropped_bindings=dropped_bindings,
            bytes_before=bytes_before,
            bytes=_bytes(writer.table.parts),
            seconds=round(time.monotonic() - started, 3),
        )


def _expire(writer: TableWriter, oldest: int) -> int:
    """Drop bindings that were last confirmed before `oldest`; their number."""
    bindings = writer.bindings
    fresh = bindings.since(oldest)
    gone = len(bindings.table) - len(fresh.table)
    if gone:
        fresh.write(writer.path)
    return gone


def _in_use(writer: TableWriter, oldest: int) -> list[BoolArray]:
    """Rows [n] of each part that are bound, or were encoded at `oldest` or later."""
    keys = writer.bindings.keys
    first, _ = distinct(keys)
    bound = SortedKeys(*np.ascontiguousarray(keys[first].T))
    return [(part.written >= oldest) | (bound.find(part.keys) >= 0) for part in writer.table.parts]


def _groups(
    parts: list[Part], kept: list[BoolArray], bytes_per_part: int, row_bytes: int
) -> list[list[tuple[Part, BoolArray]]]:
    """What is to be merged into one part each: small parts together, and those with dead rows."""
    limit = max(1, bytes_per_part // row_bytes)
    groups: list[list[tuple[Part, BoolArray]]] = []
    open_rows = 0
    for part, rows in zip(parts, kept, strict=True):
        alive = int(rows.sum())
        if alive == len(part) and 2 * alive > limit:
            continue  # large enough, and nothing to drop
        if not groups or open_rows + alive > limit:
            groups.append([])
            open_rows = 0
        groups[-1].append((part, rows))
        open_rows += alive
    return [group for group in groups if len(group) > 1 or not group[0][1].all()]


def _bytes(parts: list[Part]) -> int:
    return sum(part.path.stat().st_size for part in parts)
