"""Which entities each news names, how rare they are, and the vectors shipped with them."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from raysys.data.columns import ColumnFolder
from raysys.data.contexts import FIRST
from raysys.data.features import training_item_counts
from raysys.data.prepared import Prepared
from raysys.errors import ArtifactError, ConfigError, DataError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
_FOLDER = "entities"
_STRINGS = ("ids", "labels", "types")
_ARRAYS = ("idf", "vectors", "news", "confidence")


class EntityOptions(BaseModel):
    """Entities of news and their vectors.

    fields, types: where entities are taken from, and of which types; none named: all. suppress:
    ids of entities that the model must never know. per_news: so
    many of an article's entities at most, those of the title first. vectors: those shipped with
    the data set where it has them, or learned ones of `width` numbers. tuned: the table of entity
    vectors learns too, after `frozen_epochs`. buckets: of hashed vectors, for entities without a
    shipped one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: Annotated[tuple[Literal["title", "abstract"], ...], Field(min_length=1)] = (
        "title",
        "abstract",
    )
    types: tuple[str, ...] = ()
    suppress: tuple[str, ...] = ()
    per_news: Annotated[int, Field(ge=1)] = 16
    vectors: Literal["shipped", "learned"] = "shipped"
    tuned: bool = True
    frozen_epochs: Annotated[float, Field(ge=0)] = 1.0
    width: Annotated[int, Field(ge=1)] = 100
    buckets: Annotated[int, Field(ge=1)] = 1024


class EntityFit(BaseModel):
    """Fitted with the data, stored with the options of a ranker.

    entities: V; entity_width: d_e; types: of entities, in the order of their vectors;
    frozen_steps: so many calls of the loss leave the entity table alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    entities: Annotated[int, Field(ge=0)]
    entity_width: Annotated[int, Field(ge=1)]
    types: tuple[str, ...]
    frozen_steps: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, table: "EntityTable", options: EntityOptions, steps_per_epoch: int) -> "EntityFit":
        """Of these entities; steps_per_epoch: calls of the loss."""
        return cls(
            entities=len(table),
            entity_width=table.vectors.shape[1],
            types=tuple(sorted({name for name in table.types if name})),
            frozen_steps=round(options.frozen_epochs * steps_per_epoch),
        )


@dataclass(frozen=True)
class EntityTable:
    """V entities; row 0 of every array stands for none.

    ids, labels, types [V] strings, a label or type that is not known is empty; idf [1 + V] > 0;
    vectors [1 + V, d_e], zeros where none is shipped; news [2 + N, E] rows of the entities of each
    catalogue row, 0 behind the last; confidence [2 + N, E] of each annotation, in (0, 1].
    """

    ids: list[str]
    labels: list[str]
    types: list[str]
    idf: Floats
    vectors: Floats
    news: Ints
    confidence: Floats

    def __len__(self) -> int:
        """V."""
        return len(self.ids)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids, 1)}

    def row(self, name: str) -> int:
        """The row of an entity id, 0 if there is none."""
        return self._rows.get(name, 0)

    def type_codes(self, types: tuple[str, ...]) -> Ints:
        """Code [1 + V] of each entity's type: 0 is none, 1.. the places in `types`."""
        place = {name: code for code, name in enumerate(types, 1)}
        return np.array([0, *(place.get(name, 0) for name in self.types)], np.int64)

    def buckets(self, count: int) -> Ints:
        """Bucket [1 + V] of each entity's id, the same in every process; that of row 0 is 0."""
        digests = (hashlib.sha256(name.encode()).digest()[:8] for name in self.ids)
        return np.array([0, *(int.from_bytes(d, "big") % count for d in digests)], np.int64)

    def save(self, snapshot: Path) -> None:
        """Write as a folder of mapped columns."""
        columns = ColumnFolder(snapshot / _FOLDER)
        for name in _STRINGS:
            columns.write(name, pa.array(getattr(self, name), pa.string()))
        for name in _ARRAYS:
            columns.write(name, getattr(self, name))

    @classmethod
    def load(cls, snapshot: Path) -> "EntityTable":
        """Read what `save` wrote."""
        columns = ColumnFolder(snapshot / _FOLDER)
        strings = {name: columns.read_strings(name).to_pylist() for name in _STRINGS}
        arrays = {name: columns.read(name) for name in _ARRAYS}
        return cls(**strings, **arrays)

    @classmethod
    def open(cls, snapshot: Path, fitted: EntityFit) -> "EntityTable":
        """Read what `save` wrote, for the ranker that was fitted with it.

        Raises:
            ArtifactError: another table.
        """
        table = cls.load(snapshot)
        found = (len(table), table.vectors.shape[1])
        if found != (fitted.entities, fitted.entity_width):
            raise ArtifactError(
                f"{snapshot}: {found[0]} entities of width {found[1]}, the model has "
                f"{fitted.entities} of width {fitted.entity_width}"
            )
        return table


def fit_entities(data: Prepared, options: EntityOptions) -> EntityTable:
    """Entities of all news; how rare they are, training-period news alone decide:
    idf(e) = log((1 + N)/(1 + df(e))), an article counting once.

    Raises:
        ConfigError: an unknown type, or no news names an entity of the fields and types.
        DataError: entity vectors of unequal width.
    """
    mentions = _mentions(data, options)
    if len(mentions) == 0:
        raise ConfigError(
            f"{data.dataset.path}: no news names an entity (fields {', '.join(options.fields)}; "
            f"types {', '.join(options.types) or 'all'}); this model needs news with entities"
        )
    ids = pc.unique(mentions["id"])
    ids = ids.take(pc.sort_indices(ids))
    row = pc.index_in(mentions["id"], value_set=ids).to_numpy().astype(np.int64) + 1
    owner = mentions["owner"].to_numpy() + FIRST
    confidence = mentions["confidence"].to_numpy()
    count = len(ids)
    named = np.zeros(count + 1, np.int64)
    seen = training_item_counts(data) > 0
    np.add.at(named, row[seen[owner]], 1)
    idf = np.log((1 + int(seen[FIRST:].sum())) / (1 + named)).astype(np.float32)
    first = np.unique(row, return_index=True)[1]
    news, sure = _padded(owner, row, confidence, FIRST + len(data.item_ids), options.per_news)
    return EntityTable(
        ids=ids.to_pylist(),
        labels=_at(mentions["label"], first),
        types=_at(mentions["type"], first),
        # An entity of every article says nothing, yet its logarithm must not be taken of zero.
        idf=np.maximum(idf, 1e-6),
        vectors=_vectors(data, ids, options),
        news=news,
        confidence=sure,
    )


def renewed_entities(known: EntityTable, data: Prepared, options: EntityOptions) -> EntityTable:
    """The same entities, rare as before, in the news of another data set; others are left out."""
    mentions = _mentions(data, options)
    row = np.array([known.row(name) for name in mentions["id"].to_pylist()], np.int64)
    kept = row > 0
    owner = mentions["owner"].to_numpy()[kept] + FIRST
    confidence = mentions["confidence"].to_numpy()[kept]
    rows = FIRST + len(data.item_ids)
    news, sure = _padded(owner, row[kept], confidence, rows, options.per_news)
    return replace(known, news=news, confidence=sure)


def _mentions(data: Prepared, options: EntityOptions) -> pa.Table:
    """owner (item index), id, label, type, confidence: each entity once per article, in the order
    of the articles, those of the title first."""
    column = data.dataset.table("items", ["entities"])["entities"].combine_chunks()
    lists = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
    flat = pc.list_flatten(lists)
    parts = {name: pc.struct_field(flat, name) for name in ("id", "label", "type", "field")}
    told = pc.struct_field(flat, "confidence").fill_null(1.0)
    table = pa.table(
        {
            "owner": pc.list_parent_indices(lists).cast(pa.int64()),
            **parts,
            "confidence": pc.max_element_wise(pc.min_element_wise(told, 1.0), 1e-6),
            "place": pc.index_in(parts["field"], value_set=pa.array(["title", "abstract"])),
        }
    )
    known = pc.unique(parts["type"].drop_null()).to_pylist()
    strange = sorted(set(options.types) - set(known))
    if strange:
        raise ConfigError(
            f"types: {', '.join(strange)} occurs nowhere; the data set has "
            f"{', '.join(sorted(known)[:20]) or 'none'}"
        )
    # Where the data do not say which part of the news an entity is of, it is of the whole.
    keep = pc.or_kleene(
        pc.is_in(table["field"], value_set=pa.array(options.fields)), pc.is_null(table["field"])
    )
    keep = pc.and_(keep, pc.is_valid(table["id"]))
    if options.suppress:
        barred = pc.is_in(table["id"], value_set=pa.array(options.suppress))
        keep = pc.and_(keep, pc.invert(barred))
    if options.types:
        keep = pc.and_(keep, pc.is_in(table["type"], value_set=pa.array(options.types)))
    table = table.filter(keep).combine_chunks()
    owner, place = table["owner"].to_numpy(), table["place"].fill_null(9).to_numpy()
    order = np.lexsort((np.arange(len(owner)), place, owner))
    table = table.take(pa.array(order))
    names = table["id"].combine_chunks().dictionary_encode()
    size = max(1, len(names.dictionary))
    pair = table["owner"].to_numpy() * size + names.indices.to_numpy()
    first = np.sort(np.unique(pair, return_index=True)[1])
    best = np.zeros(len(pair))
    np.maximum.at(best, np.unique(pair, return_inverse=True)[1], table["confidence"].to_numpy())
    most = best[np.unique(pair, return_inverse=True)[1]].astype(np.float32)
    table = table.set_column(table.schema.get_field_index("confidence"), "confidence", [most])
    return table.take(pa.array(first)).combine_chunks()


def _padded(
    owner: Ints, row: Ints, confidence: Floats, rows: int, most: int
) -> tuple[Ints, Floats]:
    """Ragged mentions, ascending by owner, as [rows, E], E what the longest list needs."""
    count = np.bincount(owner, minlength=rows)
    place = np.arange(len(owner)) - (np.cumsum(count) - count)[owner]
    kept = place < most
    width = max(1, int(min(most, count.max(initial=1))))
    news = np.zeros((rows, width), np.int64)
    sure = np.zeros((rows, width), np.float32)
    news[owner[kept], place[kept]] = row[kept]
    sure[owner[kept], place[kept]] = confidence[kept]
    return news, sure


def _vectors(data: Prepared, ids: pa.Array, options: EntityOptions) -> Floats:
    """Shipped vectors [1 + V, d_e] by entity; zeros without one, all zeros if none is wanted."""
    none = np.zeros((1 + len(ids), options.width), np.float32)
    if options.vectors == "learned" or "entities" not in data.dataset.manifest.tables:
        return none
    table = data.dataset.table("entities")
    table = table.filter(pc.is_in(table["id"], value_set=ids)).combine_chunks()
    table = table.filter(pc.is_valid(table["vector"])).combine_chunks()
    if len(table) == 0:
        return none
    widths = pc.unique(pc.list_value_length(table["vector"])).to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise DataError(
            f"{data.dataset.path}/entities: vectors of {', '.join(map(str, sorted(widths)))} "
            "numbers; all must have the same width"
        )
    values = pc.list_flatten(table["vector"].combine_chunks()).to_numpy(zero_copy_only=False)
    out = np.zeros((1 + len(ids), widths[0]), np.float32)
    out[pc.index_in(table["id"], value_set=ids).to_numpy() + 1] = values.reshape(-1, widths[0])
    return out


def _at(column: pa.ChunkedArray, rows: Ints) -> list[str]:
    return [value or "" for value in column.take(pa.array(rows)).to_pylist()]
