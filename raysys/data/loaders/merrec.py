"""MerRec (Li et al., arXiv 2402.14230): half a year of a marketplace between consumers, Mercari.

Six monthly folders of Parquet files. Most items are sold once, so what can be told of the next
order is its category, brand or product (`category:LEVEL`, `brand`, `attribute:product`). An offer
and the start of a purchase are behaviour `cart`, told apart by `scenario`.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.base import Imported
from raysys.data.loaders.reading import Source
from raysys.data.loaders.session_logs import (
    SessionOptions,
    behaviour_columns,
    collected,
    session_log,
)
from raysys.data.loaders.streaming import parquet_pieces
from raysys.errors import DataError

_MEANING = {
    "item_view": ("view", None),
    "item_like": ("like", None),
    "item_add_to_cart_tap": ("cart", "cart"),
    "offer_make": ("cart", "offer"),
    "buy_start": ("cart", "checkout"),
    "buy_comp": ("order", None),
}
_LEVELS = ("c0_name", "c1_name", "c2_name")
_ATTRIBUTES = {
    "product": "product_id",
    "condition": "item_condition_id",
    "size": "size_id",
    "shipper": "shipper_id",
    "color": "color",
}
_WORDS = ("name", "brand_name", *_LEVELS, *_ATTRIBUTES.values())
_COLUMNS = (
    "user_id", "sequence_id", "session_id", "event_id", "stime", "item_id", "price", *_WORDS
)  # fmt: skip


class MerRec:
    """Loader of the folder with the months, or of one month."""

    name = "merrec"
    version = "1"
    options = SessionOptions

    def files(self, src: Path, options: SessionOptions) -> list[Path]:
        """All `.parquet` files of the folder and those below it."""
        found = sorted(src.rglob("*.parquet"))
        if not found:
            raise DataError(f"{src}: no .parquet file in it or below it")
        return found

    def load(self, src: Path, options: SessionOptions) -> Imported:
        """Read piece by piece."""
        events, words = collected(_pieces(self.files(src, options)), options)
        return session_log(
            events,
            _items(words),
            options,
            behaviours=("view", "like", "cart", "order"),
            dataset="merrec",
            version="2023",
            reader=self.name,
            licence="CC-BY-NC-4.0",
        )


def _pieces(files: list[Path]) -> Iterator[pa.Table]:
    for path in files:
        for source in parquet_pieces(path, _COLUMNS):
            yield _lines(source)


def _lines(source: Source) -> pa.Table:
    session = [source.required(name) for name in ("sequence_id", "session_id")]
    return pa.table(
        {
            "user_id": source.required("user_id"),
            "ts": source.required_times("stime"),
            "session": pc.binary_join_element_wise(*session, "/"),
            "item_id": source.required("item_id"),
            **behaviour_columns(source, "event_id", _MEANING),
            "price": source.floats("price"),
            **{name: source.strings(name) for name in _WORDS},
        }
    )


def _items(words: pa.Table) -> pa.Table:
    levels = zip(*(words[name].to_pylist() for name in _LEVELS), strict=True)
    held = zip(*(words[name].to_pylist() for name in _ATTRIBUTES.values()), strict=True)
    return pa.table(
        {
            "item_id": words["item_id"],
            "kind": pa.array(["listing"] * len(words), pa.string()),
            "name": words["name"],
            "category": pa.array([[x for x in path if x] for path in levels],
                                 pa.list_(pa.string())),
            "brand": words["brand_name"],
            "price": words["price"],
            "attributes": pa.array(
                [[(k, v) for k, v in zip(_ATTRIBUTES, row, strict=True) if v] for row in held],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )  # fmt: skip
