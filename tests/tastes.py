"""People whose clicks follow their taste alone, and a dated table that knows it the day before."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.data.dataset import DatasetWriter
from raysys.data.feature_table import SCHEMA, write_features
from raysys.data.manifest import DataCard
from raysys.recipes.registry import DINRecipe

FIRST = date(2023, 5, 1)
HOUR = 3_600_000_000
NOW = int((FIRST - date(1970, 1, 1)).days) * 24 * HOUR


def planted(root: Path) -> tuple[Path, Path]:
    """People of two tastes who click by it alone, and a table that knows the taste the day before.

    Nobody has a history. The tables of the day itself say the opposite.
    """
    rng = np.random.default_rng(0)
    shown = []
    for number in range(120):
        user, day = number % 30, number // 30
        clicked = "sweet" if user % 2 else "salty"
        shown.append(
            dict(
                impression_id=f"p{number:03d}", user_id=f"u{user:02d}",
                ts=NOW + (24 * day + int(rng.integers(24))) * HOUR, tz_offset_min=0,
                candidates=["sweet", "salty"], clicks=[clicked], orders=[], context={},
                split=("train", "train", "valid", "test")[day],
            )
        )  # fmt: skip
    with DatasetWriter(root / "data", contexts={}) as writer:
        writer.write("items", pa.table(dict(item_id=["sweet", "salty"])))
        kinds = writer.schemas
        writer.write("events", pa.Table.from_pylist([], kinds["events"]))
        writer.write("impressions", pa.Table.from_pylist(shown, kinds["impressions"]))
        writer.commit(
            DataCard(
                dataset="tastes", version="1", reader="test@1", label_rule="click",
                split_rule="by day", group_key="impression", history_cut="strict", licence="none",
            ),
            history_behaviours=("click",),
        )  # fmt: skip
    for day in (-1, 3):
        told_on(root / "table", day, {f"u{u:02d}": float(u % 2 == (day < 0)) for u in range(28)})
    return root / "data", root / "table"


def told_on(table: Path, day: int, likes: dict[str, float]) -> None:
    """Write what is known of users at the end of a day, counted from `FIRST`."""
    rows = [
        dict(owner_kind="user", owner_id=user, name="taste", value=[like] * 2, source_id="s")
        for user, like in likes.items()
    ]
    write_features(table, FIRST + timedelta(days=day), pa.Table.from_pylist(rows, SCHEMA))


def din(data: Path, table: Path | None, **more: Any) -> DINRecipe:
    """A small ranker that reads the table."""
    return DINRecipe.model_validate(
        dict(
            data=str(data), feature_table=table and str(table), features={"tables": ["taste"]},
            model=dict(embedding_dim=4, hidden=(8,), attention_hidden=(4,)), batch_size=8,
            train=dict(epochs=12, lr=0.02),
        ) | more
    )  # fmt: skip
