"""What PerCoNet costs beside our NRMS: time of a request, growth with candidates, training.

News, entities and readers of MIND-small's size are drawn; weights are untrained. Times only.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.ranker import Ranker
from raysys.artifacts.run import LoadedRun, RunConfig
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.features import FeatureSpace
from raysys.data.histories import Histories
from raysys.data.manifest import DataCard
from raysys.data.prepared import Impressions, Prepared
from raysys.data.requests import Request
from raysys.data.sampling import ImpressionLoader
from raysys.news.entities import EntityFit, EntityTable
from raysys.news.nrms import NRMS, NRMSConfig
from raysys.options import load_yaml, merge
from raysys.perconet.config import PerconetConfig, PerconetOptions
from raysys.perconet.ranker import Perconet

AIMS = {
    "request_ms_p50": "at most 5",
    "ratio_candidates": "at most 2.2 for twice as many",
    "training_ratio_vs_nrms": "at most 1.5",
}
# MIND-small, training part; 0.05 of the abstracts are missing.
NEWS, ENTITIES, IMPRESSIONS, CLICKS = 51_282, 30_000, 156_965, 236_344
SHOWN, WIDTH, ENTITY_WIDTH = 38, 384, 100
WIDTHS = {"title": WIDTH, "abstract": WIDTH}
CONFIG = "raysys/configs/news/perconet-small.yaml"
CODEC = ContextCodec(features=())
FEATURES = FeatureSpace(items=(), contexts=CODEC, vectors=WIDTHS)
Figures = dict[str, Any]


def run(
    candidates: int = 300,
    history: int = 50,
    requests: int = 200,
    warm_up: int = 20,
    steps: int = 30,
    rounds: int = 5,
    threads: int = 1,
    seed: int = 0,
) -> Figures:
    """Medians of single requests, and of training steps over alternating rounds.

    A request is `Predictor.score` of one reader with `history` clicks and `candidates` news: ids
    to answer, news vectors cached. `ratio_candidates` is the time for twice as many over the time
    for `candidates`; `request_ms_1000` is one pass over a thousand. A training step is 64 clicks
    with four negatives, gathering and AdamW included; both rankers read title and abstract and
    have the widths of perconet-small.yaml; the contrast over all news of a batch is an additional
    task, timed with and without.
    """
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    catalogue, table = _catalogue(rng), _entities(rng)
    data = _readers(rng, history)
    plain = {"contrast": {"weight": 0.0}}
    models: dict[str, Ranker] = {
        "perconet": _perconet(catalogue, table, {}),
        "perconet-no-contrast": _perconet(catalogue, table, plain),
        "nrms": _nrms(catalogue),
    }
    trained = {name: _trainer(model, data, seed) for name, model in models.items()}
    rates: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, step in trained.items():
            begin = time.perf_counter()
            for number in range(steps):
                step(turn * steps + number)
            if turn:  # the first one warms up
                rates[name].append(64 * steps / (time.perf_counter() - begin))
    speed = {name: statistics.median(values) for name, values in rates.items()}
    served: Figures = {}
    for name, model in models.items():
        predictor = _predictor(model, catalogue, data.histories)
        served[name] = {
            f"request_ms_{count}": _request_ms(predictor, rng, count, requests, warm_up)
            for count in (candidates, 2 * candidates, 1000)
        }
    own = served["perconet"]
    p50 = own[f"request_ms_{candidates}"]["p50"]
    return {
        "bench": "perconet-cost",
        "aims": AIMS,
        "threads": threads,
        "candidates": candidates,
        "history": history,
        "request_ms_p50": p50,
        "ratio_candidates": own[f"request_ms_{2 * candidates}"]["p50"] / p50,
        "request": served,
        "samples_per_s": speed,
        "samples_per_s_rounds": rates,
        "training_ratio_vs_nrms": speed["nrms"] / speed["perconet-no-contrast"],
        "training_ratio_vs_nrms_with_contrast": speed["nrms"] / speed["perconet"],
        "epoch_minutes_mind_small": {n: CLICKS / rate / 60 for n, rate in speed.items()},
        "weights": {
            name: sum(p.numel() for p in model.parameters()) for name, model in models.items()
        },
    }


def _request_ms(
    predictor: Predictor, rng: np.random.Generator, count: int, requests: int, warm_up: int
) -> Figures:
    """p50 and p99 of single requests in milliseconds."""
    users = predictor.histories.users.to_pylist()
    ids = predictor.run.catalogue.item_ids
    asked = [
        Request(
            request_id=f"r{n}",
            user_id=users[int(rng.integers(len(users)))],
            candidates=_some(ids, rng, count),
        )
        for n in range(requests + warm_up)
    ]
    taken = []
    for request in asked:
        begin = time.perf_counter()
        predictor.score([request])
        taken.append(1000 * (time.perf_counter() - begin))
    kept = sorted(taken[warm_up:])
    return {"p50": statistics.median(kept), "p99": kept[int(0.99 * (len(kept) - 1))]}


def _some(ids: pa.Array, rng: np.random.Generator, count: int) -> tuple[str, ...]:
    return tuple(ids.take(pa.array(rng.choice(NEWS, count, replace=False))).to_pylist())


def _trainer(model: Ranker, data: Prepared, seed: int) -> Callable[[int], None]:
    """One training step by its number."""
    collate = model.collator(data.histories, CODEC)
    batches = ImpressionLoader(
        data, collate, batch_size=64, seed=seed, candidates="sampled", negatives=4
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()

    def step(number: int) -> None:
        batch = batches.batch(0, number % batches.steps_per_epoch)
        assert batch is not None
        total, weight = model.loss(batch)
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()

    return step


def _perconet(catalogue: Catalogue, table: EntityTable, over: Figures) -> Perconet:
    options = PerconetOptions.model_validate(merge(load_yaml(Path(CONFIG))["model"], over))
    fitted = EntityFit.of(table, options.persona, 1)
    model = Perconet.from_config(PerconetConfig(**dict(options), fitted=fitted), FEATURES)
    model.bind(catalogue)
    model.bind_entities(table)
    model.bind_texts(np.arange(FIRST + NEWS))
    return model


def _nrms(catalogue: Catalogue) -> NRMS:
    given = load_yaml(Path(CONFIG))["model"]
    known = {name: value for name, value in given.items() if name in NRMSConfig.model_fields}
    model = NRMS.from_config(NRMSConfig.model_validate(known), FEATURES)
    model.bind(catalogue)
    return model


def _predictor(model: Ranker, catalogue: Catalogue, histories: Histories) -> Predictor:
    """The scoring path of a run folder, over a model that never was in one."""
    kind = type(model)
    card = DataCard(
        dataset="drawn", version="1", reader="bench@1", label_rule="none", split_rule="none",
        group_key="impression", history_cut="none", licence="none",
    )  # fmt: skip
    config = RunConfig(
        model_id="0" * 12, model=f"{kind.__module__}:{kind.__name__}", model_options={},
        recipe="news/drawn", recipe_options={}, data_card_id=card.id,
    )  # fmt: skip
    items = pa.table({"item_id": catalogue.item_ids})
    run = LoadedRun(
        path=Path("."), config=config, features=FEATURES, data_card=card, model=model,
        catalogue=catalogue, items=items, histories=histories,
    )  # fmt: skip
    return Predictor(run)


def _catalogue(rng: np.random.Generator) -> Catalogue:
    vectors = {}
    for name in WIDTHS:
        values = rng.standard_normal((FIRST + NEWS, WIDTH), np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        values[:FIRST] = 0
        vectors[name] = values
    vectors["abstract"][FIRST:][rng.random(NEWS) < 0.05] = 0
    ids = pa.array([f"N{n}" for n in range(NEWS)])
    return Catalogue(ids, np.zeros((FIRST + NEWS, 0), np.int32), vectors)


def _entities(rng: np.random.Generator) -> EntityTable:
    """2.35 entities a news on average, at most 10, their names spread as Zipf's law has it."""
    count = np.minimum(rng.poisson(2.35, FIRST + NEWS), 10)
    count[:FIRST] = 0
    news = np.minimum(rng.zipf(1.3, (FIRST + NEWS, 10)), ENTITIES)
    news *= np.arange(10) < count[:, None]
    vectors = rng.standard_normal((1 + ENTITIES, ENTITY_WIDTH), np.float32)
    vectors[0] = 0
    return EntityTable(
        ids=[f"Q{n}" for n in range(ENTITIES)],
        labels=[""] * ENTITIES,
        types=[("P", "O", "G")[n % 3] for n in range(ENTITIES)],
        idf=rng.uniform(1, 9, 1 + ENTITIES).astype(np.float32),
        vectors=vectors,
        news=news.astype(np.int64),
        confidence=(news > 0).astype(np.float32),
    )


def _readers(rng: np.random.Generator, history: int, users: int = 5_000) -> Prepared:
    """Readers with `history` clicks each, and a training split of MIND-small's impressions."""
    events = users * history
    histories = Histories(
        users=pa.array([f"u{n:05d}" for n in range(users)]),
        start=np.arange(0, events + 1, history),
        item=rng.integers(FIRST, FIRST + NEWS, events).astype(np.int32),
        behaviour=np.zeros(events, np.int8),
        context=np.zeros((events, 0), np.int32),
        ts=np.sort(rng.integers(0, 10**12, (users, history)), axis=1).ravel(),
        codec=CODEC,
    )
    # Lengths as MIND's, of which the median is 18 and a fifth is cut at `history`.
    length = np.minimum(rng.lognormal(np.log(18), 1.2, IMPRESSIONS).astype(np.int64), history)
    user = rng.integers(0, users, IMPRESSIONS)
    click = np.zeros((IMPRESSIONS, SHOWN), np.uint8)
    click[:, 0] = 1
    click[:, 1] = rng.random(IMPRESSIONS) < CLICKS / IMPRESSIONS - 1
    rows = IMPRESSIONS * SHOWN
    impressions = Impressions(
        ids=pa.array(np.arange(IMPRESSIONS).astype(str)),
        user=user.astype(np.int32),
        ts=np.full(IMPRESSIONS, 10**13),
        tz=np.zeros(IMPRESSIONS, np.int16),
        start=(user + 1) * history - length,
        end=(user + 1) * history,
        context=np.zeros((IMPRESSIONS, 0), np.int32),
        split=np.zeros(IMPRESSIONS, np.int8),
        offsets=np.arange(0, rows + 1, SHOWN),
        item=rng.integers(FIRST, FIRST + NEWS, rows).astype(np.int32),
        click=click.ravel(),
        order=np.zeros(rows, np.uint8),
        position=np.zeros(rows, np.int16),
    )
    ids = pa.array([f"N{n}" for n in range(NEWS)])
    return Prepared(None, ids, histories, impressions)  # type: ignore[arg-type]
