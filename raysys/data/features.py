"""Typed features: item fields by vocabulary, hash or buckets; contexts; frozen text vectors.

A `FeatureSpace` is fitted on the training split only and saved as `features.json`; with it and
an items table every id becomes integers without the data set it was fitted on.
Codes: 0 padding or missing, 1 out of vocabulary, 2.. known.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from raysys.data.contexts import FIRST, MISSING, OOV, ContextCodec, ContextFeature
from raysys.data.dated import DatedField, fit_dated
from raysys.data.feature_table import DatedFeature
from raysys.data.manifest import canonical_json
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError

_TEXT_SOURCES = ("item_id", "kind", "brand", "area")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VocabularyField(_Frozen):
    """A field whose values seen in training at least `min_count` times have codes of their own.

    `source` is item_id, kind, brand, area, category:LEVEL (0 = root) or attribute:NAME.
    """

    encoding: Literal["vocabulary"] = "vocabulary"
    source: str
    min_count: int = Field(1, ge=1)
    values: tuple[str, ...] = ()  # filled by fitting

    @property
    def cardinality(self) -> int:
        """Number of codes."""
        return FIRST + len(self.values)

    def encode(self, items: pa.Table) -> npt.NDArray[np.int32]:
        """Codes [N] of N items."""
        column = text_column(items, self.source)
        feature = ContextFeature(name=self.source, kind="categorical", values=self.values)
        return feature.encode(column)


class HashField(_Frozen):
    """A field hashed into `buckets` codes: bounded memory, no out-of-vocabulary values."""

    encoding: Literal["hash"] = "hash"
    source: str
    buckets: int = Field(ge=2)

    @property
    def cardinality(self) -> int:
        """Number of codes."""
        return FIRST + self.buckets

    def encode(self, items: pa.Table) -> npt.NDArray[np.int32]:
        """Codes [N] of N items."""
        column = text_column(items, self.source).dictionary_encode()
        # The hash of a value must not change with the process, so Python's own is no use.
        table = np.array(
            [
                int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") % self.buckets
                for value in column.dictionary.to_pylist()
            ]
            + [MISSING - FIRST],
            np.int64,
        )
        index = column.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False)
        return (table[index] + FIRST).astype(np.int32)


class BucketField(_Frozen):
    """A number cut at training quantiles; `source` is price or created_at."""

    encoding: Literal["bucket"] = "bucket"
    source: Literal["price", "created_at"]
    buckets: int = Field(10, ge=2)
    edges: tuple[float, ...] = ()  # filled by fitting

    @property
    def cardinality(self) -> int:
        """Number of codes."""
        return FIRST + len(self.edges) + 1

    def encode(self, items: pa.Table) -> npt.NDArray[np.int32]:
        """Codes [N] of N items."""
        column = items[self.source].combine_chunks().cast(pa.float64())
        return ContextFeature(name=self.source, kind="numeric", edges=self.edges).encode(column)


ItemField = Annotated[VocabularyField | HashField | BucketField, Field(discriminator="encoding")]


class FeatureConfig(_Frozen):
    """Which features a model uses.

    `items`: "auto" takes every field the items table fills. `contexts`: names, or "auto" for
    all declared. `vectors`: fields of frozen text vectors bound to items, e.g. ("title",).
    `tables`: features of users in a dated table, e.g. ("hkfr.category",).
    """

    items: Literal["auto"] | tuple[ItemField, ...] = "auto"
    contexts: Literal["auto"] | tuple[str, ...] = "auto"
    vectors: tuple[str, ...] = ()
    tables: tuple[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], ...] = ()
    min_count: int = Field(1, ge=1)
    price_buckets: int = Field(10, ge=2)


class FeatureSpace(_Frozen):
    """Fitted features: everything that turns ids and contexts into codes."""

    items: tuple[ItemField, ...]
    contexts: ContextCodec
    vectors: dict[str, int] = Field(default_factory=dict)  # field -> width
    tables: tuple[DatedField, ...] = ()

    @property
    def item_cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each item field."""
        return tuple(field.cardinality for field in self.items)

    @property
    def context_cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each context feature."""
        return tuple(feature.cardinality for feature in self.contexts.features)

    @property
    def hash(self) -> str:
        """Hex sha256 of the canonical JSON: part of the model id."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()

    def encode_items(self, items: pa.Table) -> npt.NDArray[np.int32]:
        """Codes [2 + N, F] of an items table; row 0 padding, row 1 the unknown item."""
        codes = np.zeros((FIRST + len(items), len(self.items)), np.int32)
        codes[OOV] = OOV
        for index, field in enumerate(self.items):
            codes[FIRST:, index] = field.encode(items)
        return codes


def text_column(items: pa.Table, source: str) -> pa.Array:
    """String column [N] behind a field source.

    Raises:
        ConfigError: `source` names no column.
    """
    if source in ("item_id", "kind", "brand"):
        return _array(items[source])
    if source == "area":
        return pc.struct_field(_array(items["location"]), "area")
    head, _, rest = source.partition(":")
    if head == "category" and rest.isdigit():
        lists = _array(items["category"])
        values = [path[int(rest)] if path and len(path) > int(rest) else None for path in
                  lists.to_pylist()]  # fmt: skip
        return pa.array(values, pa.string())
    if head == "attribute" and rest:
        maps = _array(items["attributes"])
        return pc.map_lookup(maps, pa.scalar(rest), "first")
    raise ConfigError(
        f"item field source {source!r} is unknown; use {', '.join(_TEXT_SOURCES)}, "
        "category:LEVEL, attribute:NAME, or a bucket field on price or created_at"
    )


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def training_item_counts(data: Prepared) -> npt.NDArray[np.int64]:
    """How often each item row [2 + N] occurs in training: candidates and history events.

    Only events before the last training request count; later ones would leak the future.
    """
    rows = data.impressions
    train = rows.of("train")
    size = FIRST + len(data.item_ids)
    counts = np.bincount(rows.item[rows.rows(train)], minlength=size).astype(np.int64)
    start, ends = data.histories.start, training_ends(data)
    lengths = ends - start[:-1]
    begin = np.repeat(start[:-1] - (np.cumsum(lengths) - lengths), lengths)
    history = data.histories.item[begin + np.arange(lengths.sum())]
    return counts + np.bincount(history, minlength=size)


def training_ends(data: Prepared) -> npt.NDArray[np.int64]:
    """Exclusive event row of each user's history in training [U]: where it ended at his last
    training request. Users without a training request (cold ones) contribute nothing."""
    rows = data.impressions
    train = rows.of("train")
    last = np.zeros(len(data.histories.users) + 1, np.int64)
    np.maximum.at(last, rows.user[train], rows.end[train])
    return np.maximum(last[:-1], data.histories.start[:-1])


def fit_features(
    data: Prepared,
    config: FeatureConfig,
    vector_widths: dict[str, int] | None = None,
    dated: Sequence[DatedFeature] = (),
) -> FeatureSpace:
    """Fit vocabularies and buckets on the training split.

    Raises:
        ConfigError: an unknown context name, a vector field that has no vectors, or a dated
            feature that no training request finds.
    """
    items = data.dataset.table("items")
    counts = training_item_counts(data)[FIRST:]
    fields = _auto_fields(items, config) if config.items == "auto" else config.items
    fitted = tuple(_fit_field(field, items, counts) for field in fields)
    widths = vector_widths or {}
    missing = sorted(set(config.vectors) - set(widths))
    if missing:
        raise ConfigError(f"features.vectors: no vectors are bound for {', '.join(missing)}")
    return FeatureSpace(
        items=fitted,
        contexts=fit_contexts(data, config.contexts),
        vectors={name: widths[name] for name in config.vectors},
        tables=tuple(fit_dated(feature, data) for feature in dated),
    )


def _auto_fields(items: pa.Table, config: FeatureConfig) -> Sequence[ItemField]:
    sources = ["item_id", "brand", "area"]
    depth = pc.max(pc.list_value_length(_array(items["category"]))).as_py() or 0
    sources += [f"category:{level}" for level in range(depth)]
    names = sorted(
        {key for row in _array(items["attributes"]).to_pylist() if row for key, _ in row}
    )
    sources += [f"attribute:{name}" for name in names]
    fields: list[ItemField] = []
    for source in sources:
        distinct = len(text_column(items, source).drop_null().unique())
        if distinct > (0 if source == "item_id" else 1):
            fields.append(VocabularyField(source=source, min_count=config.min_count))
    if items["price"].null_count < len(items):
        fields.append(BucketField(source="price", buckets=config.price_buckets))
    return fields


def _fit_field(
    field: ItemField, items: pa.Table, counts: npt.NDArray[np.int64]
) -> VocabularyField | HashField | BucketField:
    if isinstance(field, VocabularyField):
        values = pd.Series(text_column(items, field.source).to_pandas())
        total = pd.Series(counts).groupby(values).sum()
        kept = sorted(total.index[total >= field.min_count])
        return field.model_copy(update={"values": tuple(kept)})
    if isinstance(field, BucketField):
        numbers = items[field.source].to_numpy().astype(np.float64)
        seen = numbers[(counts > 0) & ~np.isnan(numbers)]
        if len(seen) == 0:
            return field.model_copy(update={"edges": ()})
        cuts = np.quantile(seen, np.linspace(0, 1, field.buckets + 1)[1:-1])
        return field.model_copy(update={"edges": tuple(float(cut) for cut in np.unique(cuts))})
    return field


def fit_contexts(data: Prepared, names: Literal["auto"] | tuple[str, ...]) -> ContextCodec:
    """The wanted features with the values that training impressions hold.

    Raises:
        ConfigError: an unknown name.
    """
    wanted = data.codec.names if names == "auto" else names
    by_name = {feature.name: index for index, feature in enumerate(data.codec.features)}
    unknown = sorted(set(wanted) - set(by_name))
    if unknown:
        raise ConfigError(
            f"features.contexts: unknown {', '.join(unknown)}; "
            f"the data set declares {', '.join(by_name) or 'none'}"
        )
    train = data.impressions.of("train")
    features = []
    for name in wanted:
        index = by_name[name]
        feature = data.codec.features[index]
        if feature.kind == "categorical":
            used = set(np.unique(data.impressions.context[train, index]).tolist())
            values = tuple(v for code, v in enumerate(feature.values, FIRST) if code in used)
            feature = feature.model_copy(update={"values": values})
        features.append(feature)
    return ContextCodec(features=tuple(features))
