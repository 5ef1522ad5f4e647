"""Delivery Hero Stockholm orders as prompts: ten past orders, one candidate dish, bought or not.

`orders.parquet` has one row per (history, candidate): row, hist_day, hist_hour, hist_cuisine,
hist_price (lists of ten), dish_name, cuisine, price, label. The two rows of one history are a
positive and a random negative: they are one impression, and folds go over histories, because a
row's twin gives its label away. Each history is a user of its own. The request has no time of
its own; its context says when that history usually orders.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.base import Imported, Options
from raysys.data.loaders.lists import (
    candidate_lists,
    codes_of,
    numbered,
    shuffled_within,
    strings,
)
from raysys.data.loaders.local_time import WEEKDAYS, local_feature, mealtime
from raysys.data.loaders.reading import Source, combined, read_parquet, require_file
from raysys.data.manifest import DataCard
from raysys.data.split import Folds, split_names, stable_hash
from raysys.errors import DataError

_HISTORY = ("hist_day", "hist_hour", "hist_cuisine", "hist_price")
_COLUMNS = (*_HISTORY, "dish_name", "cuisine", "price", "label")


class DhrdPromptsOptions(Folds, Options):
    """Which fold over histories."""


class DhrdPrompts:
    """Loader of `orders.parquet`."""

    name = "dhrd-prompts"
    version = "1"
    options = DhrdPromptsOptions

    def files(self, src: Path, options: DhrdPromptsOptions) -> list[Path]:
        """The one file: `src` itself or `orders.parquet` in it."""
        return [require_file(src / "orders.parquet" if src.is_dir() else src)]

    def load(self, src: Path, options: DhrdPromptsOptions) -> Imported:
        """Read; one impression per history."""
        source = read_parquet(self.files(src, options)[0], _COLUMNS)
        keys = _history_keys(source)
        owner = codes_of(strings(keys))
        count = int(owner.max(initial=-1)) + 1
        label = source.labels("label")
        positives = np.bincount(owner, weights=label, minlength=count)
        bad = np.flatnonzero(positives != 1)
        if len(bad):
            row = int(np.argmax(owner == bad[0]))
            raise DataError(
                f"{source.where(row)}: its history has {int(positives[bad[0]])} positive "
                "candidates where one is expected"
            )
        firsts = np.full(count, len(owner), np.int64)
        np.minimum.at(firsts, owner, np.arange(len(owner)))
        users = numbered("h", np.arange(count), 4)
        events, past = _events(source, firsts, users)
        lengths = pc.list_value_length(source.column("hist_day").take(pa.array(firsts)))
        dishes, dish_of = _dishes(source)
        order = shuffled_within(owner, stable_hash(np.arange(len(owner)), options.seed + 2))
        candidates, clicks = candidate_lists(
            owner[order],
            combined(dishes["item_id"]).take(pa.array(dish_of[order])),
            label[order],
            count,
        )
        usual = {
            "usual_weekday": _mode(events, users, "weekday"),
            "usual_mealtime": _mode(events, users, "mealtime"),
        }
        impressions = pa.table(
            {
                "impression_id": users,
                "user_id": users,
                "history_end": lengths.fill_null(0).cast(pa.int64()),
                "context": pa.StructArray.from_arrays(list(usual.values()), names=list(usual)),
                "candidates": candidates,
                "clicks": clicks,
                "orders": pa.array([[]] * count, pa.list_(pa.string())),
                "split": split_names(options.split(np.asarray(keys, object)[firsts])),
            }
        )
        return Imported(
            events=events,
            impressions=impressions,
            items=pa.concat_tables([dishes, past]),
            card=DataCard(
                dataset="dhrd-prompts",
                version="stockholm",
                reader=self.name,
                label_rule="click = the dish that was ordered (label 1)",
                split_rule=options.describe("histories"),
                negative_policy="one random dish per history, drawn by the set's makers",
                group_key="impression",
                history_cut="the ten past orders given with each history",
                counts={"source_rows": len(source)},
                licence="MIT",
                notes={"time": "weekday and hour of past orders only; the request has none"},
            ),
            history_behaviours=("order",),
            candidates="built",
            contexts=[
                local_feature("weekday", "weekday"),
                local_feature("mealtime", "mealtime"),
                local_feature("usual_weekday", "weekday"),
                local_feature("usual_mealtime", "mealtime"),
            ],
        )


def _history_keys(source: Source) -> list[str]:
    """The text of each row's history: equal text, equal history."""
    joined = []
    for name in _HISTORY:
        column = source.column(name)
        if not pa.types.is_list(column.type):
            raise DataError(f"{source.path}: column {name!r} must be a list, not {column.type}")
        texts = pa.ListArray.from_arrays(column.offsets, column.values.cast(pa.string()))
        joined.append(pc.binary_join(texts, ","))
    lengths = [pc.list_value_length(source.column(name)) for name in _HISTORY]
    for name, length in zip(_HISTORY[1:], lengths[1:], strict=True):
        unequal = pc.not_equal(lengths[0], length)
        if pc.any(unequal).as_py():
            row = int(pc.index(unequal, True).as_py())
            raise DataError(f"{source.where(row)}: {name} and {_HISTORY[0]} differ in length")
    return list(pc.binary_join_element_wise(*joined, "|").to_pylist())


def _events(
    source: Source, firsts: npt.NDArray[np.int64], users: pa.Array
) -> tuple[pa.Table, pa.Table]:
    """Past orders [E] of each history, and the items they stand for: cuisine at a price."""
    table = source.table.select(list(_HISTORY)).take(pa.array(firsts)).combine_chunks()
    days, hours, cuisines, prices = (
        pc.list_flatten(table[name]).combine_chunks() for name in _HISTORY
    )
    owner = pc.list_parent_indices(table["hist_day"]).combine_chunks()
    unknown = pc.invert(pc.is_in(days, value_set=strings(WEEKDAYS)))
    if pc.any(unknown).as_py():
        raise DataError(f"{source.path}: hist_day {days.filter(unknown)[0]} is no weekday")
    name = pc.binary_join_element_wise(cuisines, prices.cast(pa.string()), " ")
    ids = pc.binary_join_element_wise("past", name, ":")
    kinds = pc.unique(ids)
    place = pc.index_in(kinds, value_set=ids)
    cuisine = cuisines.take(place)
    items = pa.table(
        {
            "item_id": kinds,
            "kind": pa.repeat("past order", len(kinds)),
            "name": cuisine,
            "category": _singletons(cuisine),
            "price": prices.take(place),
        }
    )
    context = pa.StructArray.from_arrays(
        [days, mealtime(hours.to_numpy())], names=["weekday", "mealtime"]
    )
    events = pa.table(
        {
            "user_id": users.take(owner),
            "item_id": ids,
            "behaviour": pa.repeat("order", len(ids)),
            "context": context,
        }
    )
    return events, items


def _dishes(source: Source) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Distinct (dish, cuisine, price) as items, and the dish [N] of each row."""
    name, cuisine = source.required("dish_name"), source.required("cuisine")
    price = source.floats("price")
    key = pc.binary_join_element_wise(name, cuisine, price.cast(pa.string()), "\t")
    code = codes_of(key)
    place = pa.array(np.unique(code, return_index=True)[1])
    items = pa.table(
        {
            "item_id": numbered("dish", np.arange(len(place)), 5),
            "kind": pa.repeat("dish", len(place)),
            "name": name.take(place),
            "category": _singletons(cuisine.take(place)),
            "price": price.take(place),
        }
    )
    return items, code


def _singletons(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1), pa.int32()), values)


def _mode(events: pa.Table, users: pa.Array, feature: str) -> pa.Array:
    """The most frequent value of a context feature per user; the first in text order if tied."""
    counts = (
        pa.table(
            {
                "user": events["user_id"],
                "value": pc.struct_field(events["context"], feature),
            }
        )
        .group_by(["user", "value"])
        .aggregate([([], "count_all")])
        .sort_by([("count_all", "descending"), ("value", "ascending")])
    )
    first = pc.index_in(users, value_set=counts["user"].combine_chunks())
    return counts["value"].combine_chunks().take(first)
