"""Context features: declared names and values turned into integer codes.

Code 0 is a missing value, 1 a value outside the vocabulary, 2.. the vocabulary (or, for a
numeric feature, the buckets between its edges).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from raysys.errors import ConfigError, DataError

MISSING = 0
OOV = 1
FIRST = 2

Int32Array = npt.NDArray[np.int32]


class ContextFeature(BaseModel):
    """One context feature; `values` or `edges` according to its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["categorical", "numeric"]
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def cardinality(self) -> int:
        """Number of codes, missing and out-of-vocabulary included."""
        return FIRST + (len(self.values) if self.kind == "categorical" else len(self.edges) + 1)

    @property
    def labels(self) -> tuple[str, ...]:
        """What each code stands for, in words; buckets by their ends."""
        known = self.values if self.kind == "categorical" else bands(self.edges)
        return ("(missing)", "(unseen)", *known)

    def word(self, value: str | float | None) -> str | None:
        """A value as `labels` has it, unknown ones as they are; None where it is missing."""
        if value is None or self.kind == "categorical":
            return None if value is None else str(value)
        if np.isnan(float(value)):
            return None
        return self.labels[FIRST + int(np.searchsorted(self.edges, float(value), side="right"))]

    def encode(self, column: pa.Array) -> Int32Array:
        """Codes [N] of a string or float column with N rows."""
        if self.kind == "numeric":
            numbers = column.to_numpy(zero_copy_only=False).astype(np.float64)
            codes = FIRST + np.searchsorted(np.asarray(self.edges), numbers, side="right")
            return np.where(np.isnan(numbers), MISSING, codes).astype(np.int32)
        found = pc.index_in(column, value_set=pa.array(self.values, pa.string()))
        codes = found.fill_null(-1).to_numpy(zero_copy_only=False) + FIRST
        codes = np.where(codes < FIRST, OOV, codes)
        return np.where(column.is_null().to_numpy(zero_copy_only=False), MISSING, codes).astype(
            np.int32
        )


def bands(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the buckets between ascending edges; with the digits that tell these apart."""
    if not edges:
        return ("any",)
    shown = [f"{edge:.17g}" for edge in edges]
    for digits in range(3, 17):
        if len({f"{edge:.{digits}g}" for edge in edges}) == len(edges):
            shown = [f"{edge:.{digits}g}" for edge in edges]
            break
    return (f"< {shown[0]}", *(f"{a} – {b}" for a, b in pairwise(shown)), f"≥ {shown[-1]}")


class ContextCodec(BaseModel):
    """The F declared context features of a data set or a model, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[ContextFeature, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names in column order."""
        return tuple(feature.name for feature in self.features)

    def encode(self, column: pa.StructArray) -> Int32Array:
        """Codes [N, F] of a `context` struct column with N rows; absent fields are missing."""
        codes = np.zeros((len(column), len(self.features)), np.int32)
        have = {field.name for field in column.type}
        for index, feature in enumerate(self.features):
            if feature.name in have:
                codes[:, index] = feature.encode(pc.struct_field(column, feature.name))
        return codes

    def misfit(self, context: Mapping[str, Any]) -> str | None:
        """The first value of the wrong type for its feature, in words.

        Names that are no features are passed over: data sets declare more than models use.
        """
        for feature in self.features:
            value = context.get(feature.name)
            kinds, takes = (
                (str, "text") if feature.kind == "categorical" else ((int, float), "a number")
            )
            if value is not None and not isinstance(value, kinds):
                return f"{feature.name}: a {feature.kind} feature takes {takes}, not {value!r}"
        return None

    def encode_dicts(self, rows: Sequence[Mapping[str, Any]]) -> Int32Array:
        """Codes [N, F] of N contexts given as dicts, as a request carries them.

        Raises:
            DataError: a value of the wrong type for its feature.
        """
        codes = np.zeros((len(rows), len(self.features)), np.int32)
        for index, feature in enumerate(self.features):
            kind = pa.string() if feature.kind == "categorical" else pa.float64()
            try:
                column = pa.array([row.get(feature.name) for row in rows], kind)
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                fault = next(filter(None, map(self.misfit, rows)), feature.name)
                raise DataError(f"context.{fault}") from error
            codes[:, index] = feature.encode(column)
        return codes

    def translator(self, source: "ContextCodec") -> "Translator":
        """What turns codes of `source` into codes of this codec.

        A data set is encoded once with all its declared values; a model knows the training
        values only. Values it never saw become out-of-vocabulary.

        Raises:
            ConfigError: a numeric feature whose bucket edges differ.
        """
        position = {feature.name: index for index, feature in enumerate(source.features)}
        tables: list[tuple[int, Int32Array] | None] = []
        for feature in self.features:
            index = position.get(feature.name)
            if index is None:
                tables.append(None)
                continue
            other = source.features[index]
            if feature.kind == "numeric":
                if other.edges != feature.edges:
                    raise ConfigError(
                        f"context feature {feature.name}: the bucket edges of the data differ from "
                        "those of the model; use data imported with the same edges"
                    )
                table = np.arange(other.cardinality, dtype=np.int32)
            else:
                known = feature.encode(pa.array(other.values, pa.string()))
                table = np.concatenate([np.array([MISSING, OOV], np.int32), known])
            tables.append((index, table))
        return Translator(tuple(tables))


@dataclass(frozen=True)
class Translator:
    """Per feature of a codec: the column of the source codes and the table to look up in."""

    tables: tuple[tuple[int, Int32Array] | None, ...]

    def __call__(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Codes [..., F'] of the source as codes [..., F]; features it lacks are missing."""
        out = np.zeros((*codes.shape[:-1], len(self.tables)), np.int64)
        for column, entry in enumerate(self.tables):
            if entry is not None:
                index, table = entry
                out[..., column] = table[codes[..., index]]
        return out
