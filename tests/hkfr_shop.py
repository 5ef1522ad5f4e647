"""Small shops in rows of plain Python: what users viewed and ordered, cut at two days."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.manifest import DataCard
from raysys.data.prepared import Prepared, prepare
from raysys.data.split import iso

DAY = 86_400_000_000
START = 1_700_006_400_000_000  # a midnight, UTC
KINDS = ("view", "cart", "coupon", "order")
AREAS = ("north", "south")
Row = dict[str, Any]


def event(user: str, day: float, kind: str, item: str, **more: Any) -> Row:
    """An event `day` days after the start; `area` and `value` are optional."""
    area = more.pop("area", None)
    return {"user_id": user, "ts": START + round(day * DAY), "behaviour": kind, "item_id": item,
            "context": {"area": area}, **more}  # fmt: skip


def write_shop(
    folder: Path, categories: dict[str, str | None], events: list[Row], days: tuple[int, int]
) -> Prepared:
    """A data set whose items have these categories; validation and test begin on `days`."""
    edges = [START + day * DAY for day in days]
    seq: dict[str, int] = {}
    rows = []
    for row in sorted(events, key=lambda row: (row["user_id"], row["ts"])):
        seq[row["user_id"]] = seq.get(row["user_id"], -1) + 1
        rows.append({"tz_offset_min": 0, **row, "seq": seq[row["user_id"]]})
    # Nobody asks for these, but a data set has requests.
    shown = [
        dict(impression_id=split, user_id="nobody", split=split, context={"area": None}, orders=[],
             ts=edges[0] + place * (edges[1] - edges[0]), candidates=list(categories)[:2],
             clicks=list(categories)[:1])
        for place, split in ((-1, "train"), (0, "valid"), (1, "test"))
    ]  # fmt: skip
    items = [{"item_id": i, "category": [c] if c else None} for i, c in categories.items()]
    card = DataCard(
        dataset="shop", version="1", reader="test@1", label_rule="click", split_rule="time",
        split_bounds={"valid": iso(edges[0]), "test": iso(edges[1])},
        group_key="impression", history_cut="strict", licence="none",
    )  # fmt: skip
    with DatasetWriter(folder, contexts={"area": "categorical"}) as writer:
        for name, table in (("items", items), ("events", rows), ("impressions", shown)):
            writer.write(name, pa.Table.from_pylist(table, writer.schemas[name]))
        writer.commit(card, history_behaviours=KINDS)
    return prepare(Dataset(folder))


def random_events(rng: np.random.Generator, items: list[str], users: int, days: int) -> list[Row]:
    """Up to 12 events of each user, some at one moment, some before midnight; cold users too."""
    rows = []
    for user in range(users):
        moments = rng.integers(0, days * 8, 6) / 8
        for _ in range(int(rng.integers(0, 13))):
            kind, item = rng.choice(KINDS, p=[0.2, 0.1, 0.1, 0.6]), rng.choice(items)
            more = {"area": str(rng.choice(AREAS)), "value": float(rng.integers(0, 3))}
            rows.append(event(f"u{user}", float(rng.choice(moments)), str(kind), str(item), **more))
    return rows
