"""Impressions as flat candidate rows and back: no per-row Python.

Flat form: owner [R] impression number, ascending; item [R]; label [R].
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def offsets_of(owner: Int64Array, count: int) -> pa.Array:
    """List offsets [count + 1] for rows whose ascending owners are `owner`."""
    sizes = np.bincount(owner, minlength=count)
    return pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())


def to_lists(owner: Int64Array, items: pa.Array, count: int) -> pa.Array:
    """Items [R] of ascending owners as `count` lists, empty ones included."""
    return pa.ListArray.from_arrays(offsets_of(owner, count), items)


def candidate_lists(
    owner: Int64Array, items: pa.Array, label: BoolArray, count: int
) -> tuple[pa.Array, pa.Array]:
    """Candidate and click lists of `count` impressions."""
    chosen = np.flatnonzero(label)
    clicks = to_lists(owner[chosen], items.take(pa.array(chosen)), count)
    return to_lists(owner, items, count), clicks


def merge_duplicates(
    owner: Int64Array, items: pa.Array, label: BoolArray
) -> tuple[Int64Array, pa.Array, BoolArray, int]:
    """One row per (owner, item), label = max, first places kept; and how many rows went."""
    codes = codes_of(items)
    key = owner * (int(codes.max(initial=0)) + 1) + codes
    _, kept, inverse = np.unique(key, return_index=True, return_inverse=True)
    clicked = np.zeros(len(kept), bool)
    np.logical_or.at(clicked, inverse, label)
    order = np.argsort(kept)
    rows = kept[order]
    return owner[rows], items.take(pa.array(rows)), clicked[order], len(owner) - len(rows)


def codes_of(values: pa.Array) -> Int64Array:
    """Codes [N] of N strings in order of first appearance; −1 where null."""
    indices = pc.dictionary_encode(values).indices.fill_null(-1)
    return indices.to_numpy(zero_copy_only=False).astype(np.int64)


def pair_codes(first: Int64Array, second: Int64Array) -> Int64Array:
    """Codes [N] of N pairs in order of first appearance; `first` holds small codes."""
    code = pd.factorize(second)[0].astype(np.int64)
    return pd.factorize(first * (int(code.max(initial=0)) + 1) + code)[0].astype(np.int64)


def shuffled_within(owner: Int64Array, hashes: npt.NDArray[np.uint64]) -> Int64Array:
    """Row order [R] that keeps owners ascending and follows `hashes` within each.

    A list that we build must not tell by its order what was clicked.
    """
    return np.lexsort((hashes, owner))


def running_number(owner: Int64Array) -> Int64Array:
    """Place [R] of each row among the rows of its owner; equal owners must be adjacent."""
    if not len(owner):
        return np.zeros(0, np.int64)
    start = np.r_[True, owner[1:] != owner[:-1]]
    index = np.arange(len(owner))
    return index - np.maximum.accumulate(np.where(start, index, 0))


def strings(values: Any) -> pa.Array:
    """Python strings as an Arrow array."""
    return pa.array(values, pa.string())


def numbered(prefix: str, numbers: Int64Array, digits: int = 7) -> pa.Array:
    """Ids like `i0000042`: text order is number order."""
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(prefix, padded, "")
