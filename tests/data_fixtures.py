"""Random small data sets in rows of plain Python, written as data set folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.data.dataset import DatasetWriter
from raysys.data.manifest import DataCard

ITEMS = [f"i{n}" for n in range(10)]
MEALS = ("lunch", "dinner")
CONTEXTS = {"meal": "categorical", "degrees": "numeric"}
CARD = DataCard(
    dataset="tiny",
    version="1",
    reader="test@1",
    label_rule="click",
    split_rule="by time",
    group_key="impression",
    history_cut="strict",
    licence="none",
)


@dataclass
class Log:
    """The rows of the tables; change them before `write`."""

    items: list[dict[str, Any]]
    events: list[dict[str, Any]]
    impressions: list[dict[str, Any]]

    def write(self, folder: Path, parts: int = 1) -> Path:
        """A data set folder with events and impressions in `parts` parts."""
        with DatasetWriter(folder, contexts=CONTEXTS) as writer:
            tables = {"items": self.items, "events": self.events, "impressions": self.impressions}
            for name, rows in tables.items():
                size = -(-len(rows) // parts) if name != "items" else len(rows)
                for start in range(0, len(rows), max(size, 1)):
                    part = rows[start : start + size]
                    writer.write(name, pa.Table.from_pylist(part, writer.schemas[name]))
            declared = [
                dict(name="meal", kind="categorical", values=["lunch"]),
                dict(name="degrees", kind="numeric", edges=[0.0, 10.0]),
            ]
            writer.write("contexts", pa.Table.from_pylist(declared, writer.schemas["contexts"]))
            writer.commit(CARD, history_behaviours=("click", "order"))
        return folder


def log(seed: int, users: int = 5, impressions: int = 12, timed: bool = True) -> Log:
    """Users with 0 to 6 events, some of them no history or of no known item; ragged lists."""
    rng = np.random.default_rng(seed)
    items = [
        dict(
            item_id=item,
            brand=None if n % 4 == 0 else f"b{n % 3}",
            category=["food", f"c{n % 2}"][: n % 3] or None,
            price=None if n % 5 == 0 else float(n),
            attributes=[("size", f"s{n % 4}")] if n % 2 else None,
        )
        for n, item in enumerate(ITEMS)
    ]

    def context() -> dict[str, Any]:
        meal = rng.choice([*MEALS, ""])
        return dict(meal=meal or None, degrees=float(rng.integers(-5, 20)))

    events = [
        dict(
            user_id=f"u{user}",
            seq=seq,
            ts=int(ts) if timed else None,
            item_id=str(rng.choice([*ITEMS, "nowhere"])),
            behaviour=str(rng.choice(["click", "order", "view"])),
            context=context(),
        )
        for user in range(users)
        for seq, ts in enumerate(np.sort(rng.integers(0, 20, rng.integers(0, 7))))
    ]
    shown = []
    for number in range(impressions):
        size = int(rng.integers(2, 6))
        listed = [ITEMS[i] for i in rng.choice(len(ITEMS), size, replace=False)]
        clicks = [i for i in listed if rng.random() < 0.4]
        if number == 0:
            clicks = listed[:1]
        shown.append(
            dict(
                impression_id=f"p{number}",
                user_id=f"u{rng.integers(users + 1)}",
                ts=int(rng.integers(0, 25)) if timed else None,
                history_end=None if timed else int(rng.integers(0, 9)),
                tz_offset_min=60,
                context=context(),
                candidates=listed,
                clicks=clicks,
                orders=clicks[:1],
                position=list(range(size)),
                split=("train", "train", "valid", "test")[number % 4],
            )
        )
    return Log(items, events, shown)
