"""A small data set and untrained runs on it, made once per test session."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from cofars_runs import small_world, tiny

from raysys.artifacts.run import save_run
from raysys.ctr.din import DIN, DINConfig
from raysys.ctr.retrievers.config import RetrieverConfig
from raysys.ctr.retrievers.fit import fit_retriever
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.features import FeatureConfig, fit_features
from raysys.data.manifest import DataCard
from raysys.data.prepared import Prepared, prepare
from raysys.data.requests import Request
from raysys.data.split import iso
from raysys.news.nrms import NRMS, NRMSConfig
from raysys.recipes.registry import run

ITEMS = [f"item-{i:02d}" for i in range(30)]
USERS = [f"user-{i:02d}" for i in range(12)]
MEALS = ("lunch", "dinner")
HOUR = 3_600_000_000
START = 1_700_000_000_000_000
NOW = START + 200 * HOUR


class Handle:
    """A deployment in this process that is called as one in another."""

    def __init__(self, deployed: Any) -> None:
        self.deployed = deployed

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = staticmethod(getattr(self.deployed, name))

        return Method


@cache
def dataset(root: Path) -> Prepared:
    """30 items, 12 users with 3..25 clicks each, 24 impressions of 5 candidates."""
    os.environ["RAYSYS_CACHE"] = str(root / "cache")
    rng = np.random.default_rng(0)
    events, impressions = [], []
    for number, user in enumerate(USERS):
        for seq in range(3 + 2 * number):
            events.append(
                dict(
                    user_id=user,
                    seq=seq,
                    ts=START + seq * HOUR,
                    item_id=ITEMS[int(rng.integers(len(ITEMS)))],
                    behaviour="click",
                    context=dict(meal=MEALS[seq % 2], degrees=float(seq)),
                )
            )
        for part, split in enumerate(("train", "test")):
            chosen = [ITEMS[i] for i in rng.choice(len(ITEMS), 5, replace=False)]
            impressions.append(
                dict(
                    impression_id=f"{user}-{split}",
                    user_id=user,
                    ts=NOW + part * HOUR,
                    context=dict(meal=MEALS[part], degrees=10.0 * part),
                    candidates=chosen,
                    clicks=chosen[:1],
                    orders=chosen[:1],
                    split=split,
                )
            )
    contexts = dict(meal="categorical", degrees="numeric")
    with DatasetWriter(root / "data", contexts=contexts) as writer:
        kinds = [ITEMS[i % 3] for i in range(len(ITEMS))]
        writer.write("items", pa.table(dict(item_id=ITEMS, brand=kinds, title=ITEMS)))
        declared = [
            dict(name="meal", kind="categorical", values=list(MEALS), edges=None),
            dict(name="degrees", kind="numeric", values=None, edges=[0.0, 10.0]),
        ]
        writer.write("contexts", pa.Table.from_pylist(declared))
        for table, rows in (("events", events), ("impressions", impressions)):
            writer.write(table, pa.Table.from_pylist(rows))
        card = DataCard(
            dataset="tiny",
            version="1",
            reader="test@1",
            label_rule="click",
            split_rule="by time",
            group_key="impression",
            history_cut="strict",
            time_span=(iso(START), iso(NOW + HOUR)),
            licence="none",
        )
        writer.commit(card, history_behaviours=("click",))
    return prepare(Dataset(root / "data"))


@cache
def ctr_run(
    root: Path, *, histories: bool = True, retriever: RetrieverConfig | None = None
) -> Path:
    """Run folder of an untrained DIN."""
    data = dataset(root)
    features = fit_features(data, FeatureConfig())
    options = DINConfig(
        embedding_dim=4,
        hidden=(8,),
        attention_hidden=(8,),
        init_std=0.5,
        orders=True,
        retriever=fit_retriever(retriever, data, features.contexts, 0),
    )
    name = f"ctr-{histories}-{retriever.kind if retriever else None}"
    return _save(root / name, data, "ctr/din", DIN, options, features, {}, histories)


@cache
def news_run(root: Path) -> Path:
    """Run folder of an untrained NRMS on random title vectors."""
    data = dataset(root)
    features = fit_features(data, FeatureConfig(vectors=("title",)), {"title": 8})
    vectors = {"title": np.random.default_rng(1).normal(size=(len(ITEMS), 8)).astype(np.float32)}
    options = NRMSConfig(width=8, heads=2, query=4)
    return _save(root / "news", data, "news/nrms", NRMS, options, features, vectors, True)


@cache
def cofars_run(root: Path) -> tuple[Path, Path]:
    """A small city, and the run folder of a CoFARS trained on it a little."""
    os.environ["RAYSYS_CACHE"] = str(root / "cache")
    small_world(root / "city")
    run(tiny(root / "city"), root / "cofars", show_progress=False)
    return root / "city", root / "cofars"


def _save(path, data, recipe, kind, options, features, vectors, histories) -> Path:
    import torch

    torch.manual_seed(0)
    save_run(
        path,
        model=kind.from_config(options, features),
        model_options=options,
        features=features,
        items=data.dataset.table("items"),
        vectors=vectors,
        vector_specs={name: {} for name in vectors},
        recipe=recipe,
        recipe_options={},
        data_card=data.dataset.manifest.data_card,
        card_text="untrained",
        histories=data.histories if histories else None,
    )
    return path


def requests(count: int, seed: int = 0) -> list[Request]:
    """Requests of known, unknown and history-sending users, with 1 to 20 candidates."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        chosen = rng.choice(len(ITEMS), int(rng.integers(1, 20)), replace=False)
        inline = [
            dict(item_id=ITEMS[int(i)], ts=START + k * HOUR, context={"meal": "lunch"})
            for k, i in enumerate(rng.integers(len(ITEMS), size=4))
        ]
        out.append(
            Request.model_validate(
                dict(
                    request_id=f"r{number}",
                    user_id=str(rng.choice([*USERS, "stranger"])),
                    ts=int(NOW + rng.integers(HOUR)),
                    context={"meal": str(rng.choice([*MEALS, "brunch"])), "degrees": 5.0},
                    candidates=[*(ITEMS[i] for i in chosen), "new item"],
                    history=inline if number % 5 == 0 else None,
                )
            )
        )
    return out
