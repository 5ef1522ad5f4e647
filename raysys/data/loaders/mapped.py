"""Any log in CSV, TSV, Parquet or JSON lines, described by a mapping file (see `mapping`)."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raysys.data.loaders.base import Imported, Options, categorical, numeric
from raysys.data.loaders.fold_history import fold_history
from raysys.data.loaders.lists import codes_of
from raysys.data.loaders.local_time import local_feature
from raysys.data.loaders.mapped_columns import check_context_columns
from raysys.data.loaders.mapped_events import read_events, read_items
from raysys.data.loaders.mapped_requests import (
    derived_impressions,
    given_lists,
    given_rows,
    lead_us,
    moments,
    positive_rows,
)
from raysys.data.loaders.mapping import Derived, GivenLists, Mapping, read_mapping
from raysys.data.loaders.reading import Source, combined, read_any
from raysys.data.manifest import DataCard
from raysys.data.split import Folds, bounds_text, split_by_time, time_bounds
from raysys.errors import ConfigError

Bounds = tuple[int, int] | None


class MappedOptions(Options):
    """`mapping`: the YAML file; `folds`, `fold`, `seed` for logs without time."""

    mapping: Path
    folds: int | None = Field(None, ge=2)
    fold: int | None = Field(None, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _together(self) -> "MappedOptions":
        if self.fold is not None and self.folds is None:
            raise ValueError("fold needs folds")
        if self.folds is not None and (self.fold or 0) >= self.folds:
            raise ValueError(f"{self.folds} folds are 0 to {self.folds - 1}")
        return self


class Mapped:
    """Loader of a described log."""

    name = "mapped"
    version = "1"
    options = MappedOptions

    def files(self, src: Path, options: MappedOptions) -> list[Path]:
        """The mapping and all files that it names."""
        mapping = read_mapping(options.mapping)
        shown = mapping.impressions
        sections = [mapping.events, mapping.items, None if isinstance(shown, Derived) else shown]
        found = [path for section in sections if section for path in section.paths(_root(src))]
        return sorted({options.mapping, *found})

    def load(self, src: Path, options: MappedOptions) -> Imported:
        """Read the sections, make requests, split."""
        mapping = read_mapping(options.mapping)
        if mapping.timed and options.folds is not None:
            raise ConfigError(
                f"{options.mapping}: the log has times, so it is split by time (section split); "
                "folds are for logs without"
            )
        folds = Folds(folds=options.folds or 5, fold=options.fold or 0, seed=options.seed)
        root = _root(src)
        shown = mapping.impressions
        logs = [read_any(path) for path in mapping.events.paths(root)] if mapping.events else []
        lists = [] if isinstance(shown, Derived) else [read_any(path) for path in shown.paths(root)]
        check_context_columns(mapping, [*logs, *lists])
        items = read_items(mapping.items, root)
        if isinstance(shown, Derived):
            events, impressions, bounds = _derived(mapping, shown, logs, items, folds)
        else:
            events, impressions, bounds = _given(mapping, logs, lists, folds)
        return Imported(
            events=events,
            impressions=impressions,
            items=items,
            card=_card(mapping, bounds, folds),
            history_behaviours=_history(mapping),
            candidates="built" if isinstance(shown, Derived) else "logged",
            contexts=_contexts(mapping, events, impressions),
        )


def _root(src: Path) -> Path:
    return src if src.is_dir() else src.parent


def _derived(
    mapping: Mapping, shown: Derived, logs: list[Source], items: pa.Table, folds: Folds
) -> tuple[pa.Table, pa.Table, Bounds]:
    assert mapping.events is not None
    events = read_events(mapping, mapping.events, logs)
    positives = positive_rows(shown, events)
    areas = _areas(items)
    if mapping.timed:
        # Each event belongs to the split of the request that it would make.
        ts = combined(events["ts"]).to_numpy() - lead_us(shown)
        bounds = time_bounds(ts[positives.rows], mapping.split, mapping.zone)
        split = split_by_time(ts, bounds)
        return events, derived_impressions(shown, events, positives, split, areas, None), bounds
    # Without time a (user, item) pair is one fact: all its rows go to one fold, and a request
    # for it sees only what comes before the first of them.
    pair = moments(events)
    split = folds.split(pair)
    behaviour = combined(events["behaviour"])
    kept = pc.is_in(behaviour, value_set=pa.array(_history(mapping), pa.string()))
    history = fold_history(
        codes_of(combined(events["user_id"])), split, kept.to_numpy(zero_copy_only=False)
    )
    ends = np.full(int(pair.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(ends, pair, history.end)
    impressions = derived_impressions(shown, events, positives, split, areas, ends[pair])
    return events.take(pa.array(history.rows)), impressions, None


def _given(
    mapping: Mapping, logs: list[Source], lists: list[Source], folds: Folds
) -> tuple[pa.Table, pa.Table, Bounds]:
    shown = mapping.impressions
    assert not isinstance(shown, Derived)
    given = (
        given_lists(mapping, shown, lists)
        if isinstance(shown, GivenLists)
        else given_rows(mapping, shown, lists)
    )
    if not mapping.timed:
        names = combined(given.table["impression_id"]).to_numpy(zero_copy_only=False)
        split = folds.split(names)
        events, ends = given.folded_events(split, _history(mapping))
        return events, given.impressions(split, ends), None
    ts = combined(given.table["ts"]).to_numpy()
    bounds = time_bounds(ts, mapping.split, mapping.zone)
    events = (
        given.timed_events()
        if mapping.events is None
        else read_events(mapping, mapping.events, logs)
    )
    return events, given.impressions(split_by_time(ts, bounds), None), bounds


def _areas(items: pa.Table) -> dict[str, str]:
    if "location" not in items.column_names:
        return {}
    area = pc.struct_field(combined(items["location"]), "area").to_pylist()
    pairs = zip(items["item_id"].to_pylist(), area, strict=True)
    return {item: place for item, place in pairs if place is not None}


def _history(mapping: Mapping) -> tuple[str, ...]:
    if mapping.history:
        return mapping.history
    shown = mapping.impressions
    return shown.positive if isinstance(shown, Derived) else ("click", "order")


def _card(mapping: Mapping, bounds: Bounds, folds: Folds) -> DataCard:
    shown = mapping.impressions
    rule = shown.negatives if isinstance(shown, Derived) else None
    if isinstance(shown, Derived):
        label = f"click = event of behaviour {' or '.join(shown.positive)}"
        if shown.lead_minutes:
            label += f", requested {shown.lead_minutes:g} minutes before"
    else:
        label = f"click = column {shown.clicks if isinstance(shown, GivenLists) else shown.click}"
    return DataCard(
        dataset=mapping.dataset,
        version=mapping.version,
        reader=Mapped.name,
        label_rule=label,
        split_rule=mapping.split.describe(mapping.zone) if bounds else folds.describe("requests"),
        split_bounds=bounds_text(bounds) if bounds else {},
        negative_policy=rule.describe() if rule else "logged",
        negative_seed=rule.seed if rule else None,
        group_key=mapping.group_key,
        history_cut="events before the request"
        if bounds
        else "events of the training folds; for a training request those before it",
        licence=mapping.licence,
    )


def _contexts(mapping: Mapping, *tables: pa.Table) -> list[dict[str, object]]:
    """Rows of the contexts table; a categorical column's values are those that occur."""
    rows: list[dict[str, object]] = []
    for name, feature in mapping.contexts.items():
        if feature.part is not None:
            rows.append(local_feature(name, feature.part))
        elif feature.edges is not None:
            rows.append(numeric(name, feature.edges))
        else:
            columns = [pc.struct_field(combined(table["context"]), name) for table in tables]
            found = {value for column in columns for value in pc.unique(column).to_pylist()}
            rows.append(categorical(name, sorted(found - {None})))
    return rows
