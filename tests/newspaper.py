"""A small newspaper in memory and as a data set: readers who click what names their entities."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from data_fixtures import CARD
from interrupted import Stopping

from raysys.artifacts.ranker import Ranker
from raysys.data.batch import Batch
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.dataset import DatasetWriter
from raysys.data.features import FeatureSpace
from raysys.news.entities import EntityFit, EntityTable
from raysys.options import merge, resolve
from raysys.perconet.config import PerconetConfig, PerconetOptions
from raysys.perconet.placebo import Placebo
from raysys.perconet.ranker import Perconet
from raysys.recipes.registry import recipe_of, run
from raysys.training.reporter import InterruptedRunError

NEWS, ENTITIES, TEXT = 40, 12, 6
LATE = 6  # news that only the days of validation and test know
WIDTHS = {"title": TEXT, "abstract": TEXT, "title_abstract": TEXT}
SMALL = {"width": 8, "heads": 2, "query": 4, "history_length": 10, "dropout": 0.0,
         "contrast": {"width": 4}, "persona": {"clicks": 10, "size": 5, "buckets": 7}}  # fmt: skip
FEATURES = FeatureSpace(items=(), contexts=ContextCodec(features=()), vectors=WIDTHS)
DAY = 86_400_000_000


def entity_table(width: int = 4, shipped: bool = True) -> EntityTable:
    """Most news name one to three entities; every fourth none."""
    rng = np.random.default_rng(1)
    news = np.zeros((FIRST + NEWS, 3), np.int64)
    for row in range(FIRST, FIRST + NEWS):
        if row % 4:
            count = int(rng.integers(1, 4))
            news[row, :count] = rng.choice(ENTITIES, count, replace=False) + 1
    vectors = rng.normal(size=(1 + ENTITIES, width)).astype(np.float32)
    vectors[0] = 0
    vectors[1::3] = 0  # some have none
    return EntityTable(
        ids=[f"Q{n}" for n in range(ENTITIES)],
        labels=[f"entity {n}" for n in range(ENTITIES)],
        types=["PO"[n % 2] for n in range(ENTITIES)],
        idf=np.concatenate([[0.0], rng.uniform(0.5, 3, ENTITIES)]).astype(np.float32),
        vectors=vectors if shipped else np.zeros_like(vectors),
        news=news,
        confidence=((news > 0) * rng.uniform(0.5, 1, news.shape)).astype(np.float32),
    )


def catalogue() -> Catalogue:
    """Random text vectors; every seventh news has no abstract."""
    rng = np.random.default_rng(2)
    vectors = {name: rng.normal(size=(FIRST + NEWS, TEXT)).astype(np.float32) for name in WIDTHS}
    for values in vectors.values():
        values[:FIRST] = 0
    vectors["abstract"][FIRST::7] = 0
    ids = pa.array([f"n{n}" for n in range(NEWS)])
    return Catalogue(ids, np.zeros((FIRST + NEWS, 0), np.int32), vectors)


def model(
    *, table: EntityTable | None = None, placebo: Placebo | None = None, seed: int = 0, **given: Any
) -> Perconet:
    """An untrained model of these options over the newspaper, weights drawn wide."""
    table = table or entity_table()
    options = PerconetOptions.model_validate(merge(SMALL, given))
    fitted = EntityFit(
        entities=len(table), entity_width=table.vectors.shape[1], types=("O", "P"), frozen_steps=0
    )
    torch.manual_seed(seed)
    made = Perconet.from_config(PerconetConfig(**dict(options), fitted=fitted), FEATURES)
    made.bind(catalogue())
    made.bind_entities(table, placebo)
    made.bind_texts(np.arange(FIRST + NEWS))
    with torch.no_grad():
        made.default.normal_(generator=torch.Generator().manual_seed(seed))
    return made


def batch(
    seed: int = 0, size: int = 6, length: int = 10, candidates: int = 5, *, empty: bool = True
) -> Batch:
    """Random requests; the first has no history unless told, lists are ragged."""
    rng = np.random.default_rng(seed)
    past = rng.integers(1, length, size, endpoint=True)
    if empty:
        past[0] = 0
    real = np.arange(length) < past[:, None]
    shown = np.arange(candidates) < rng.integers(2, candidates, size, endpoint=True)[:, None]
    clicks = shown & (np.arange(candidates) == 0)
    return make_batch(
        rng.integers(FIRST, FIRST + NEWS, (size, length)) * real,
        rng.integers(FIRST, FIRST + NEWS, (size, candidates)) * shown,
        clicks.astype(np.float32),
    )


def make_batch(history: Any, candidates: Any, clicks: Any = None) -> Batch:
    """History [B, L] and candidates [B, C] rows, 0 padding."""
    history, candidates = (np.asarray(x, np.int64) for x in (history, candidates))
    tensor = torch.from_numpy
    return Batch(
        context=torch.zeros(len(history), 0, dtype=torch.int64),
        history_items=tensor(history),
        history_mask=tensor(history != 0),
        history_context=torch.zeros(*history.shape, 0, dtype=torch.int64),
        history_behaviour=torch.zeros(history.shape, dtype=torch.int64),
        history_age_s=torch.zeros(history.shape),
        history_length=tensor((history != 0).sum(1)),
        candidates=tensor(candidates),
        candidate_mask=tensor(candidates != 0),
        clicks=None if clicks is None else tensor(np.asarray(clicks, np.float32)),
    )


def train(ranker: Ranker, batches: list[Batch], lr: float = 0.02, epochs: int = 30) -> None:
    """A few epochs of Adam."""
    optimizer = torch.optim.Adam(ranker.parameters(), lr=lr)
    ranker.train()
    for _ in range(epochs):
        for one in batches:
            total, weight = ranker.loss(one)
            optimizer.zero_grad()
            (total / weight).backward()
            optimizer.step()
    ranker.eval()


def write(
    folder: Path, *, days: int = 10, users: int = 30, seed: int = 0, abstracts: bool = True
) -> Path:
    """A data set: two impressions per user and day; the last two days are valid and test."""
    rng = np.random.default_rng(seed)
    liked = rng.integers(0, ENTITIES, users)
    items = []
    named = []
    for n in range(NEWS):
        entities = rng.choice(ENTITIES, 2, replace=False).tolist() if n % 5 else []
        named.append(set(entities))
        told = " and ".join(f"person{e}" for e in entities) or "nobody"
        abstract = f"It happened that {told} did thing {n % 4}"
        items.append(
            dict(
                item_id=f"n{n}",
                kind="news",
                title=f"News {n} about {told}",
                abstract=abstract if n % 7 and abstracts else None,
                category=["news", f"c{n % 3}"],
                entities=[
                    dict(id=f"Q{e}", label=f"person{e}", type="PO"[e % 2], confidence=0.9,
                         field=field)
                    for e, field in zip(entities, ("title", "abstract"), strict=False)
                ],
            )
        )  # fmt: skip
    events, shown = [], []
    for user in range(users):
        seq = 0
        for day in range(days):
            for half in range(2):
                ts = day * DAY + half * DAY // 2 + user
                listed = rng.choice(NEWS if day >= days - 2 else NEWS - LATE, 6, replace=False)
                likely = [0.9 if liked[user] in named[n] else 0.1 for n in listed]
                clicks = [f"n{n}" for n, p in zip(listed, likely, strict=True) if rng.random() < p]
                shown.append(
                    dict(
                        impression_id=f"p{user:02d}-{day}-{half}",
                        user_id=f"u{user:02d}",
                        ts=ts,
                        candidates=[f"n{n}" for n in listed],
                        clicks=clicks,
                        orders=[],
                        split=("test" if day == days - 1 else "valid" if day == days - 2 else
                               "train"),
                    )
                )  # fmt: skip
                for click in clicks:
                    events.append(
                        dict(user_id=f"u{user:02d}", seq=seq, ts=ts + 1, item_id=click,
                             behaviour="click")
                    )  # fmt: skip
                    seq += 1
    vectors = [
        dict(id=f"Q{e}", vector=rng.normal(size=4).tolist()) for e in range(ENTITIES) if e % 3
    ]
    with DatasetWriter(folder, contexts={}) as writer:
        for name, rows in dict(
            items=items, events=events, impressions=shown, entities=vectors
        ).items():
            writer.write(name, pa.Table.from_pylist(rows, writer.schemas[name]))
        writer.commit(CARD, history_behaviours=("click",))
    return folder


TINY = ["model.width=16", "model.heads=2", "model.query=8", "model.history_length=20",
        "model.dropout=0.1", "model.contrast.width=8", "model.persona.clicks=20",
        "model.persona.size=6", "model.persona.buckets=16", "batch_size=32", "train.epochs=8",
        "train.lr=0.01", "train.early_stopping=null"]  # fmt: skip


def train_run(data: Path, out: Path, *over: str, stop_at: int | None = None) -> dict[str, Any]:
    """Train a small `news/perconet`; with `stop_at`, interrupted after so many steps."""
    config = resolve(recipe_of("news/perconet"), None, [*TINY, *over], {"data": str(data)})
    try:
        return run(config, out, show_progress=False, reporter=Stopping(stop_at)).result
    except InterruptedRunError:
        assert stop_at is not None
        return {}
