"""A city small enough to tune a language model on in seconds: cuisines decide who eats where."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.manifest import DataCard
from raysys.data.prepared import prepare
from raysys.larr.log import Log
from raysys.larr.texts import TextConfig

CUISINES = {
    "thai": ["lemongrass soup", "green curry", "papaya salad", "basil rice"],
    "pizza": ["margherita", "calzone", "four cheeses", "garlic bread"],
    "sushi": ["salmon nigiri", "tuna maki", "miso soup", "eel rice"],
    "kebab": ["lamb skewer", "falafel plate", "hummus", "grilled aubergine"],
}
DAY = 86_400_000_000
T0 = 1_700_000_000_000_000
TRAIN_TO = T0 + 21 * DAY
TEST_FROM = T0 + 24 * DAY
CARD = DataCard(
    dataset="city",
    version="1",
    reader="test@1",
    label_rule="click",
    split_rule="by time",
    group_key="impression",
    history_cut="strict",
    licence="none",
)


def split_of(ts: int) -> str:
    """The part of the data that a moment is of."""
    return "train" if ts < TRAIN_TO else "valid" if ts < TEST_FROM else "test"


class City:
    """Rows of the tables; change them before `write`."""

    def __init__(self, seed: int = 0, places: int = 32, users: int = 24) -> None:
        rng = np.random.default_rng(seed)
        kinds = list(CUISINES)
        self.items = [
            dict(
                item_id=f"p{n}",
                kind="poi",
                name=f"{['Red', 'Blue', 'Green', 'Gold'][n % 4]} {kinds[n % 4]} house {n}",
                text="Menu: " + "; ".join(rng.permutation(CUISINES[kinds[n % 4]])[:3]),
                category=["food", kinds[n % 4]],
                brand=f"chain{n % 5}" if n % 3 == 0 else None,
                price=float(5 + n % 7),
                location=dict(lat=0.0, lon=0.0, area=f"area{n // 4 % 3}"),
            )
            for n in range(places)
        ]
        self.users = [
            dict(user_id=f"u{n:02d}", attributes=[("home", f"area{n % 3}")]) for n in range(users)
        ]
        self.events: list[dict[str, Any]] = []
        self.impressions: list[dict[str, Any]] = []
        liked = [[n for n in range(places) if n % 4 == user % 4] for user in range(users)]
        for user in range(users):
            times = np.sort(rng.choice(28 * 24, 30, replace=False)) * 3_600_000_000 + T0
            for seq, ts in enumerate(times):
                place = int(rng.choice(liked[user])) if rng.random() < 0.9 else rng.integers(places)
                self.events.append(
                    dict(
                        user_id=f"u{user:02d}",
                        seq=seq,
                        ts=int(ts),
                        item_id=f"p{place}",
                        behaviour="order" if seq % 3 == 0 else "click",
                    )
                )
                if seq % 3 == 2:
                    others = rng.choice(places, 6, replace=False)
                    shown = list(dict.fromkeys([f"p{place}", *(f"p{n}" for n in others)]))
                    self.impressions.append(
                        dict(
                            impression_id=f"i{user:02d}-{seq}",
                            user_id=f"u{user:02d}",
                            ts=int(ts),
                            candidates=shown,
                            clicks=[f"p{place}"],
                            orders=[f"p{place}"] if seq % 2 else [],
                            split=split_of(int(ts)),
                        )
                    )

    def write(self, folder: Path) -> Path:
        """A data set folder."""
        with DatasetWriter(folder) as writer:
            for name in ("items", "users", "events", "impressions"):
                writer.write(name, pa.Table.from_pylist(getattr(self, name), writer.schemas[name]))
            writer.commit(CARD, history_behaviours=("click", "order"))
        return folder


def open_city(folder: Path, holdout: float = 0.2, **text: Any) -> Log:
    """The log of a written city."""
    return Log.of(prepare(Dataset(folder)), TextConfig(**text), holdout, 0)
