"""Arrow schemas of the data set folder: the one place where columns are named and typed.

Times are int64 microseconds since the epoch, UTC; `tz_offset_min` is what local time adds to it.
"""

import pyarrow as pa

SCHEMA_VERSION = 1

ENTITY = pa.struct(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("type", pa.string()),
        ("confidence", pa.float32()),
        ("field", pa.string()),
    ]
)
LOCATION = pa.struct([("lat", pa.float64()), ("lon", pa.float64()), ("area", pa.string())])

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("title", pa.string()),
        ("abstract", pa.string()),
        ("text", pa.string()),
        ("category", pa.list_(pa.string())),  # path, root first
        ("price", pa.float64()),
        ("brand", pa.string()),
        ("location", LOCATION),
        ("created_at", pa.int64()),
        ("attributes", pa.map_(pa.string(), pa.string())),
        ("entities", pa.list_(ENTITY)),
    ]
)
ENTITIES = pa.schema(
    [pa.field("id", pa.string(), nullable=False), ("vector", pa.list_(pa.float32()))]
)
USERS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        ("created_at", pa.int64()),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)
CONTEXTS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # categorical | numeric
        ("edges", pa.list_(pa.float64())),  # bucket edges of a numeric feature, ascending
        ("values", pa.list_(pa.string())),  # declared values of a categorical feature
        ("phrasings", pa.map_(pa.string(), pa.list_(pa.string()))),  # value -> wordings
    ]
)
DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        ("title", pa.string()),
        pa.field("text", pa.string(), nullable=False),
    ]
)

CONTEXT_TYPES = {"categorical": pa.string(), "numeric": pa.float64()}
SPLITS = ("train", "valid", "test")
BEHAVIOURS = (
    "click",
    "view",
    "cart",
    "favourite",
    "search",
    "order",
    "like",
    "comment",
    "share",
    "follow",
    "bookmark",
    "rate",
    "tag",
    "checkin",
    "coupon",
)


def context_struct(contexts: dict[str, str]) -> pa.StructType:
    """Type of a `context` column for declared features {name: categorical|numeric}.

    Parquet cannot hold a struct without fields: where nothing is declared it has the one field
    `none`, always null.
    """
    if not contexts:
        return pa.struct([("none", pa.string())])
    return pa.struct([(name, CONTEXT_TYPES[kind]) for name, kind in contexts.items()])


def events_schema(contexts: dict[str, str]) -> pa.Schema:
    """`events`: one row per user action, sorted by (user_id, seq); seq is the order."""
    return pa.schema(
        [
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("seq", pa.int64(), nullable=False),
            ("ts", pa.int64()),
            ("tz_offset_min", pa.int16()),
            ("item_id", pa.string()),
            ("text", pa.string()),
            ("subject", pa.string()),
            pa.field("behaviour", pa.string(), nullable=False),
            ("scenario", pa.string()),
            ("context", context_struct(contexts)),
            ("value", pa.float64()),
        ]
    )


def impressions_schema(contexts: dict[str, str]) -> pa.Schema:
    """`impressions`: one row per request; orders ⊆ clicks ⊆ candidates, all item ids.

    `history_end` is the exclusive index into the user's history, used where `ts` is null.
    """
    return pa.schema(
        [
            pa.field("impression_id", pa.string(), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            ("ts", pa.int64()),
            ("tz_offset_min", pa.int16()),
            ("history_end", pa.int64()),
            ("context", context_struct(contexts)),
            pa.field("candidates", pa.list_(pa.string()), nullable=False),
            pa.field("clicks", pa.list_(pa.string()), nullable=False),
            pa.field("orders", pa.list_(pa.string()), nullable=False),
            ("position", pa.list_(pa.int16())),
            ("propensity", pa.list_(pa.float32())),
            pa.field("split", pa.string(), nullable=False),
        ]
    )


def table_schemas(contexts: dict[str, str]) -> dict[str, pa.Schema]:
    """Every table a data set folder may hold, for its declared context features."""
    return {
        "items": ITEMS,
        "entities": ENTITIES,
        "users": USERS,
        "contexts": CONTEXTS,
        "documents": DOCUMENTS,
        "events": events_schema(contexts),
        "impressions": impressions_schema(contexts),
    }
