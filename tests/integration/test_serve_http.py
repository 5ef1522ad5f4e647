"""The served graph over HTTP, on a Ray of its own."""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import requests
import serve_fixtures as fixtures
import yaml
from own_cluster import Cluster, free_port, ray_cluster, served

from raysys.artifacts.predictor import Predictor
from raysys.data.mapping import LocalMapper
from raysys.recipes.score import score as score_file
from serve_apps.client import Client, ServerError
from serve_apps.schemas import ErrorBody

HEADERS = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(cpus=4) as started:
        yield started


@pytest.fixture(scope="module")
def url(cluster: Cluster, root: Path) -> Iterator[str]:
    models = dict(
        ctr=dict(run=str(fixtures.ctr_run(root)), replicas=2, num_cpus=0.5),
        news=dict(run=str(fixtures.news_run(root)), num_cpus=0.5),
    )
    limits = dict(body_bytes=20_000, candidates=50)
    with served(
        cluster, root, dict(models=models, limits=limits, http=dict(request_timeout_s=20))
    ) as at:
        yield at


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ctr", "news"])
def test_served_batch_and_predictor_scores_are_one(
    url: str, root: Path, tmp_path: Path, family: Any
) -> None:
    run = {"ctr": fixtures.ctr_run, "news": fixtures.news_run}[family](root)
    predictor = Predictor.load(run)
    asked = fixtures.requests(1000, seed=3)

    def ask(part: int) -> list[Any]:
        with Client(url) as client:
            return [client.rank(family, request) for request in asked[part::6]]

    with ThreadPoolExecutor(6) as pool:
        answers = {a.request_id: a for part in pool.map(ask, range(6)) for a in part}
    assert len(answers) == len(asked)
    served = {(request, item.item_id): item for request, a in answers.items() for item in a.items}
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(f"{r.model_dump_json(exclude_none=True)}\n" for r in asked))
    score_file(run, file, tmp_path / "scores", LocalMapper(), per_part=300)
    batch = pq.read_table(tmp_path / "scores").to_pylist()
    worst = {"served": 0.0, "batch": 0.0}
    for row, other in zip(predictor.score(asked).to_pylist(), batch, strict=True):
        assert (other["request_id"], other["item_id"]) == (row["request_id"], row["item_id"])
        assert answers[row["request_id"]].model_id == predictor.model_id
        item = served[row["request_id"], row["item_id"]]
        worst["served"] = max(worst["served"], abs(item.score - row["score"]))
        worst["batch"] = max(worst["batch"], abs(other["score"] - row["score"]))
        if row["p_click"] is not None:
            assert item.p_click == pytest.approx(row["p_click"], abs=1e-6)
    print(f"{family}: {len(asked)} requests, largest difference to the Predictor {worst}")
    assert max(worst.values()) <= 1e-6


@pytest.mark.slow
def test_bad_requests_end_in_their_code(url: str) -> None:
    good = fixtures.requests(2)[1].model_dump(mode="json", exclude_none=True)
    rank = f"{url}/v1/ctr/rank"
    cases = [
        (requests.post(rank, json=good), 200),
        (requests.post(rank, json=good | {"modle": 1}), 422),
        (requests.post(rank, json=good | {"candidates": []}), 422),
        (requests.post(rank, json=good | {"context": {"meal": 1}}), 422),
        (requests.post(rank, data=b"{", headers=HEADERS), 422),
        (requests.post(rank, data=b"x" * 50_000, headers=HEADERS), 413),
        (requests.post(rank, data=json.dumps(good)), 415),
        (requests.get(rank), 405),
        (requests.get(f"{url}/docs"), 404),
        (requests.get(f"{url}/-/routes"), 404),
        (requests.post(rank, json=good, headers={"x-request-timeout-seconds": "1e-6"}), 408),
        # The proxy would take this as: no limit, ever.
        (requests.post(rank, json=good, headers={"x-request-timeout-seconds": "-1"}), 200),
    ]
    for answer, code in cases:
        assert answer.status_code == code, answer.text
        assert answer.headers["content-type"] == "application/json"
        if code != 200:
            ErrorBody.model_validate_json(answer.content)


@pytest.mark.slow
def test_a_client_that_hangs_up_costs_nobody_else(url: str) -> None:
    body = fixtures.requests(2)[1].model_dump_json(exclude_none=True).encode()
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/ctr/rank HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    for sent in (body, body[:10]) * 20:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + sent)
    with Client(url) as client:
        for request in fixtures.requests(20):
            assert client.rank("ctr", request).fallback is None


@pytest.mark.slow
def test_bad_configs_start_nothing(cluster: Cluster, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "damaged"
    run.mkdir()
    models = {"ctr": {"run": str(run)}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"models": models}))
    models = {"ctr": {"run": str(fixtures.ctr_run(root)), "num_cpus": 99}}
    http = {"port": free_port()}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"models": models, "http": http}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        http = {"port": taken.getsockname()[1]}
        models = {"ctr": {"run": str(fixtures.ctr_run(root))}}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"models": models, "http": http}))
        for name, message in (
            ("a", "training has not finished here"),
            ("b", "ask for 99 CPUs and the cluster has 4"),
            ("c", "choose another port"),
        ):
            done = cluster.run("serve", str(tmp_path / f"{name}.yaml"))
            assert done.returncode == 2, done.stderr
            assert message in " ".join(done.stderr.split())
            assert "Traceback" not in done.stderr


@pytest.mark.chaos
def test_no_request_is_lost_when_replicas_die(cluster: Cluster, url: str) -> None:
    """A ranker and later the gateway are killed under load; every request ends in a known way."""
    body = fixtures.requests(2)[1].model_dump_json(exclude_none=True).encode()
    stop = threading.Event()

    def load(_: int) -> Counter[str]:
        codes: Counter[str] = Counter()
        with requests.Session() as session:
            session.trust_env = False
            while not stop.is_set():
                codes["sent"] += 1
                answer = session.post(f"{url}/v1/ctr/rank", data=body, headers=HEADERS, timeout=60)
                codes[str(answer.status_code)] += 1
                if answer.status_code == 503:
                    assert answer.headers["retry-after"]
        return codes

    def phase(victim: str) -> Counter[str]:
        stop.clear()
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(load, number) for number in range(8)]
            time.sleep(3)
            found = cluster.processes(f"ServeReplica:raysys:{victim}")
            assert found, [p.cmdline() for p in cluster.processes("ray::")]
            os.kill(found[0].pid, signal.SIGKILL)
            time.sleep(6)
            stop.set()
            return sum((future.result() for future in futures), Counter())

    ranker = phase("ctr")
    print("ctr replica killed:", dict(ranker))
    assert ranker["200"] == ranker["sent"] > 50
    _until_healthy(url)
    ingress = phase("gateway")
    print("gateway replica killed:", dict(ingress))
    assert ingress["200"] + ingress["503"] + ingress["408"] == ingress["sent"]
    _until_healthy(url)


def _until_healthy(url: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            with Client(url, timeout_s=5) as client:
                client.models()
            return
        except ServerError:
            assert time.monotonic() < end
            time.sleep(0.5)


@pytest.mark.chaos
def test_memory_stays_bounded(cluster: Cluster, url: str) -> None:
    """Resident memory of all our replicas after 400 and after 1,600 more requests."""
    bodies = [r.model_dump_json(exclude_none=True).encode() for r in fixtures.requests(50)]

    def resident() -> int:
        replicas = cluster.processes("ServeReplica:raysys")
        return sum(psutil.Process(p.pid).memory_info().rss for p in replicas)

    def send(count: int) -> None:
        with requests.Session() as session:
            for number in range(count):
                body = bodies[number % len(bodies)]
                assert session.post(f"{url}/v1/ctr/rank", data=body, headers=HEADERS).ok

    sizes = []
    for count in (100, 400):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, [count] * 4))
        sizes.append(resident())
    print("resident MiB:", np.round(np.array(sizes) / 2**20, 1))
    assert sizes[1] - sizes[0] < 30 * 2**20
