"""The served CTR graph under load, against what the model itself would allow on one core."""

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import yaml

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import save_run
from raysys.ctr.din import DIN, DINConfig
from raysys.data.dataset import Dataset
from raysys.data.features import FeatureConfig, fit_features
from raysys.data.mapping import LocalMapper
from raysys.data.prepared import prepare
from raysys.data.requests import Request, Requests
from raysys.data.world import WorldConfig, make_world
from raysys.errors import RaysysError

T = TypeVar("T")
HEADERS = {"Content-Type": "application/json"}
# Refused by the gateway before it looks at the body: what Serve costs without any ranking.
REFUSED = {"Content-Type": "text/plain"}


def run(
    folder: str | None = None,
    candidates: int = 100,
    clients: Sequence[int] = (1, 8),
    seconds: float = 10.0,
    users: int = 500,
    port: int = 8765,
    seed: int = 0,
) -> dict[str, object]:
    """Requests per second and latency of POST /v1/ctr/rank, split and fused.

    `achieved` is served over possible requests per second, where possible means one core that
    parses a request, gathers its history and computes its scores, one request at a time.
    `floor` is the same server refusing at once. The load comes from this machine and shares
    its cores. Without a run folder, an untrained DIN of default size on a small planted world
    is served: the time does not depend on the weights.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(folder) if folder else _untrained(Path(scratch), users, seed)
        torch.set_num_threads(1)
        predictor = Predictor.load(path)
        requests = _requests(predictor, candidates, 256, seed)
        limit = _limit(predictor, requests)
        bodies = [request.model_dump_json(exclude_none=True) for request in requests]
        served = []
        for fused in (False, True):
            with _server(path, Path(scratch), fused, port):
                for count in clients:
                    load = _load(port, bodies, HEADERS, 200, count, seconds)
                    floor = _load(port, bodies, REFUSED, 415, count, seconds / 2)
                    served.append(
                        dict(
                            graph="fused" if fused else "split",
                            clients=count,
                            **load,
                            floor=floor,
                            achieved=load["rps"] / limit["rps"],
                        )
                    )
    return {
        "bench": "serve",
        "model": predictor.run.config.model,
        "candidates": candidates,
        "history_length": predictor.model.history_length,
        "seed": seed,
        "limit": limit,
        "served": served,
    }


def _untrained(scratch: Path, users: int, seed: int) -> Path:
    make_world(WorldConfig(users=users, seed=seed), scratch / "world", LocalMapper())
    data = prepare(Dataset(scratch / "world"))
    features = fit_features(data, FeatureConfig())
    options = DINConfig()
    save_run(
        scratch / "run",
        model=DIN.from_config(options, features),
        model_options=options,
        features=features,
        items=data.dataset.table("items"),
        vectors={},
        vector_specs={},
        recipe="ctr/din",
        recipe_options={},
        data_card=data.dataset.card,
        card_text="untrained",
        histories=data.histories,
    )
    return scratch / "run"


def _requests(predictor: Predictor, candidates: int, count: int, seed: int) -> list[Request]:
    """Of random known users, after their last event, on random items."""
    rng = np.random.default_rng(seed)
    items = predictor.run.catalogue.item_ids.to_pylist()
    users = predictor.histories.users.to_pylist()
    now = int(predictor.histories.ts.max()) + 1
    return [
        Request(
            request_id=f"r{number}",
            user_id=users[int(rng.integers(len(users)))],
            ts=now,
            context={f.name: f.values[0] for f in predictor.codec.features if f.values},
            candidates=tuple(rng.choice(items, candidates, replace=False).tolist()),
        )
        for number in range(count)
    ]


def _limit(predictor: Predictor, requests: list[Request]) -> dict[str, float]:
    """Milliseconds of each necessary part, one request at a time on one core."""
    bodies = [request.model_dump_json() for request in requests]
    catalogue, codec = predictor.run.catalogue, predictor.codec
    collate = predictor.model.collator(predictor.histories, codec)
    columns = [Requests.of([request], codec) for request in requests]
    batches = [collate(c.pointers(catalogue, predictor.histories, codec)) for c in columns]
    with torch.inference_mode():
        parts = dict(
            parse=_milliseconds(Request.model_validate_json, bodies),
            gather=_milliseconds(
                lambda c: collate(c.pointers(catalogue, predictor.histories, codec)), columns
            ),
            forward=_milliseconds(predictor.model, batches),
        )
        whole = _milliseconds(lambda request: predictor.score([request]), requests)
    possible = 1e3 / sum(parts.values())
    return {**{f"{k}_ms": v for k, v in parts.items()}, "rps": possible, "predictor_ms": whole}


def _milliseconds(function: Callable[[T], object], inputs: list[T]) -> float:
    """Median over the inputs, after a warm-up."""
    for item in inputs[:20]:
        function(item)
    times = []
    for item in inputs:
        begin = time.perf_counter()
        function(item)
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) * 1e3


@contextmanager
def _server(run: Path, scratch: Path, fused: bool, port: int) -> Iterator[None]:
    config = scratch / "serve.yaml"
    models = {"ctr": {"run": str(run.absolute())}}
    config.write_text(yaml.safe_dump(dict(models=models, fused=fused, http=dict(port=port))))
    command = [sys.executable, "-c", "from raysys.cli.main import run; run()"]
    process = subprocess.Popen(
        [*command, "serve", str(config), "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RaysysError("the server did not start; its own message is above")
        yield
    finally:
        process.terminate()
        process.wait()


def _load(
    port: int,
    bodies: list[str],
    headers: dict[str, str],
    expected: int,
    clients: int,
    seconds: float,
) -> dict[str, float]:
    """Closed loop: each client sends the next request when it has its answer."""
    latencies: list[float] = []
    codes: list[int] = []
    end = time.perf_counter() + seconds + 1
    warm = end - seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        position = number
        while (begin := time.perf_counter()) < end:
            connection.request("POST", "/v1/ctr/rank", bodies[position % len(bodies)], headers)
            answer = connection.getresponse()
            answer.read()
            codes.append(answer.status)
            if begin >= warm:
                latencies.append(time.perf_counter() - begin)
            position += clients
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if set(codes) != {expected}:
        raise RaysysError(f"expected only HTTP {expected}, got {json.dumps(sorted(set(codes)))}")
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return dict(rps=len(latencies) / seconds, p50_ms=float(p50), p99_ms=float(p99))
