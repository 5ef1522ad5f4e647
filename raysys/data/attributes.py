"""Attribute fields of items: the values whose shares tell what is liked in a context."""

from itertools import product

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.data.contexts import FIRST, ContextFeature
from raysys.data.features import text_column
from raysys.errors import ConfigError, DataError

NO_VALUE = -1
JOINT_LIMIT = 4096  # cells of two joined fields
_NUMBERS = ("price", "created_at")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AttributeField(_Frozen):
    """One field. Numbers are cut at `edges`, or else into `buckets` at training quantiles.

    `source` is brand, area, category:LEVEL, attribute:NAME, price or created_at. `limit` keeps
    the values that most training items have; rarer ones are not counted.
    """

    source: str
    buckets: int | None = Field(None, ge=2)
    edges: tuple[float, ...] = ()
    limit: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _sensible(self) -> "AttributeField":
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"{self.source}: edges must ascend")
        if self.source in _NUMBERS and not self.numeric:
            raise ValueError(f"{self.source} is a number: give edges or buckets")
        if self.numeric and self.limit:
            raise ValueError(f"{self.source}: limit is for values, not for numbers")
        return self

    @property
    def numeric(self) -> bool:
        """Whether the source is read as a number."""
        return self.buckets is not None or bool(self.edges)


class AttributeConfig(_Frozen):
    """Which fields count and how. `joint` counts pairs of values of at most two small fields."""

    fields: tuple[AttributeField, ...]
    joint: bool = False


class Attributes(_Frozen):
    """Fitted fields: everything that turns an items table into values."""

    fields: tuple[AttributeField, ...]
    features: tuple[ContextFeature, ...]
    joint: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each field; joined fields have one."""
        names = tuple(feature.name for feature in self.features)
        return (" × ".join(names),) if self.joint else names

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of values of each field."""
        widths = tuple(feature.cardinality - FIRST for feature in self.features)
        return (int(np.prod(widths)),) if self.joint else widths

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """The values of each field in words."""
        labels = tuple(feature.labels[FIRST:] for feature in self.features)
        return (tuple(" × ".join(pair) for pair in product(*labels)),) if self.joint else labels

    def encode(self, items: pa.Table) -> npt.NDArray[np.int32]:
        """Values [2 + N, F] of an items table by item row, 0.. or −1.

        −1 stands for padding, the unknown item, a missing value and one not fitted.
        """
        values = np.full((FIRST + len(items), len(self.features)), NO_VALUE, np.int32)
        for index, (field, feature) in enumerate(zip(self.fields, self.features, strict=True)):
            codes = feature.encode(_column(items, field))
            values[FIRST:, index] = np.maximum(codes - FIRST, NO_VALUE)
        if not self.joint:
            return values
        joined = np.zeros(len(values), np.int32)
        for index, feature in enumerate(self.features):
            joined = joined * (feature.cardinality - FIRST) + values[:, index]
        return np.where((values < 0).any(1), NO_VALUE, joined)[:, None]


def fit_attributes(
    items: pa.Table, counts: npt.NDArray[np.int64], config: AttributeConfig
) -> Attributes:
    """Fit vocabularies and edges on the items that training met.

    Args:
        items: the items table, N rows.
        counts: [N] how often training met each item.
        config: the fields.

    Raises:
        ConfigError: no field; an unknown source; a field with one value only, which cannot tell
            contexts apart; joined fields that are too many or too large.
        DataError: text in a field that is cut as a number.
    """
    if not config.fields:
        raise ConfigError("attributes.fields is empty: name the item fields whose shares count")
    met = items.take(np.flatnonzero(counts > 0))
    features = tuple(_fit(met, field) for field in config.fields)
    fitted = Attributes(fields=config.fields, features=features, joint=config.joint)
    if config.joint and (len(features) > 2 or fitted.widths[0] > JOINT_LIMIT):
        raise ConfigError(
            f"attributes.joint takes at most two fields with {JOINT_LIMIT} pairs of values; "
            f"{fitted.names[0]} has {len(features)} fields and {fitted.widths[0]} pairs"
        )
    for name, column in zip(fitted.names, fitted.encode(met).T, strict=True):
        if len(np.unique(column[column >= 0])) < 2:
            raise ConfigError(
                f"attributes.fields: {name} has fewer than two values among the training items; "
                "leave it out or choose other edges"
            )
    return fitted


def _fit(items: pa.Table, field: AttributeField) -> ContextFeature:
    column = _column(items, field)
    if not field.numeric:
        known = pc.value_counts(column.drop_null())
        values = known.field("values").to_pylist()
        times = known.field("counts").to_pylist()
        kept = sorted(zip(values, times, strict=True), key=lambda pair: (-pair[1], pair[0]))
        names = tuple(sorted(value for value, _ in kept[: field.limit]))
        return ContextFeature(name=field.source, kind="categorical", values=names)
    edges = field.edges
    if not edges:
        numbers = column.drop_null().to_numpy(zero_copy_only=False)
        assert field.buckets is not None
        shares = np.linspace(0, 1, field.buckets + 1)[1:-1]
        cuts = np.unique(np.quantile(numbers, shares)) if len(numbers) else np.zeros(0)
        edges = tuple(float(cut) for cut in cuts)
    return ContextFeature(name=field.source, kind="numeric", edges=edges)


def _column(items: pa.Table, field: AttributeField) -> pa.Array:
    if field.source in _NUMBERS:
        return pa.chunked_array(items[field.source]).combine_chunks().cast(pa.float64())
    column = text_column(items, field.source)
    if not field.numeric:
        return column
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(f"items.{field.source}: cut as a number, but {error}") from error
