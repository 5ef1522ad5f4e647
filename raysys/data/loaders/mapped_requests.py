"""Requests of a mapped log: given as lists, given row by row, or derived from events."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.derived import derived_lists
from raysys.data.loaders.fold_history import FoldHistory, fold_history
from raysys.data.loaders.lists import (
    candidate_lists,
    codes_of,
    numbered,
    pair_codes,
    running_number,
    to_lists,
)
from raysys.data.loaders.mapped_columns import (
    Located,
    context_column,
    list_column,
    stacked,
    time_columns,
)
from raysys.data.loaders.mapping import Derived, GivenLists, GivenRows, Mapping
from raysys.data.loaders.reading import Source
from raysys.data.split import SplitArray, split_names
from raysys.errors import ConfigError, DataError

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Given:
    """I given requests and their R candidate rows, owners ascending.

    table: impression_id, user_id, context and, if known, ts, tz_offset_min, position.
    """

    table: pa.Table
    owner: Int64Array
    item: pa.Array
    click: BoolArray
    order: BoolArray

    def impressions(self, split: SplitArray, history_end: Int64Array | None) -> pa.Table:
        """The impressions table."""
        candidates, clicks = candidate_lists(self.owner, self.item, self.click, len(self.table))
        bought = np.flatnonzero(self.order)
        orders = to_lists(self.owner[bought], self.item.take(pa.array(bought)), len(self.table))
        columns = {name: self.table[name] for name in self.table.column_names}
        columns |= {"candidates": candidates, "clicks": clicks, "orders": orders}
        if history_end is not None:
            columns["history_end"] = pa.array(history_end)
        return pa.table({**columns, "split": split_names(split)})

    def behaviours(self) -> npt.NDArray[np.object_]:
        """What each candidate row [R] became: order, click, or None."""
        found = np.full(len(self.click), None, object)
        found[self.click] = "click"
        found[self.order] = "order"
        return found

    def timed_events(self) -> pa.Table:
        """Clicks and orders as events at the time of their request."""
        return self._events(np.flatnonzero(self.click), self.behaviours())

    def folded_events(
        self, split: SplitArray, kept: tuple[str, ...]
    ) -> tuple[pa.Table, Int64Array]:
        """Clicks and orders outside the test fold as events, and each request's history end."""
        behaviour = self.behaviours()
        user = codes_of(self.table["user_id"].combine_chunks())[self.owner]
        history = fold_history(user, split[self.owner], np.isin(behaviour.astype(str), kept))
        return self._events(history.rows, behaviour), _first_ends(history, self.owner)

    def _events(self, rows: Int64Array, behaviour: npt.NDArray[np.object_]) -> pa.Table:
        owner = pa.array(self.owner[rows])
        shared = [
            name
            for name in ("user_id", "ts", "tz_offset_min", "context")
            if name in self.table.column_names
        ]
        columns = {name: self.table[name].take(owner) for name in shared}
        return pa.table(
            {
                **columns,
                "item_id": self.item.take(pa.array(rows)),
                "behaviour": pa.array(behaviour[rows], pa.string()),
            }
        )


def _first_ends(history: FoldHistory, owner: Int64Array) -> Int64Array:
    """History end of each request: that of its first row, so that it sees no click of its own."""
    ends = np.full(int(owner.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(ends, owner, history.end)
    return ends


def _first_repeat(key: Int64Array) -> int | None:
    """The first row whose key occurred before."""
    again = np.ones(len(key), bool)
    again[np.unique(key, return_index=True)[1]] = False
    return int(np.argmax(again)) if again.any() else None


def given_lists(mapping: Mapping, shown: GivenLists, sources: Sequence[Source]) -> Given:
    """Requests with lists of candidates and clicks.

    Raises:
        DataError: a repeated id or candidate, no candidates, a click that is not among them.
    """
    where = Located(sources).where
    tables: list[pa.Table] = []
    owners: list[Int64Array] = []
    items: list[pa.Array] = []
    chosen: dict[str, list[tuple[Int64Array, pa.Array]]] = {"clicks": [], "orders": []}
    start = 0
    for source in sources:
        times = time_columns(source, shown.time)
        fields = {"impression_id": source.required(shown.id), **times}
        fields["user_id"] = source.required(shown.user)
        fields["context"] = context_column(mapping, source, times)
        tables.append(pa.table(fields))
        owner, values = list_column(source, shown.candidates, shown.separator)
        owners.append(owner + start)
        items.append(values)
        for name, column in (("clicks", shown.clicks), ("orders", shown.orders)):
            if column is not None:
                by, values = list_column(source, column, shown.separator)
                chosen[name].append((by + start, values))
        start += len(source)
    table, owner = stacked(tables), np.concatenate(owners)
    row = _first_repeat(codes_of(table["impression_id"].combine_chunks()))
    if row is not None:
        raise DataError(f"{where(row)}: duplicate impression id {table['impression_id'][row]}")
    empty = np.bincount(owner, minlength=len(table)) == 0
    if empty.any():
        raise DataError(f"{where(int(np.argmax(empty)))}: column {shown.candidates!r} is empty")
    item = pa.concat_arrays(items)
    picked = {
        name: (np.concatenate([by for by, _ in parts]), pa.concat_arrays([v for _, v in parts]))
        for name, parts in chosen.items()
        if parts
    }
    distinct = pc.unique(pa.concat_arrays([item, *(values for _, values in picked.values())]))

    def keys(rows: Int64Array, values: pa.Array) -> Int64Array:
        place = pc.index_in(values, value_set=distinct).to_numpy(zero_copy_only=False)
        return rows * len(distinct) + place

    key = keys(owner, item)
    row = _first_repeat(key)
    if row is not None:
        raise DataError(f"{where(int(owner[row]))}: candidate {item[row]} occurs twice")
    labels = {"clicks": np.zeros(len(key), bool), "orders": np.zeros(len(key), bool)}
    for name, outer, note in (
        ("clicks", np.ones(len(key), bool), "candidates"),
        ("orders", labels["clicks"], "clicks"),
    ):
        if name not in picked:
            continue
        by, values = picked[name]
        wanted = keys(by, values)
        outside = ~np.isin(wanted, key[outer])
        if outside.any():
            bad = int(np.argmax(outside))
            raise DataError(
                f"{where(int(by[bad]))}: {name[:-1]} {values[bad]} is not among the {note}"
            )
        labels[name] |= np.isin(key, wanted)
    return Given(table, owner, item, labels["clicks"], labels["orders"])


def given_rows(mapping: Mapping, shown: GivenRows, sources: Sequence[Source]) -> Given:
    """Requests given one candidate a row.

    Raises:
        DataError: a request of two users or times, a repeated candidate, a bad label, an order
            without a click.
    """
    where = Located(sources).where
    if shown.id is None and shown.time is None:
        raise ConfigError("mapping: impressions: rows without time need an id column")
    tables = []
    for source in sources:
        times = time_columns(source, shown.time)
        fields = {"user_id": source.required(shown.user), **times}
        fields["item"] = source.required(shown.item)
        fields["click"] = pa.array(source.labels(shown.click))
        ordered = np.zeros(len(source), bool) if shown.order is None else source.labels(shown.order)
        fields["order"] = pa.array(ordered)
        if shown.id is not None:
            fields["impression_id"] = source.required(shown.id)
        if shown.position is not None:
            fields["position"] = pa.array(source.integers(shown.position), pa.int16())
        fields["context"] = context_column(mapping, source, times)
        tables.append(pa.table(fields))
    rows = stacked(tables)
    user = codes_of(rows["user_id"].combine_chunks())
    ts = rows["ts"].to_numpy() if shown.time is not None else np.zeros(len(rows), np.int64)
    owner = (
        codes_of(rows["impression_id"].combine_chunks())
        if shown.id is not None
        else pair_codes(user, ts)
    )
    order = np.argsort(owner, kind="stable")
    owner = owner[order]
    begin = order[np.flatnonzero(running_number(owner) == 0)]
    for name, values in (("user", user), ("time", ts)):
        mixed = values[order] != values[begin][owner]
        if mixed.any():
            row = int(order[np.argmax(mixed)])
            raise DataError(f"{where(row)}: its request has another {name} in an earlier row")
    item = rows["item"].combine_chunks().take(pa.array(order))
    again = _first_repeat(owner * len(rows) + codes_of(item))
    if again is not None:
        raise DataError(
            f"{where(int(order[again]))}: candidate {item[again]} occurs twice in its request"
        )
    click, ordered = rows["click"].to_numpy()[order], rows["order"].to_numpy()[order]
    if (ordered & ~click).any():
        row = int(order[np.argmax(ordered & ~click)])
        raise DataError(f"{where(row)}: an order without a click; label the click too")
    table = rows.take(pa.array(begin)).drop_columns(["item", "click", "order"])
    if shown.id is None:
        table = table.append_column("impression_id", numbered("i", np.arange(len(begin))))
    if shown.position is not None:
        places = rows["position"].combine_chunks().take(pa.array(order))
        table = table.drop_columns(["position"])
        table = table.append_column("position", to_lists(owner, places, len(begin)))
    return Given(table, owner, item, click, ordered)


@dataclass(frozen=True)
class Positives:
    """Events that become requests: rows [P] of the events table; order [P] where it is one."""

    rows: Int64Array
    order: BoolArray


def positive_rows(shown: Derived, events: pa.Table) -> Positives:
    """The events of a positive behaviour, one per user, time and item.

    Raises:
        DataError: there are none.
    """
    behaviour = events["behaviour"].combine_chunks()
    wanted = pc.and_(
        pc.is_in(behaviour, value_set=pa.array(shown.positive, pa.string())),
        events["item_id"].combine_chunks().is_valid(),
    )
    rows = np.flatnonzero(wanted.to_numpy(zero_copy_only=False))
    if not len(rows):
        raise DataError(f"no event of behaviour {' or '.join(shown.positive)} has an item")
    moment = moments(events)[rows]
    item = codes_of(events["item_id"].combine_chunks())[rows]
    _, first, inverse = np.unique(pair_codes(moment, item), return_index=True, return_inverse=True)
    order = np.zeros(len(first), bool)
    if "order" in shown.positive and len(shown.positive) > 1:
        bought = pc.equal(behaviour, "order").to_numpy(zero_copy_only=False)[rows]
        np.logical_or.at(order, inverse, bought)
    return Positives(rows=rows[first], order=order)


def moments(events: pa.Table) -> Int64Array:
    """Codes [N] of (user, time); without times of (user, item)."""
    user = codes_of(events["user_id"].combine_chunks())
    other = (
        events["ts"].to_numpy()
        if "ts" in events.column_names
        else codes_of(events["item_id"].combine_chunks())
    )
    return pair_codes(user, other)


def lead_us(shown: Derived) -> int:
    """How long before a positive its request is made, in µs."""
    return round(shown.lead_minutes * 60_000_000)


def derived_impressions(
    shown: Derived,
    events: pa.Table,
    positives: Positives,
    split: SplitArray,
    areas: dict[str, str],
    history_end: Int64Array | None,
) -> pa.Table:
    """Impressions of the positive events; `split` and `history_end` are per event row.

    Raises:
        ConfigError: rule same-area, but no item has an area; more negatives than items.
    """
    ids = events["item_id"].combine_chunks()
    others = pc.count_distinct(ids).as_py() - 1
    if shown.negatives.count > others:
        raise ConfigError(
            f"mapping: impressions.negatives.count is {shown.negatives.count}, but beside a "
            f"positive the log holds only {others} items; choose at most that many"
        )
    item = codes_of(ids)
    area = None
    if shown.negatives.rule == "same-area":
        if not areas:
            raise ConfigError("mapping: negatives of rule same-area need items with location.area")
        area = codes_of(pa.array([areas.get(i, "") for i in ids.to_pylist()], pa.string()))
    named = np.flatnonzero(item >= 0)
    chosen = np.zeros(len(item), bool)
    chosen[positives.rows] = True
    candidates, clicks = derived_lists(
        shown.negatives,
        items=pc.unique(ids.drop_null()),
        item=item[named],
        moment=moments(events)[named],
        split=split[named],
        chosen=chosen[named],
        area=None if area is None else area[named],
    )
    taken = events.take(pa.array(positives.rows))
    bought = np.flatnonzero(positives.order)
    columns = {
        name: taken[name]
        for name in ("user_id", "ts", "tz_offset_min", "context")
        if name in taken.column_names
    }
    if "ts" in columns:
        columns["ts"] = pc.subtract(columns["ts"], lead_us(shown))
    columns |= {
        "impression_id": numbered("i", np.arange(len(taken))),
        "candidates": candidates,
        "clicks": clicks,
        "orders": to_lists(bought, taken["item_id"].combine_chunks().take(bought), len(taken)),
        "split": split_names(split[positives.rows]),
    }
    if history_end is not None:
        columns["history_end"] = pa.array(history_end[positives.rows])
    return pa.table(columns)
