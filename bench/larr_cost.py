"""What the scene costs: LLM calls, bytes, and the time of its path in one request."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysys.artifacts.predictor import Predictor
from raysys.data.contexts import FIRST, MISSING
from raysys.data.histories import UNKNOWN_TS
from raysys.data.prepared import Prepared
from raysys.data.requests import Request
from raysys.larr.ranker import LarrDIN
from raysys.llm.encoder import TextEncoder

_REQUESTS = 200
_CANDIDATES = (1, 100, 1000)


def scene_cost(data: Prepared, run: Path, plain: Path) -> dict[str, Any]:
    """Of a run of `ctr/larr`, beside one of `ctr/din` without a scene; one thread, one request.

    llm_calls_per_1000_requests: naive encodes every told feature of every request; offline, each
    distinct text once, spread over the test requests; online is counted while requests are scored.
    """
    predictor = Predictor.load(run, histories=data.histories)
    other = Predictor.load(plain, histories=data.histories)
    model = predictor.model
    assert isinstance(model, LarrDIN) and model.scene.table is not None
    log = data.impressions
    test = log.of("test")
    told = _told_per_request(data, model, test)
    table = model.scene.table
    calls = TextEncoder.encoded
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        asked = _requests(data, test[:_REQUESTS])
        path = _path_seconds(predictor, asked)
        ranked = {
            str(count): {
                name: _rank_ms(ranker, data, count)
                for name, ranker in (("larr", predictor), ("din", other))
            }
            for count in _CANDIDATES
        }
    finally:
        torch.set_num_threads(threads)
    # Recent items are told by their own texts, which are encoded once as well.
    texts = len(table.texts) + sum(int((v != 0).any(1).sum()) for v in table.recent.values())
    arrays = [table.vectors, *table.taste.values(), *table.recent.values()]
    return {
        "llm_calls_per_1000_requests": {
            "naive": round(1000 * told, 1),
            "offline": round(1000 * texts / max(1, len(test)), 1),
            "online": TextEncoder.encoded - calls,
        },
        "texts": texts,
        "table_bytes": int(sum(array.nbytes for array in arrays)),
        "scene_path_ms": {
            "p50": round(1000 * float(np.quantile(path, 0.5)), 3),
            "p99": round(1000 * float(np.quantile(path, 0.99)), 3),
        },
        "rank_ms_by_candidates": ranked,
    }


def _told_per_request(data: Prepared, model: LarrDIN, test: np.ndarray) -> float:
    """Texts a request has on average: those of its context, its tastes and recent items."""
    codec = model.scene.codec
    assert codec is not None
    codes = codec.translator(data.codec)(data.impressions.context[test])
    columns = model.scene.verbaliser.columns(codec)
    present = [(codes[:, places] != MISSING).all(1) for places in columns]
    past = (data.impressions.end - data.impressions.start)[test]
    windows = [f.events for f in (*model.scene.tastes, *model.scene.recents)]
    counts = [np.minimum(past, window) for window in windows]
    return float(np.sum([np.mean(part) for part in (*present, *counts)]))


def _requests(data: Prepared, impressions: np.ndarray, count: int | None = None) -> list[Request]:
    log = data.impressions
    rng = np.random.default_rng(0)
    out = []
    for i in impressions.tolist():
        # Numbers have lost their value to their bucket, so the request goes without them.
        context = {
            feature.name: feature.labels[code]
            for feature, code in zip(data.codec.features, log.context[i].tolist(), strict=True)
            if feature.kind == "categorical" and code >= FIRST
        }
        shown = log.item[log.offsets[i] : log.offsets[i + 1]] - FIRST
        if count is not None:
            size = len(data.item_ids)
            shown = rng.choice(size, min(count, size), replace=False)
        out.append(
            Request(
                request_id=str(i),
                user_id=data.histories.users[int(log.user[i])].as_py(),
                ts=None if log.ts[i] == UNKNOWN_TS else int(log.ts[i]),
                context=context,
                candidates=tuple(data.item_ids.take(shown).to_pylist()),
            )
        )
    return out


def _path_seconds(predictor: Predictor, asked: list[Request]) -> list[float]:
    """Look-up, encoder and head of each request alone."""
    model = predictor.model
    assert isinstance(model, LarrDIN)
    taken = []
    for request in asked:
        (chunk,) = predictor._batches(predictor._columns([request]))
        batch = chunk.batch()
        with torch.inference_mode():
            begin = time.perf_counter()
            model.scene_vector(batch)
            taken.append(time.perf_counter() - begin)
    return taken[len(taken) // 10 :]  # the first pay for what is loaded lazily


def _rank_ms(predictor: Predictor, data: Prepared, count: int) -> float:
    """Median over requests with so many candidates (or as many as there are items)."""
    asked = _requests(data, data.impressions.of("test")[:30], count)
    taken = []
    for request in asked:
        begin = time.perf_counter()
        predictor.score([request])
        taken.append(time.perf_counter() - begin)
    return round(1000 * float(np.median(taken)), 2)
