"""A tiny random log, kept both as a data set folder and as plain Python lists to reckon with."""

import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysys.artifacts.run import save_run
from raysys.ctr.din import DIN, DINConfig
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.features import FeatureConfig, fit_features
from raysys.data.manifest import DataCard
from raysys.data.prepared import Prepared, prepare
from raysys.data.split import iso

HOUR = 3_600_000_000
START = 1_700_000_000_000_000
WORDS = ["soup", "rice", "noodle", "bread", "salad", "grill", "tea", "cake", "curry", "bean"]
PATHS = [["food", "hot", "soup"], ["food", "hot"], ["food", "cold"], ["drink", "cold"], []]


@dataclass
class Log:
    """items, events (sorted by user and seq) and impressions as they are written."""

    items: list[dict[str, Any]]
    events: list[dict[str, Any]]
    impressions: list[dict[str, Any]]
    group_key: str = "impression"

    def copy(self) -> "Log":
        return deepcopy(self)

    def rows(self, split: str) -> list[tuple[dict[str, Any], str]]:
        """(impression, item id) of every candidate row, in table order."""
        return [(i, c) for i in self.impressions if i["split"] == split for c in i["candidates"]]

    def history(self, impression: dict[str, Any]) -> list[str | None]:
        """Item ids of the user's events before the impression, oldest first."""
        mine = [e for e in self.events if e["user_id"] == impression["user_id"]]
        if impression["ts"] is None:
            return [e["item_id"] for e in mine[: impression["history_end"]]]
        return [e["item_id"] for e in mine if e["ts"] < impression["ts"]]

    def item(self, item_id: str) -> dict[str, Any]:
        return next(i for i in self.items if i["item_id"] == item_id)


def random_log(seed: int, *, timed: bool = True, users: int = 8, impressions: int = 60) -> Log:
    """18 items of which some lack category, text, entities or creation time; user 0 is cold."""
    rng = np.random.default_rng(seed)
    items = [
        dict(
            item_id=f"i{n:02d}",
            title=" ".join(rng.choice(WORDS, int(rng.integers(1, 5)))) if n % 6 else None,
            category=PATHS[n % len(PATHS)] or None,
            created_at=int(START + rng.integers(-50, 50) * HOUR) if timed and n % 3 else None,
            entities=[dict(id=f"E{e}") for e in rng.choice(5, n % 3, replace=False)],
        )
        for n in range(18)
    ]
    ids = [item["item_id"] for item in items]
    events = []
    for user in range(1, users):
        count = int(rng.integers(1, 20))
        times = np.sort(rng.integers(0, 200, count))
        for seq in range(count):
            events.append(
                dict(
                    user_id=f"u{user:02d}",
                    seq=seq,
                    ts=int(START + times[seq] * HOUR) if timed else None,
                    item_id=str(rng.choice(ids)) if seq % 7 else None,
                    behaviour="click",
                )
            )
    shown = []
    for n, hour in enumerate(np.sort(rng.integers(20, 200, impressions))):
        user = f"u{rng.integers(users):02d}"
        mine = sum(e["user_id"] == user for e in events)
        chosen = [str(i) for i in rng.choice(ids, int(rng.integers(2, 6)), replace=False)]
        part = n / impressions
        shown.append(
            dict(
                impression_id=f"r{n:03d}",
                user_id=user,
                ts=int(START + hour * HOUR) if timed else None,
                history_end=None if timed else int(rng.integers(mine + 1)),
                candidates=chosen,
                clicks=[i for i in chosen if rng.random() < 0.4],
                split="train" if part < 0.6 else "valid" if part < 0.75 else "test",
            )
        )
    return Log(items, events, shown)


def write(log: Log, folder: Path) -> Prepared:
    """Write the log as a data set and open it; the cache lies beside it."""
    os.environ["RAYSYS_CACHE"] = str(folder / "cache")
    card = DataCard(
        dataset="tiny",
        version="1",
        reader="test",
        label_rule="clicked",
        split_rule="by time",
        group_key=log.group_key,
        history_cut="before the request",
        time_span=(iso(START), iso(START + 10_000 * HOUR)) if log.events[0]["ts"] else None,
        licence="CC0-1.0",
    )
    with DatasetWriter(folder / "data") as writer:
        for name, rows in (
            ("items", log.items),
            ("events", log.events),
            ("impressions", [dict(i, orders=[]) for i in log.impressions]),
        ):
            schema = writer.schemas[name]
            columns = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in schema}
            writer.write(name, pa.table(columns, schema=schema))
        writer.commit(card, history_behaviours=("click",))
    return prepare(Dataset(folder / "data"))


def untrained_run(data: Prepared, folder: Path, vectors: np.ndarray | None = None) -> Path:
    """A DIN run with random weights, as `raysys train` would leave it; vectors: [items, D]."""
    torch.manual_seed(0)
    frozen = {} if vectors is None else {"title": vectors}
    widths = {name: values.shape[1] for name, values in frozen.items()}
    features = fit_features(data, FeatureConfig(vectors=tuple(widths)), widths)
    config = DINConfig(embedding_dim=4, hidden=(8,), attention_hidden=(8,), init_std=1.0)
    save_run(
        folder,
        model=DIN.from_config(config, features),
        model_options=config,
        features=features,
        items=data.dataset.table("items"),
        vectors=frozen,
        vector_specs={name: {} for name in frozen},
        recipe="ctr/din",
        recipe_options={},
        data_card=data.dataset.card,
        card_text="",
        histories=data.histories,
    )
    return folder
