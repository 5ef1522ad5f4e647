"""Scored candidates as a columnar table: the one thing every metric is computed from.

A run keeps them as `scores/SPLIT.parquet`. `p_click` is the probability of a click given the
impression, `p_order` of an order given the impression, so p_order / p_click is the probability of
an order given a click.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from raysys.errors import MetricError
from raysys.metrics.blocks import Floats, Ints, TieBlocks, binary, tie_blocks

SCHEMA = pa.schema(
    [
        pa.field("impression_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("p_click", pa.float64()),
        pa.field("p_order", pa.float64()),
        pa.field("click", pa.uint8(), nullable=False),
        pa.field("order", pa.uint8(), nullable=False),
    ]
)
_META = b"raysys.scores"


@dataclass(frozen=True)
class Ids:
    """Strings by code. values: distinct strings, codes: [N] int64 into them."""

    values: pa.Array
    codes: Ints

    @classmethod
    def of(cls, strings: Any, column: str) -> "Ids":
        array = strings if isinstance(strings, pa.ChunkedArray | pa.Array) else pa.array(strings)
        chunked = pa.chunked_array([array]) if isinstance(array, pa.Array) else array
        if chunked.null_count:
            raise MetricError(f"column {column!r} has {chunked.null_count} missing ids")
        encoded = chunked.cast(pa.string()).dictionary_encode().combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([]).dictionary_encode()
        return cls(encoded.dictionary, encoded.indices.to_numpy().astype(np.int64))

    def __getitem__(self, row: int) -> str:
        return str(self.values[int(self.codes[row])])

    def take(self, rows: NDArray[Any]) -> "Ids":
        """The ids of these rows; values that no row uses are dropped."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        return Ids(self.values.take(pa.array(used)), codes.astype(np.int64))

    def strings(self) -> pa.Array:
        """[N] one string per row."""
        return self.values.take(pa.array(self.codes))


@dataclass(frozen=True)
class ScoredRows:
    """N scored (impression, item) rows of one split, with where they come from.

    score: [N], higher is better. click, order: [N] 0/1. p_click, p_order: [N] or None.
    trained_on: the data card of the model's training, "" if nothing was trained.
    empty: groups known to have no candidate at all, counted by key ("impression", "user").
    Construction raises MetricError for a non-finite number, a label other than 0 and 1, an item
    twice in one impression, or an impression id shared by several users.
    """

    impression: Ids
    user: Ids
    item: Ids
    score: Floats
    click: Ints
    order: Ints
    p_click: Floats | None = None
    p_order: Floats | None = None
    data_card_id: str = ""
    trained_on: str = ""
    split: str = ""
    model_id: str = ""
    empty: Mapping[str, int] = field(default_factory=dict)
    _blocks: dict[str, TieBlocks] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(
        cls,
        *,
        impression_id: Any,
        user_id: Any,
        item_id: Any,
        score: ArrayLike,
        click: ArrayLike,
        order: ArrayLike | None = None,
        p_click: ArrayLike | None = None,
        p_order: ArrayLike | None = None,
        data_card_id: str = "",
        trained_on: str = "",
        split: str = "",
        model_id: str = "",
        empty: Mapping[str, int] | None = None,
    ) -> "ScoredRows":
        """From columns: ids as strings or Arrow arrays, the rest as arrays of N numbers."""
        clicks = binary(click)
        return cls(
            impression=Ids.of(impression_id, "impression_id"),
            user=Ids.of(user_id, "user_id"),
            item=Ids.of(item_id, "item_id"),
            score=np.asarray(score, dtype=np.float64),
            click=clicks,
            order=np.zeros_like(clicks) if order is None else binary(order),
            p_click=None if p_click is None else np.asarray(p_click, dtype=np.float64),
            p_order=None if p_order is None else np.asarray(p_order, dtype=np.float64),
            data_card_id=data_card_id,
            trained_on=trained_on,
            split=split,
            model_id=model_id,
            empty=dict(empty or {}),
        )

    def __post_init__(self) -> None:
        n = self.impression.codes.size
        columns = {"score": self.score, "p_click": self.p_click, "p_order": self.p_order}
        for name, column in columns.items():
            if column is None:
                continue
            bad = np.flatnonzero(~np.isfinite(column))
            if bad.size:
                raise MetricError(f"{name} is {column[bad[0]]} in {self.where(int(bad[0]))}")
        others = (self.user.codes, self.item.codes, self.click, self.order, *columns.values())
        lengths = {n, *(other.size for other in others if other is not None)}
        if len(lengths) > 1:
            raise MetricError(f"columns differ in length: {sorted(lengths)}")
        self._check_unique()

    def _check_unique(self) -> None:
        if not len(self):
            return
        pair = self.impression.codes * len(self.item.values) + self.item.codes
        ranked = np.sort(pair)
        twice = ranked[1:][ranked[1:] == ranked[:-1]]
        if twice.size:
            row = int(np.flatnonzero(pair == twice[0])[1])
            raise MetricError(f"duplicate item in an impression: {self.where(row)}")
        owner = np.zeros(len(self.impression.values), dtype=np.int64)
        owner[self.impression.codes] = self.user.codes
        shared = np.flatnonzero(owner[self.impression.codes] != self.user.codes)
        if shared.size:
            raise MetricError(
                f"an impression id is shared by several users: {self.where(int(shared[0]))}; "
                "drop such rows or give every impression its own id"
            )

    def __len__(self) -> int:
        return int(self.impression.codes.size)

    def where(self, row: int) -> str:
        """The row in words, for messages."""
        return (
            f"row {row} (impression {self.impression[row]!r}, user {self.user[row]!r}, "
            f"item {self.item[row]!r})"
        )

    def ids(self, key: Literal["impression", "user"]) -> Ids:
        """The group ids of this key."""
        return self.impression if key == "impression" else self.user

    def blocks(self, key: Literal["impression", "user"]) -> TieBlocks:
        """Tie blocks of score and click by this key; sorted at the first call, then kept."""
        if key not in self._blocks:
            ids = self.ids(key)
            self._blocks[key] = tie_blocks(self.score, self.click, ids.codes, len(ids.values))
        return self._blocks[key]

    def take(self, rows: NDArray[Any]) -> "ScoredRows":
        """A subset or another order of rows. rows: indices or a mask; `empty` is not carried."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return replace(
            self,
            impression=self.impression.take(index),
            user=self.user.take(index),
            item=self.item.take(index),
            score=self.score[index],
            click=self.click[index],
            order=self.order[index],
            p_click=None if self.p_click is None else self.p_click[index],
            p_order=None if self.p_order is None else self.p_order[index],
            empty={},
        )

    def with_scores(self, score: ArrayLike) -> "ScoredRows":
        """The same rows scored by something else; probabilities are dropped."""
        scores = np.asarray(score, dtype=np.float64)
        return replace(self, score=scores, p_click=None, p_order=None)

    def to_table(self) -> pa.Table:
        """In the Parquet schema, with the origin in the schema's metadata."""
        n = len(self)
        missing = pa.nulls(n, pa.float64())
        columns = [
            self.impression.strings(),
            self.user.strings(),
            self.item.strings(),
            pa.array(self.score),
            missing if self.p_click is None else pa.array(self.p_click),
            missing if self.p_order is None else pa.array(self.p_order),
            pa.array(self.click.astype(np.uint8)),
            pa.array(self.order.astype(np.uint8)),
        ]
        meta = {
            "data_card_id": self.data_card_id,
            "trained_on": self.trained_on,
            "split": self.split,
            "model_id": self.model_id,
            "empty": dict(self.empty),
        }
        return pa.Table.from_arrays(columns, schema=SCHEMA).replace_schema_metadata(
            {_META: json.dumps(meta, sort_keys=True)}
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> "ScoredRows":
        """From a table in the schema; MetricError names what is missing or of another type."""
        for expected in SCHEMA:
            if expected.name not in table.column_names:
                raise MetricError(f"column {expected.name!r} is missing")
            found = table.schema.field(expected.name).type
            if found != expected.type:
                raise MetricError(f"column {expected.name!r} is {found}, not {expected.type}")
        meta = json.loads((table.schema.metadata or {}).get(_META, b"{}"))
        return cls.of(
            impression_id=table["impression_id"],
            user_id=table["user_id"],
            item_id=table["item_id"],
            score=_numbers(table, "score"),
            click=_numbers(table, "click"),
            order=_numbers(table, "order"),
            p_click=_optional(table, "p_click"),
            p_order=_optional(table, "p_order"),
            **meta,
        )

    def write_parquet(self, path: Path) -> None:
        """Write atomically; the folder is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                pq.write_table(self.to_table(), file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read_parquet(cls, path: Path) -> "ScoredRows":
        """Read what `write_parquet` wrote; MetricError names the file and the fault."""
        try:
            return cls.from_table(pq.read_table(path))
        except FileNotFoundError:
            raise MetricError(f"{path}: no scores here; run `raysys evaluate` first") from None
        except (pa.ArrowException, OSError, MetricError) as error:
            raise MetricError(f"{path}: {error}") from error


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    column = table[name]
    if column.null_count:
        raise MetricError(f"column {name!r} has {column.null_count} missing values")
    array: NDArray[Any] = column.to_numpy()
    return array


def _optional(table: pa.Table, name: str) -> NDArray[Any] | None:
    return None if table[name].null_count == len(table) else _numbers(table, name)
