"""A world folder in flat arrays, with its truth beside it. For figures and tests only."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.dataset import Dataset
from raysys.data.world.lexicon import (
    CUISINES,
    DAY_TYPES,
    MEALTIMES,
    NEW_WEATHERS,
    PLACES,
    WEATHERS,
)
from raysys.data.world.scene import context_code
from raysys.data.world.truth import Truth

FIELDS = {"cuisine": CUISINES, "price_band": "01234", "quality": "0123", "delivery": "0123"}


def codes_of(values: pa.Array | pa.ChunkedArray, names: Any) -> np.ndarray:
    """Index of each value in `names`; −1 where it is none of them or null."""
    index = pc.index_in(values, pa.array(list(names)))
    codes: np.ndarray = pc.fill_null(index, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def lawful_codes(context: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Context codes of a `context` column; a new weather word has the code of its old one (in a
    world without the law of words, where it tells nothing, any code)."""
    column = context.combine_chunks() if isinstance(context, pa.ChunkedArray) else context
    weather = codes_of(column.field("weather"), (*WEATHERS, *NEW_WEATHERS)) % len(WEATHERS)
    return context_code(
        codes_of(column.field("mealtime"), MEALTIMES),
        codes_of(column.field("place"), PLACES),
        weather,
        codes_of(column.field("day"), DAY_TYPES),
    )


@dataclass(frozen=True)
class Rows:
    """Candidate rows of a world's parts, flat; `request` points into the per-request arrays."""

    item: np.ndarray
    request: np.ndarray
    click: np.ndarray
    order: np.ndarray
    oracle: np.ndarray
    user: np.ndarray  # [R]
    ts: np.ndarray  # [R]
    context: np.ndarray  # [R]
    split: np.ndarray  # [R] 0 train, 1 valid, 2 test
    unseen: np.ndarray  # [R]
    new_value: np.ndarray  # [R]
    prototype: np.ndarray  # [R]


def _members(part: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(request, item text as dictionary-free array) of a list column."""
    column = part[name].combine_chunks()
    return pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)


def read_rows(dataset: Dataset, truth: Truth, parts: int) -> Rows:
    """Candidate rows of the first `parts` shards beside their truth."""
    ids = dataset.table("items", ["item_id"])["item_id"].combine_chunks()
    users = dataset.table("users", ["user_id"])["user_id"].combine_chunks()
    blocks: list[dict[str, np.ndarray]] = []
    offset = 0
    for number, part in enumerate(dataset.parts("impressions")):
        if number == parts:
            break
        rows, requests = truth.rows(number), truth.requests(number)
        request, item = _members(part, "candidates")
        code = codes_of(item, ids)
        marks = {}
        for name in ("clicks", "orders"):
            owner, chosen = _members(part, name)
            marks[name] = np.isin(
                request * len(ids) + code, owner * len(ids) + codes_of(chosen, ids)
            )
        blocks.append(
            {
                "item": code,
                "request": request + offset,
                "click": marks["clicks"],
                "order": marks["orders"],
                "oracle": rows["oracle"].to_numpy(),
                "user": codes_of(part["user_id"], users),
                "ts": part["ts"].to_numpy(),
                "context": lawful_codes(part["context"]),
                "split": codes_of(part["split"], ("train", "valid", "test")),
                "unseen": requests["unseen_combination"].to_numpy(zero_copy_only=False),
                "new_value": requests["new_value"].to_numpy(zero_copy_only=False),
                "prototype": requests["prototype"].to_numpy(),
            }
        )
        offset += len(part)
    return Rows(**{name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]})


@dataclass(frozen=True)
class History:
    """Clicks of a world's parts, sorted by (user, time). All arrays [N]."""

    user: np.ndarray
    ts: np.ndarray
    item: np.ndarray
    context: np.ndarray


def read_history(dataset: Dataset, parts: int) -> History:
    """The click events of the first `parts` shards."""
    ids = dataset.table("items", ["item_id"])["item_id"].combine_chunks()
    users = dataset.table("users", ["user_id"])["user_id"].combine_chunks()
    blocks = []
    for number, part in enumerate(
        dataset.parts("events", ["user_id", "ts", "item_id", "behaviour", "context"])
    ):
        if number == parts:
            break
        part = part.filter(pc.equal(part["behaviour"], "click"))
        blocks.append(
            (
                codes_of(part["user_id"], users),
                part["ts"].to_numpy(),
                codes_of(part["item_id"], ids),
                lawful_codes(part["context"]),
            )
        )
    return History(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def history_ends(history: History, user: np.ndarray, ts: np.ndarray) -> tuple[np.ndarray, ...]:
    """(start, end) rows [R] of the events of `user` strictly before `ts`."""
    base = min(int(history.ts.min(initial=0)), int(ts.min(initial=0)))
    span = np.int64(1) << 52
    key = history.user * span + (history.ts - base)
    return (
        np.searchsorted(key, user * span),
        np.searchsorted(key, user * span + (ts - base), side="left"),
    )


def item_fields(dataset: Dataset) -> list[np.ndarray]:
    """Per field [items] value codes of the items' attributes."""
    attributes = [
        dict(row) for row in dataset.table("items", ["attributes"])["attributes"].to_pylist()
    ]
    return [
        np.array([list(values).index(row[name]) for row in attributes])
        for name, values in FIELDS.items()
    ]
