"""Loaders by name, and the one way from a public layout to a data set folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.clock import now_us
from raysys.data.dataset import DatasetWriter
from raysys.data.files import sha256_file
from raysys.data.loaders.base import Imported, ImportedCorpus, Loader, Options
from raysys.data.loaders.bing_news import BingNews
from raysys.data.loaders.completejourney import CompleteJourney
from raysys.data.loaders.corpus import Corpus
from raysys.data.loaders.described import Described
from raysys.data.loaders.dhrd_prompts import DhrdPrompts
from raysys.data.loaders.ebnerd import Ebnerd
from raysys.data.loaders.foursquare_checkins import FoursquareCheckins
from raysys.data.loaders.foursquare_restaurants import FoursquareRestaurants
from raysys.data.loaders.frappe import Frappe
from raysys.data.loaders.lists import running_number
from raysys.data.loaders.mapped import Mapped
from raysys.data.loaders.merrec import MerRec
from raysys.data.loaders.mind import Mind
from raysys.data.loaders.movielens import Movielens
from raysys.data.loaders.reading import combined, nearest
from raysys.data.loaders.rees46 import Rees46
from raysys.data.loaders.reuters import Reuters
from raysys.data.loaders.trd import Trd
from raysys.data.manifest import DataCard, Manifest
from raysys.data.schema import CONTEXTS, context_struct
from raysys.data.split import iso
from raysys.errors import ConfigError, DataError
from raysys.options import validate

LOADERS: dict[str, Loader[Any]] = {
    loader.name: loader
    for loader in (
        BingNews(),
        CompleteJourney(),
        Corpus(),
        Described("deskdrop"),
        DhrdPrompts(),
        Ebnerd(),
        FoursquareCheckins(),
        FoursquareRestaurants(),
        Frappe(),
        Mapped(),
        MerRec(),
        Mind(),
        Movielens(),
        Rees46(),
        Reuters(),
        Trd(),
    )
}
_EVENT_ROWS = 1_000_000
_IMPRESSION_ROWS = 200_000


def loader_of(name: str) -> Loader[Any]:
    """The loader called `name`.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if name not in LOADERS:
        raise ConfigError(f"no loader {name!r}" + nearest(name, list(LOADERS)))
    return LOADERS[name]


def options_of(loader: Loader[Any], values: Mapping[str, Any] | Options) -> Options:
    """The loader's options, validated.

    Raises:
        ConfigError: an unknown option (the nearest is named) or a bad value.
    """
    if isinstance(values, Options):
        return values
    options: Options = validate(loader.options, dict(values), f"options of {loader.name}")
    return options


def import_dataset(
    name: str,
    src: Path | str,
    out: Path | str,
    options: Mapping[str, Any] | Options | None = None,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Read the layout `name` at `src` and write the data set folder `out`.

    Events are sorted by user and time and get their `seq`; every item that is referred to gets
    a row in `items`.

    Raises:
        ConfigError: unknown loader or option.
        DataError: bad input; nothing is written.
        StorageFullError: the disk is full; nothing is kept.
    """
    loader = loader_of(name)
    chosen = options_of(loader, options or {})
    src = Path(src)
    if not src.exists():
        raise DataError(f"{src}: no such file or folder")
    root = src if src.is_dir() else src.parent
    sources = {
        path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name: path
        for path in loader.files(src, chosen)
    }
    if Path(out).exists() and not overwrite:  # before the reading, which may take minutes
        raise DataError(f"{out} exists already; choose another --out or pass --overwrite")
    data = loader.load(src, chosen)
    card = data.card.model_copy(
        update=dict(
            reader=f"{loader.name}@{loader.version}",
            source_files={key: sha256_file(path) for key, path in sorted(sources.items())},
        )
    )
    if isinstance(data, ImportedCorpus):
        with DatasetWriter(out, overwrite=overwrite) as writer:
            return _write_corpus(writer, data, card)
    with DatasetWriter(out, contexts=data.context_kinds, overwrite=overwrite) as writer:
        return _write(writer, data, card, loader.name)


def _write_corpus(writer: DatasetWriter, data: ImportedCorpus, card: DataCard) -> Manifest:
    writer.write("documents", data.documents)
    if data.items is not None:
        writer.write("items", data.items)
    return writer.commit(card, kind="corpus")


def _write(writer: DatasetWriter, data: Imported, card: DataCard, loader: str) -> Manifest:
    kinds = writer.contexts
    events = with_context(sorted_events(data.events), kinds)
    impressions = with_context(data.impressions, kinds)
    _refuse_bad_impressions(impressions, loader)
    span = _time_span(events, impressions, loader)
    items = complete_items(data.items, events, impressions)
    writer.write("items", items)
    for name, table in (("users", data.users), ("entities", data.entities)):
        if table is not None and len(table):
            writer.write(name, table)
    if data.contexts:
        writer.write("contexts", pa.Table.from_pylist(data.contexts, CONTEXTS))
    for name, table, rows in (
        ("events", events, _EVENT_ROWS),
        ("impressions", impressions, _IMPRESSION_ROWS),
    ):
        for start in range(0, max(len(table), 1), rows):
            writer.write(name, table.slice(start, rows))
    users = pc.unique(combined(impressions["user_id"]))
    card = card.model_copy(
        update=dict(
            time_span=span,
            counts={
                "impression_users": len(users),
                "candidate_rows": pc.sum(pc.list_value_length(impressions["candidates"])).as_py()
                or 0,
                **card.counts,
            },
        )
    )
    return writer.commit(
        card, history_behaviours=data.history_behaviours, candidates=data.candidates
    )


def with_context(table: pa.Table, kinds: dict[str, str]) -> pa.Table:
    """The table with a `context` column that has every declared feature, absent ones null."""
    kind = context_struct(kinds)
    if "context" not in table.column_names:
        return table.append_column("context", pa.nulls(len(table), kind))
    column = combined(table["context"])
    have = {field.name for field in column.type}
    fields = [
        pc.struct_field(column, field.name).cast(field.type)
        if field.name in have
        else pa.nulls(len(table), field.type)
        for field in kind
    ]
    context = pa.StructArray.from_arrays(fields, fields=list(kind))
    return table.set_column(table.column_names.index("context"), "context", context)


def sorted_events(events: pa.Table) -> pa.Table:
    """Events by user (bytes), then time (unknown times first), then given order; with `seq`."""
    ts = (
        events["ts"]
        if "ts" in events.column_names
        else pa.chunked_array([pa.nulls(len(events), pa.int64())])
    )
    keys = pa.table(
        {
            "user": events["user_id"],
            "ts": ts.fill_null(np.iinfo(np.int64).min),
            "row": np.arange(len(events)),
        }
    )
    order = pc.sort_indices(
        keys, sort_keys=[("user", "ascending"), ("ts", "ascending"), ("row", "ascending")]
    )
    events = events.take(order)
    user = pc.dictionary_encode(combined(events["user_id"])).indices.to_numpy()
    return events.append_column("seq", pa.array(running_number(user.astype(np.int64))))


def complete_items(items: pa.Table, events: pa.Table, impressions: pa.Table) -> pa.Table:
    """Items with a bare row for every id that only events or impressions name.

    Raises:
        DataError: an item id occurs twice.
    """
    ids = combined(items["item_id"])
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise DataError(f"item {twice.field('values')[0]} occurs twice in the items table")
    used = [pc.list_flatten(combined(impressions["candidates"]))]
    if "item_id" in events.column_names:
        used.append(combined(events["item_id"]))
    named = pc.drop_null(pc.unique(pa.concat_arrays([part.cast(pa.string()) for part in used])))
    missing = named.filter(pc.invert(pc.is_in(named, value_set=ids)))
    if not len(missing):
        return items
    missing = missing.take(pc.sort_indices(missing))
    stubs = pa.table({"item_id": missing})
    for field in items.schema:
        if field.name != "item_id":
            stubs = stubs.append_column(field.name, pa.nulls(len(missing), field.type))
    stubs = stubs.select(items.column_names)
    return pa.concat_tables([items, stubs.cast(items.schema)])


def _refuse_bad_impressions(impressions: pa.Table, name: str) -> None:
    if not len(impressions):
        raise DataError(f"{name}: no impressions came out of the source")
    counts = pc.value_counts(combined(impressions["impression_id"]))
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise DataError(
            f"{name}: duplicate impression id {twice.field('values')[0]} "
            f"({twice.field('counts')[0]} rows)"
        )


def _time_span(events: pa.Table, impressions: pa.Table, name: str) -> tuple[str, str] | None:
    ends: list[int] = []
    for table in (events, impressions):
        if "ts" in table.column_names:
            both = pc.min_max(table["ts"])
            ends += [value for value in both.as_py().values() if value is not None]
    if ends and max(ends) > now_us():
        raise DataError(f"{name}: a time lies in the future: {iso(max(ends))}")
    return (iso(min(ends)), iso(max(ends))) if ends else None
