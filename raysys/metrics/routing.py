"""Hashes that mean the same on every machine, and rows sent to the shard that owns their group."""

from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.errors import MetricError
from raysys.metrics.blocks import Ints
from raysys.metrics.scored import Ids, ScoredRows

Hashes = NDArray[np.uint64]


def stable_hash(strings: Iterable[str]) -> Hashes:
    """[U] uint64, the first 8 bytes (little endian) of BLAKE2b over the UTF-8 string."""
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in strings)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def hash_ids(values: pa.Array) -> Hashes:
    """[U] `stable_hash` of the distinct strings of `Ids.values`."""
    return stable_hash(values.to_pylist())


def shard_of(ids: Ids, world_size: int) -> Ints:
    """[N] the shard of each row: hash(id) mod world size, so a group is never split."""
    if world_size < 1:
        raise MetricError(f"world size is {world_size}; it must be at least 1")
    shard = (hash_ids(ids.values) % np.uint64(world_size)).astype(np.int64)
    owned: Ints = shard[ids.codes]
    return owned


def route(
    rows: ScoredRows, key: Literal["impression", "user"], world_size: int
) -> list[ScoredRows]:
    """One part per shard. By `user` also keeps impressions whole, as each has one user.

    Counts of empty groups travel with shard 0. A shard may get no row.
    """
    shard = shard_of(rows.ids(key), world_size)
    parts = [rows.take(np.flatnonzero(shard == rank)) for rank in range(world_size)]
    return [replace(parts[0], empty=rows.empty), *parts[1:]]
