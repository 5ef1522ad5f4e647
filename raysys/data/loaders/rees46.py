"""REES46 multi-category store: one CSV file a month with views, carts and purchases.

Columns: event_time, event_type, product_id, category_id, category_code, brand, price, user_id,
user_session. What is bought in one session is one order, made when its first product was bought.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.base import Imported
from raysys.data.loaders.reading import Source, combined
from raysys.data.loaders.session_logs import (
    SessionOptions,
    behaviour_columns,
    collected,
    first_moments,
    session_codes,
    session_log,
)
from raysys.data.loaders.streaming import csv_pieces
from raysys.errors import DataError

_FORM = "%Y-%m-%d %H:%M:%S UTC"
_MEANING = {
    "view": ("view", None),
    "cart": ("cart", None),
    "remove_from_cart": (None, None),
    "purchase": ("order", None),
}
_WORDS = ("category_id", "category_code", "brand")


class Rees46:
    """Loader of a folder with the files of one or several months, or of one file."""

    name = "rees46"
    version = "1"
    options = SessionOptions

    def files(self, src: Path, options: SessionOptions) -> list[Path]:
        """All `.csv` files of the folder."""
        found = sorted(src.glob("*.csv")) if src.is_dir() else [src]
        if not found:
            raise DataError(f"{src}: no .csv file; unpack the months (2019-Oct.csv.gz) first")
        return found

    def load(self, src: Path, options: SessionOptions) -> Imported:
        """Read piece by piece; the lines of an order get one time."""
        events, words = collected(_pieces(self.files(src, options)), options)
        return session_log(
            _one_order_a_session(events),
            _items(words),
            options,
            behaviours=("view", "cart", "order"),
            filters=("what was taken out of carts is not read",),
            dataset="rees46",
            version="multi-category store",
            reader=self.name,
            licence="terms of REES46 (rees46.com): read them before use",
        )


def _pieces(files: list[Path]) -> Iterator[pa.Table]:
    for path in files:
        for source in csv_pieces(path):
            yield _lines(source)


def _lines(source: Source) -> pa.Table:
    return pa.table(
        {
            "user_id": source.required("user_id"),
            "ts": source.required_times("event_time", _FORM),
            "session": source.strings("user_session"),
            "item_id": source.required("product_id"),
            **behaviour_columns(source, "event_type", _MEANING),
            "price": source.floats("price"),
            **{name: source.strings(name) for name in _WORDS},
        }
    )


def _one_order_a_session(events: pa.Table) -> pa.Table:
    """Purchases of a session at the time of the first."""
    ordered = pc.equal(combined(events["behaviour"]), "order").to_numpy(zero_copy_only=False)
    ts = events["ts"].to_numpy().copy()
    ts[ordered] = first_moments(session_codes(events)[ordered], ts[ordered])
    return events.set_column(events.column_names.index("ts"), "ts", pa.array(ts))


def _items(words: pa.Table) -> pa.Table:
    codes = [code or "" for code in words["category_code"].to_pylist()]
    paths = [[level for level in code.replace("_", " ").split(".") if level] for code in codes]
    named = zip(words["brand"].to_pylist(), paths, strict=True)
    names = [" ".join(filter(None, (brand, *path[-1:]))) or None for brand, path in named]
    category = words["category_id"].to_pylist()
    return pa.table(
        {
            "item_id": words["item_id"],
            "kind": pa.array(["product"] * len(words), pa.string()),
            "name": pa.array(names, pa.string()),
            "category": pa.array(paths, pa.list_(pa.string())),
            "brand": words["brand"],
            "price": words["price"],
            "attributes": pa.array(
                [[("category_id", value)] if value else [] for value in category],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )
