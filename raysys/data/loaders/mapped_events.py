"""The events and items sections of a mapping."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.mapped_columns import context_column, stacked, time_columns
from raysys.data.loaders.mapping import BehaviourColumn, EventColumns, ItemColumns, Mapping
from raysys.data.loaders.reading import Source, first, read_any
from raysys.data.schema import LOCATION
from raysys.errors import DataError


def read_events(mapping: Mapping, columns: EventColumns, sources: Sequence[Source]) -> pa.Table:
    """Rows of the events section in file order.

    Raises:
        DataError: a value without meaning, a missing user or time, neither item nor text.
    """
    return stacked([_events(mapping, columns, source) for source in sources])


def _events(mapping: Mapping, columns: EventColumns, source: Source) -> pa.Table:
    times = time_columns(source, columns.time)
    item = source.strings(columns.item)
    text = source.strings(columns.text) if columns.text else pa.nulls(len(source), pa.string())
    bare = pc.and_(item.is_null(), text.is_null())
    if pc.any(bare).as_py():
        raise DataError(f"{source.where(first(bare))}: column {columns.item!r} is empty")
    behaviour, kept = _behaviours(source, columns.behaviour)
    fields = {
        "user_id": source.required(columns.user),
        **times,
        "item_id": item,
        "text": text,
        "behaviour": behaviour,
        "context": context_column(mapping, source, times),
    }
    for name, column in (("subject", columns.subject), ("scenario", columns.scenario)):
        if column is not None:
            fields[name] = source.strings(column)
    if columns.value is not None:
        fields["value"] = source.floats(columns.value)
    return pa.table(fields).filter(kept)


def _behaviours(source: Source, columns: BehaviourColumn) -> tuple[pa.Array, pa.Array]:
    """The behaviour of each row, and which rows have one."""
    if columns.column is None:
        everywhere = pa.array(np.ones(len(source), bool))
        return pa.array([columns.constant] * len(source), pa.string()), everywhere
    given = source.strings(columns.column)
    meaning = pc.index_in(given, value_set=pa.array(list(columns.values), pa.string()))
    kept = meaning.is_valid()
    if columns.others == "fail" and not pc.all(kept).as_py():
        row = first(pc.invert(kept))
        raise DataError(
            f"{source.where(row)}: column {columns.column!r} has the value {given[row]}, which "
            "the mapping gives no behaviour; name it or set others: drop"
        )
    return pa.array(list(columns.values.values()), pa.string()).take(meaning), kept


def read_items(columns: ItemColumns | None, root: Path) -> pa.Table:
    """Rows of the items section; none without one."""
    if columns is None:
        return pa.table({"item_id": pa.array([], pa.string())})
    return stacked([_items(columns, read_any(path)) for path in columns.paths(root)])


def _items(columns: ItemColumns, source: Source) -> pa.Table:
    fields = {"item_id": source.required(columns.id)}
    if columns.kind is not None:
        fields["kind"] = pa.array([columns.kind] * len(source), pa.string())
    for name in ("name", "title", "abstract", "text", "brand"):
        column = getattr(columns, name)
        if column is not None:
            fields[name] = source.strings(column)
    if columns.price is not None:
        fields["price"] = source.floats(columns.price)
    if columns.created_at is not None:
        time = columns.created_at
        fields["created_at"] = source.times(time.column, time.form, timezone=time.timezone)
    if columns.category:
        levels = [source.strings(name).to_pylist() for name in columns.category]
        paths = [[level for level in path if level] for path in zip(*levels, strict=True)]
        fields["category"] = pa.array(paths, pa.list_(pa.string()))
    if columns.location is not None:
        fields["location"] = _location(columns, source)
    if columns.attributes:
        named = {key: source.strings(name) for key, name in columns.attributes.items()}
        rows = zip(*(column.to_pylist() for column in named.values()), strict=True)
        fields["attributes"] = pa.array(
            [[(k, v) for k, v in zip(named, row, strict=True) if v is not None] for row in rows],
            pa.map_(pa.string(), pa.string()),
        )
    kept = pa.array(np.ones(len(source), bool))
    for name, values in columns.only.items():
        kept = pc.and_(kept, pc.is_in(source.strings(name), value_set=pa.array(values)))
    return pa.table(fields).filter(kept)


def _location(columns: ItemColumns, source: Source) -> pa.Array:
    place = columns.location
    assert place is not None
    fields = [
        pa.nulls(len(source), pa.float64()) if name is None else source.floats(name)
        for name in (place.lat, place.lon)
    ]
    area = place.area
    fields.append(pa.nulls(len(source), pa.string()) if area is None else source.strings(area))
    return pa.StructArray.from_arrays(fields, fields=list(LOCATION))
