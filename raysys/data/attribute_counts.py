"""How often each attribute value was chosen in each context, before a given time; and shares."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysys.data.context_index import ContextIndex, UserContexts
from raysys.data.context_keys import ContextTable
from raysys.data.histories import Histories

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.int32]
Shares = npt.NDArray[np.float32]
CHUNK = 1 << 20  # events held at once


@dataclass(frozen=True)
class ContextCounts:
    """D(C) in whole numbers, by row of a context table (row 0: all contexts it does not know).

    values [1 + M, W] int64, fields side by side; events [1 + M] int64 with any value.
    """

    values: Ints
    events: Ints
    widths: tuple[int, ...]

    def supported(self, minimum: int) -> Ints:
        """Rows ≥ 1 with at least `minimum` events."""
        return 1 + np.flatnonzero(self.events[1:] >= minimum)

    def shares(self, table: ContextTable, strength: float) -> Shares:
        """Smoothed shares [1 + M, W]; they add up to 1 in each field.

        Each level of back-off is a Dirichlet prior of the given strength (in events) on the
        level below it: share = (count + strength·parent)/(total + strength). The parents drop
        the features of `table.drop` one after another; the root is the overall share, and the
        share of row 0.
        """
        nodes = self.node_shares(table, strength)
        return np.concatenate([nodes[-1:], nodes[: table.size - 1]])

    def node_shares(self, table: ContextTable, strength: float) -> Shares:
        """The shares of all contexts and parents, by number of `table.nodes`."""
        counts = self.values
        root = counts.sum(0, keepdims=True).astype(np.float64)
        root = shrink(root, np.ones_like(root), self.widths, 0.0)
        parent = np.repeat(root, len(counts) - 1, 0)
        levels = [root]
        for level in range(len(table.drop), -1, -1):
            _, first, group = np.unique(
                table.coarser(table.known_keys, level), return_index=True, return_inverse=True
            )
            total = np.zeros((len(first), counts.shape[1]))
            np.add.at(total, group, counts[1:])
            levels.append(shrink(total, parent[first], self.widths, strength))
            parent = levels[-1][group]
        return np.concatenate(levels[::-1]).astype(np.float32)


def shrink(
    counts: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    parent: npt.NDArray[np.floating],
    widths: Sequence[int],
    strength: float,
) -> npt.NDArray[np.float64]:
    """(count + strength·parent share)/(total + strength) in each field.

    counts, parent [n, W] → [n, W]. Where nothing divides, the field is uniform.
    """
    out = np.empty(counts.shape, np.float64)
    low = 0
    for width in widths:
        part = slice(low, low + width)
        mass = counts[:, part] + strength * parent[:, part]
        total = mass.sum(1, keepdims=True)
        out[:, part] = np.where(total > 0, mass / np.where(total > 0, total, 1), 1 / width)
        low += width
    return out


def tally(rows: Ints, values: Values, widths: Sequence[int], size: int) -> tuple[Ints, Ints]:
    """Counts [size, W] and events [size] of n events.

    rows [n] in 0..size − 1; values [n, F] of the chosen items, −1 where there is none.
    """
    total = int(sum(widths))
    counts = np.zeros(size * total, np.int64)
    low = 0
    for column, width in zip(values.T, widths, strict=True):
        real = column >= 0
        cells = rows[real] * total + low + column[real]
        counts += np.bincount(cells, minlength=size * total)
        low += width
    events = np.bincount(rows[(values >= 0).any(1)], minlength=size).astype(np.int64)
    return counts.reshape(size, total), events


def count_contexts(
    histories: Histories,
    table: ContextTable,
    values: Values,
    widths: tuple[int, ...],
    stop: Ints,
    behaviours: Sequence[int] = (),
) -> ContextCounts:
    """Count the events of all users, at most CHUNK at a time.

    Args:
        histories: N events of U users.
        table: the contexts to count.
        values: [2 + items, F] by item row, see `Attributes.encode`.
        widths: number of values of each field.
        stop: [U] exclusive event row of each user: `histories.end_before` of a time, or the
            last training pointer where there are no times.
        behaviours: codes of the events that count; none named: all.
    """
    counts = np.zeros((table.size, sum(widths)), np.int64)
    events = np.zeros(table.size, np.int64)
    kinds = np.array(behaviours, np.int8)
    for rows in rows_before(histories, stop):
        if len(kinds):
            rows = rows[np.isin(histories.behaviour[rows], kinds)]
        contexts = table.rows(event_keys(histories, table, rows))
        more, with_value = tally(contexts, values[histories.item[rows]], widths, table.size)
        counts += more
        events += with_value
    return ContextCounts(counts, events, widths)


def user_shares(
    index: ContextIndex,
    histories: Histories,
    contexts: UserContexts,
    values: Values,
    widths: tuple[int, ...],
    parent: Shares,
    strength: float,
) -> Shares:
    """Shares [S, W] of S user contexts, shrunk to the pooled shares of those contexts.

    parent [S, W]. Only the events that `contexts` counts are read.
    """
    node, position = index.events(contexts)
    begin = histories.start[contexts.user[contexts.request[node]]]
    chosen = values[histories.item[begin + position]]
    counts, _ = tally(node, chosen, widths, len(contexts.pair))
    return shrink(counts, parent, widths, strength).astype(np.float32)


def event_keys(histories: Histories, table: ContextTable, rows: Ints | slice) -> Ints:
    """Context keys of the events in `rows`."""
    translate = table.codec.translator(histories.codec)
    return table.keys(translate(histories.context[rows]))


def rows_before(histories: Histories, stop: Ints) -> Iterator[Ints]:
    """Rows of the events before each user's stop [U], at most CHUNK at a time."""
    start = histories.start[:-1]
    kept = np.maximum(stop - start, 0)
    ends = np.cumsum(kept)
    total = int(kept.sum())
    for low in range(0, total, CHUNK):
        number = np.arange(low, min(low + CHUNK, total))
        user = np.searchsorted(ends, number, side="right")
        yield start[user] + number - (ends - kept)[user]
