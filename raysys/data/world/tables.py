"""From a shard's arrays to the Arrow tables of the data set folder and of its truth."""

import numpy as np
import pyarrow as pa

from raysys.data.schema import events_schema, impressions_schema
from raysys.data.world.news import READER_KINDS, NewsShard
from raysys.data.world.scene import FEATURES, context_array
from raysys.data.world.simulate import BEHAVIOURS, SCENARIOS, SUBJECTS, Lived, World

TRUTH_ROWS = pa.schema(
    [
        pa.field("impression_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        ("p_click", pa.float32()),
        ("p_order", pa.float32()),
        ("oracle", pa.float32()),
        ("joint", pa.bool_()),
    ]
)
TRUTH_REQUESTS = pa.schema(
    [
        pa.field("impression_id", pa.string(), nullable=False),
        ("prototype", pa.int16()),
        ("unseen_combination", pa.bool_()),
        ("new_value", pa.bool_()),
    ]
)
TRUTH_USERS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        ("cold", pa.bool_()),
        ("own_prototype", pa.int16()),
        ("reader", pa.string()),
        ("price_band", pa.int16()),
    ]
)


def _named(names: tuple[str, ...] | pa.Array, codes: np.ndarray) -> pa.Array:
    """Text of codes; −1 gives null."""
    values = names if isinstance(names, pa.Array) else pa.array(names)
    return values.take(pa.array(codes.astype(np.int32), mask=codes < 0))


def _rank(user: np.ndarray, users: int) -> np.ndarray:
    """[N] number of each row within its user; rows are sorted by user."""
    counts = np.bincount(user, minlength=users)
    rank: np.ndarray = np.arange(len(user)) - (np.cumsum(counts) - counts)[user]
    return rank


def events_table(world: World, lived: Lived) -> pa.Table:
    """The `events` part of a shard, sorted by (user_id, seq)."""
    log = lived.events
    n = len(log["user"])
    columns = {
        "user_id": _named(lived.people.ids, log["user"]),
        "seq": pa.array(_rank(log["user"], len(lived.people))),
        "ts": pa.array(log["ts"]),
        "tz_offset_min": pa.array(np.full(n, world.config.tz_offset_min, dtype=np.int16)),
        "item_id": _named(world.law.item_ids, log["item"]),
        "text": _named(world.law.queries, log["query"]),
        "subject": _named(SUBJECTS, log["subject"]),
        "behaviour": _named(BEHAVIOURS, log["behaviour"]),
        "scenario": _named(SCENARIOS, log["scenario"]),
        "context": context_array(log["context"], log["new_word"]),
        "value": pa.nulls(n, pa.float64()),
    }
    return pa.table(columns).cast(events_schema(FEATURES))


def _lists(values: pa.Array, counts: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def impression_ids(world: World, lived: Lived) -> pa.Array:
    """[R] user id and number of the request."""
    user = lived.requests["user"]
    number = _rank(user, len(lived.people))
    ids = [
        f"u{lived.people.first + u:07d}-{k:05d}"
        for u, k in zip(user.tolist(), number.tolist(), strict=True)
    ]
    return pa.array(ids, pa.string())


def impressions_table(world: World, lived: Lived) -> pa.Table:
    """The `impressions` part of a shard, in (user, time) order, split by time."""
    log, scene = lived.requests, world.scene
    real = log["items"] >= 0
    rank = np.broadcast_to(np.arange(real.shape[1], dtype=np.int16), real.shape)
    bounds = scene.midnight[[scene.valid_from, scene.test_from]]
    split = np.searchsorted(bounds, log["ts"], side="right")
    ids = world.law.item_ids
    columns = {
        "impression_id": impression_ids(world, lived),
        "user_id": _named(lived.people.ids, log["user"]),
        "ts": pa.array(log["ts"]),
        "tz_offset_min": pa.array(np.full(len(split), world.config.tz_offset_min, dtype=np.int16)),
        "history_end": pa.nulls(len(split), pa.int64()),
        "context": context_array(log["context"], log["new_word"]),
        "position": _lists(pa.array(rank[real]), real.sum(1)),
        "propensity": pa.nulls(len(split), pa.list_(pa.float32())),
        "split": _named(("train", "valid", "test"), split),
    }
    for name, mask in (
        ("candidates", real),
        ("clicks", log["clicked"]),
        ("orders", log["ordered"]),
    ):
        columns[name] = _lists(_named(ids, log["items"][mask]), mask.sum(1))
    schema = impressions_schema(FEATURES)
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def truth_rows(world: World, lived: Lived) -> pa.Table:
    """Per candidate: the probabilities and, if asked for, the terms of the law."""
    log = lived.requests
    real = log["items"] >= 0
    owner = np.repeat(np.arange(len(real)), real.sum(1))
    schema = TRUTH_ROWS
    columns = {
        "impression_id": _named(impression_ids(world, lived), owner),
        "item_id": _named(world.law.item_ids, log["items"][real]),
        **{name: pa.array(log[name][real]) for name in ("p_click", "p_order", "oracle", "joint")},
    }
    if world.config.truth_terms:
        for name in world.law.terms:
            columns[f"term_{name}"] = pa.array(log[f"term_{name}"][real].astype(np.float32))
            schema = schema.append(pa.field(f"term_{name}", pa.float32()))
    return pa.table(columns).cast(schema)


def truth_requests(world: World, lived: Lived) -> pa.Table:
    """Per impression: prototype in force, and how its scene is new."""
    log = lived.requests
    columns = {
        "impression_id": impression_ids(world, lived),
        "prototype": pa.array(log["prototype"].astype(np.int16)),
        "unseen_combination": pa.array(log["unseen"]),
        "new_value": pa.array(log["new_word"] >= 0),
    }
    return pa.table(columns).cast(TRUTH_REQUESTS)


def truth_users(lived: Lived) -> pa.Table:
    """Per user: cold or not, own prototype and liked price (food), kind of reader (news)."""
    n = len(lived.people)
    columns = {"user_id": lived.people.ids, "cold": pa.array(lived.people.cold)}
    if isinstance(lived.law, NewsShard):
        columns["reader"] = _named(tuple(READER_KINDS), lived.law.kind)
    else:
        columns["own_prototype"] = pa.array(lived.law.own_prototype.astype(np.int16))
        columns["price_band"] = pa.array(lived.people.price.astype(np.int16))
    for name in TRUTH_USERS.names:
        columns.setdefault(name, pa.nulls(n, TRUTH_USERS.field(name).type))
    return pa.table({name: columns[name] for name in TRUTH_USERS.names}).cast(TRUTH_USERS)
