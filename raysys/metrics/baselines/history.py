"""Counting what a user's whole history before a request holds of one thing, for all rows at once.

Notation: N events of all users, R rows, M (code, event) pairs. An event may carry several codes
(entities) or none.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.contexts import FIRST
from raysys.data.prepared import Prepared
from raysys.metrics.baselines.rows import Rows
from raysys.metrics.blocks import Floats, Ints


@dataclass(frozen=True)
class CodedItems:
    """Codes of items, ragged. Item row i (0 padding, 1 unknown) owns offsets[i]:offsets[i + 1].

    codes: [S] ints from 0. n_codes: how many different ones there are.
    """

    offsets: Ints
    codes: Ints
    n_codes: int

    @classmethod
    def single(cls, code: Ints) -> "CodedItems":
        """code: [2 + items], −1 where an item has none."""
        has = code >= 0
        return cls(
            np.concatenate([[0], np.cumsum(has)]).astype(np.int64),
            code[has],
            int(code.max(initial=-1)) + 1,
        )

    def expand(self, items: Ints) -> tuple[Ints, Ints]:
        """items: [R] item rows -> (row [M], code [M]) of every code of every row."""
        size = self.offsets[items + 1] - self.offsets[items]
        begin = np.repeat(self.offsets[items] - (np.cumsum(size) - size), size)
        return np.repeat(np.arange(items.size), size), self.codes[begin + np.arange(size.sum())]


@dataclass(frozen=True)
class HistoryCounter:
    """All (code, event) pairs of all histories, sorted once.

    The events of one user are contiguous, so a count is the distance between two binary
    searches, however long the history is.
    """

    coded: CodedItems
    pairs: Ints
    events: int

    @classmethod
    def of(cls, data: Prepared, coded: CodedItems) -> "HistoryCounter":
        """Code every event of the data set."""
        events = data.histories.item.size + 1
        event, code = coded.expand(data.histories.item.astype(np.int64))
        return cls(coded, np.sort(code * events + event), events)

    def count(self, rows: Rows) -> Floats:
        """[R] over the codes of the row's item, how many history events carry each, summed."""
        row, wanted = self.coded.expand(rows.item)
        last = np.searchsorted(self.pairs, wanted * self.events + rows.end[row])
        first = np.searchsorted(self.pairs, wanted * self.events + rows.start[row])
        return np.bincount(row, weights=last - first, minlength=len(rows)).astype(np.float64)


def item_codes(data: Prepared) -> CodedItems:
    """Every known item is its own code."""
    code = np.arange(-FIRST, len(data.item_ids), dtype=np.int64)
    return CodedItems.single(np.maximum(code, -1))


def category_codes(data: Prepared) -> list[CodedItems]:
    """One coding per level of the category path; a code stands for the path from the root.

    Equal names below different parents are different categories.
    """
    lists = _column(data, "category")
    length = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    names = pc.list_flatten(lists).dictionary_encode()
    value = names.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    offset = np.concatenate([[0], np.cumsum(length)])[:-1]
    prefix = np.zeros(length.size, np.int64)
    levels = []
    for level in range(int(length.max(initial=0))):
        has = np.flatnonzero(length > level)
        path = prefix[has] * (len(names.dictionary) + 1) + value[offset[has] + level] + 1
        _, prefix[has] = np.unique(path, return_inverse=True)
        code = np.full(FIRST + length.size, -1, np.int64)
        code[FIRST + has] = prefix[has]
        levels.append(CodedItems.single(code))
    return levels


def entity_codes(data: Prepared) -> CodedItems:
    """The distinct entities of every item."""
    lists = _column(data, "entities")
    owner = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    ids = pc.struct_field(pc.list_flatten(lists), "id").dictionary_encode()
    known = ids.is_valid().to_numpy(zero_copy_only=False)
    code = ids.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    size = max(len(ids.dictionary), 1)
    pairs = np.unique(owner[known] * size + code[known])
    count = np.bincount(FIRST + pairs // size, minlength=FIRST + len(lists))
    return CodedItems(
        np.concatenate([[0], np.cumsum(count)]).astype(np.int64), pairs % size, len(ids.dictionary)
    )


def category_affinity(levels: list[HistoryCounter], rows: Rows) -> Floats:
    """[R] share of the history in the candidate's category, mean over the levels of its path.

    Smoothed by one event spread evenly over all categories of the level.
    """
    events = (rows.end - rows.start).astype(np.float64)
    shares = [(level.count(rows) + 1.0 / level.coded.n_codes) / (events + 1.0) for level in levels]
    mean: Floats = np.mean(shares, axis=0)
    return mean


def category_in_history(levels: list[HistoryCounter], rows: Rows) -> Floats:
    """[R] share of the levels of the candidate's category path that the history holds at all."""
    seen: Floats = np.mean([level.count(rows) > 0 for level in levels], axis=0)
    return seen


def _column(data: Prepared, name: str) -> pa.Array:
    column = data.dataset.table("items", [name])[name].combine_chunks()
    return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
