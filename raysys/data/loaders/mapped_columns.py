"""Columns that the sections of a mapping share: times, offsets, contexts, lists."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.local_time import local_part, offset_minutes
from raysys.data.loaders.mapping import Mapping, TimeColumn
from raysys.data.loaders.reading import Source, combined, nearest
from raysys.data.schema import CONTEXT_TYPES
from raysys.errors import ConfigError

Int64Array = npt.NDArray[np.int64]


def check_context_columns(mapping: Mapping, sources: Sequence[Source]) -> None:
    """Refuse a context feature whose column is in no file.

    Raises:
        ConfigError: it is; the nearest column is named.
    """
    known = sorted({name for source in sources for name in source.names})
    for name, feature in mapping.contexts.items():
        if feature.column is not None and feature.column not in known:
            raise ConfigError(
                f"mapping: contexts.{name}: no column {feature.column!r} in "
                + ", ".join(source.path.name for source in sources)
                + nearest(feature.column, known)
            )


def time_columns(source: Source, time: TimeColumn | None) -> dict[str, pa.Array]:
    """`ts` and `tz_offset_min` of each row; nothing if the log has no time."""
    if time is None:
        return {}
    ts = source.required_times(time.column, time.form, timezone=time.timezone)
    return {"ts": ts, "tz_offset_min": offset_minutes(ts, time.timezone)}


def context_column(mapping: Mapping, source: Source, times: dict[str, pa.Array]) -> pa.Array:
    """The declared features of each row as a struct; columns the file lacks are null."""
    fields = []
    for feature in mapping.contexts.values():
        if feature.part is not None:
            offset = times["tz_offset_min"].to_numpy().astype(np.int64)
            fields.append(local_part(feature.part, times["ts"], offset))
        elif feature.column not in source.names:
            fields.append(pa.nulls(len(source), CONTEXT_TYPES[feature.kind]))
        elif feature.kind == "numeric":
            fields.append(source.floats(feature.column))
        else:
            fields.append(source.strings(feature.column))
    if not fields:
        return pa.nulls(len(source), pa.struct([]))
    return pa.StructArray.from_arrays(fields, names=list(mapping.contexts))


def list_column(source: Source, name: str, separator: str) -> tuple[Int64Array, pa.Array]:
    """Row [R] and value [R] of a list column, or of text split at `separator`."""
    column = source.column(name)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lists, values = column, pc.list_flatten(column).cast(pa.string())
    else:
        text = source.strings(name).fill_null("")
        lists = (
            pc.utf8_split_whitespace(text)
            if separator == " "
            else pc.split_pattern(text, separator)
        )
        values = pc.utf8_trim_whitespace(pc.list_flatten(lists))
    owner = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    kept = pc.and_(values.is_valid(), pc.not_equal(values, "")).fill_null(False)
    return owner[kept.to_numpy(zero_copy_only=False)], values.filter(kept)


class Located:
    """Rows of several sources in one numbering, so that an error finds its file and line."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def where(self, row: int) -> str:
        """File and line of a row."""
        index = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[index]) - len(self._sources[index])
        return self._sources[index].where(row - start)


def stacked(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables below each other, each column in one piece."""
    whole = pa.concat_tables(tables)
    columns = [combined(whole[name]) for name in whole.column_names]
    return pa.table(columns, names=whole.column_names)
