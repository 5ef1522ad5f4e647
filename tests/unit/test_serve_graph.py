"""The graph in one process: routes, answers, limits, deadline, fallback and retry."""

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve_fixtures as fixtures
from cofars_runs import valid_requests
from ray import serve
from ray.exceptions import ActorDiedError
from starlette.testclient import TestClient

from raysys.artifacts.predictor import Predictor
from raysys.errors import ArtifactError
from serve_apps.app import build
from serve_apps.config import ServeConfig
from serve_apps.ctr import CTRRanking
from serve_apps.gateway import Gateway
from serve_apps.schemas import ErrorBody, RankAnswer, RankRequest
from serve_apps.server import check_runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


def config(root: Path, **changes: Any) -> ServeConfig:
    models = dict(
        ctr=dict(run=fixtures.ctr_run(root), batch=4, max_ongoing=8, batch_wait_ms=5),
        news=dict(run=fixtures.news_run(root)),
    )
    body = dict(models=models, fused=True, limits=dict(body_bytes=20_000, candidates=50))
    return ServeConfig.model_validate({**body, **changes})


@pytest.fixture(scope="module")
def gateway(root: Path) -> Gateway:
    return Gateway(config(root))


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[TestClient]:
    # Used as a context manager the client keeps one event loop, as a replica does.
    with TestClient(gateway.__serve_build_asgi_app__(), raise_server_exceptions=False) as client:
        yield client


def post(http: TestClient, family: str, request: Any, **extra: Any) -> httpx.Response:
    body = request.model_dump(mode="json", exclude_none=True) if not isinstance(
        request, dict) else request  # fmt: skip
    return http.post(f"/v1/{family}/rank", json={**body, **extra})


def refused(response: httpx.Response, status: int, error: str) -> ErrorBody:
    assert response.status_code == status, response.text
    body = ErrorBody.model_validate_json(response.content)
    assert body.error == error
    assert ("retry-after" in response.headers) == (status == 503)
    return body


@pytest.mark.parametrize("family", ["ctr", "news"])
def test_served_scores_are_the_predictors(root: Path, http: TestClient, family: str) -> None:
    predictor = Predictor.load({"ctr": fixtures.ctr_run, "news": fixtures.news_run}[family](root))
    for request in fixtures.requests(40):
        response = post(http, family, request)
        assert response.status_code == 200, response.text
        answer = RankAnswer.model_validate_json(response.content, strict=True)
        assert answer.request_id == request.request_id
        assert answer.model_id == predictor.model_id
        assert answer.data_card_id == predictor.data_card_id
        assert answer.fallback is None
        table = predictor.score([request]).to_pylist()
        expected = sorted(table, key=lambda row: -row["score"])
        for item, row in zip(answer.items, expected, strict=True):
            assert item.item_id == row["item_id"]
            # Replicas may run with another number of threads, which rounds otherwise.
            for name in ("score", "p_click", "p_order"):
                assert getattr(item, name) == (row[name] and pytest.approx(row[name], abs=1e-6))


def test_merged_requests_are_not_mixed_up(root: Path, http: TestClient) -> None:
    predictor = Predictor.load(fixtures.ctr_run(root))
    requests = fixtures.requests(60, seed=1)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda request: post(http, "ctr", request), requests))
    for request, response in zip(requests, answers, strict=True):
        answer = RankAnswer.model_validate_json(response.content)
        assert answer.request_id == request.request_id
        expected = {row["item_id"]: row["score"] for row in predictor.score([request]).to_pylist()}
        assert {item.item_id: item.score for item in answer.items} == pytest.approx(
            expected, abs=1e-6
        )


def test_top_k_and_explanations(root: Path, http: TestClient) -> None:
    predictor = Predictor.load(fixtures.ctr_run(root))
    request = fixtures.requests(10)[1]
    whole = post(http, "ctr", request).json()["items"]
    short = post(http, "ctr", request, top_k=2, explain=True).json()["items"]
    assert [item["item_id"] for item in short] == [item["item_id"] for item in whole[:2]]
    events = dict(zip(request.candidates, predictor.explain([request])[0], strict=True))
    for item in short:
        expected = events[item["item_id"]]
        given = [tuple(event.values()) for event in item["explanation"]]
        assert given == [(*event[:3], pytest.approx(event.weight)) for event in expected]


def test_a_choice_of_events_is_explained_where_there_is_one(root: Path, http: TestClient) -> None:
    for family in ("ctr", "news"):
        assert "retrieval" not in post(http, family, fixtures.requests(2)[1], explain=True).json()
    city, run = fixtures.cofars_run(root)
    predictor = Predictor.load(run)
    models = dict(ctr=dict(run=run))
    graph = Gateway(config(root, models=models)).__serve_build_asgi_app__()
    with TestClient(graph, raise_server_exceptions=False) as client:
        for request in valid_requests(city, 6):
            assert "retrieval" not in post(client, "ctr", request).json()
            response = post(client, "ctr", request, explain=True)
            answer = RankAnswer.model_validate_json(response.content, strict=True)
            assert answer.fallback is None
            (wanted,) = predictor.explain_retrieval([request])
            assert wanted is not None and answer.retrieval is not None
            assert answer.retrieval.contexts == wanted.contexts
            assert answer.retrieval.back_off == wanted.back_off
            assert [p.likes.keys() for p in answer.retrieval.prototypes] == [
                p.likes.keys() for p in wanted.prototypes
            ]
        with pytest.raises(ValueError, match="extra"):
            RankAnswer.model_validate(
                {**answer.model_dump(), "retrieval": {**wanted.model_dump(), "more": 1}}
            )


def test_answers_say_what_was_not_known(http: TestClient) -> None:
    for user, cold in ((fixtures.USERS[0], False), ("stranger", True)):
        request = dict(request_id="r", user_id=user, candidates=[fixtures.ITEMS[0], "no such item"])
        answer = post(http, "ctr", request).json()
        assert answer["cold_user"] is cold
        known = {item["item_id"]: item["known"] for item in answer["items"]}
        assert known == {fixtures.ITEMS[0]: True, "no such item": False}
    sent = request | {"history": [{"item_id": fixtures.ITEMS[1]}]}
    assert post(http, "ctr", sent).json()["cold_user"] is False


def test_models_and_health(root: Path, http: TestClient) -> None:
    models = http.get("/v1/models").json()["models"]
    health = http.get("/healthz").json()
    for family, run in (("ctr", fixtures.ctr_run(root)), ("news", fixtures.news_run(root))):
        expected = json.loads((run / "config.json").read_text())
        assert models[family]["model_id"] == expected["model_id"] == health["models"][family]
        assert models[family]["recipe"] == expected["recipe"]
        assert models[family]["items"] == len(fixtures.ITEMS)
    assert models["ctr"]["p_click"]
    assert models["ctr"]["p_order"]
    assert not models["news"]["p_click"]


def test_every_refusal_says_why(http: TestClient) -> None:
    good = fixtures.requests(2)[1].model_dump(mode="json", exclude_none=True)
    many = [f"item {i}" for i in range(51)]
    unknown_after_known = [{"item_id": "a", "ts": 5}, {"item_id": "a"}]
    assert "51 entries" in refused(post(http, "ctr", good | {"candidates": many}), 422,
                                   "bad_request").detail  # fmt: skip
    wrong = refused(post(http, "ctr", good | {"modle": 1}), 422, "bad_request")
    assert wrong.request_id == good["request_id"]
    for ts in (fixtures.NOW // 1000, fixtures.NOW // 10**6):  # in ms, in s
        assert "µs since 1970" in refused(post(http, "ctr", good | {"ts": ts}), 422,
                                          "bad_request").detail  # fmt: skip
    twice = [good["candidates"][0]] * 2
    assert "twice" in refused(post(http, "ctr", good | {"candidates": twice}), 422,
                              "bad_request").detail  # fmt: skip
    wrong = refused(post(http, "ctr", good | {"context": {"meal": 3}}), 422, "bad_request")
    assert wrong.detail.startswith("context.meal")
    assert wrong.request_id == good["request_id"]
    for wrong in ({"ts": 10**20}, {"history_end": 10**20}, {"history": unknown_after_known}):
        refused(post(http, "ctr", good | wrong), 422, "bad_request")
    # The news model has the same features, but no name that it does not know stops a request.
    assert post(http, "news", good | {"context": {"weather": 3}}).status_code == 200
    refused(http.post("/v1/ctr/rank", content=b"{", headers={"content-type": "application/json"}),
            422, "bad_request")  # fmt: skip
    refused(http.post("/v1/ctr/rank", content=b"{}"), 415, "not_json")
    refused(post(http, "ctr", good | {"user_id": "x" * 30_000}), 413, "too_large")
    refused(http.get("/v1/ctr/rank"), 405, "method_not_allowed")
    refused(http.get("/docs"), 404, "not_found")
    refused(http.get("/openapi.json"), 404, "not_found")


def one(gateway: Gateway, **headers: str) -> httpx.Response:
    with TestClient(gateway.__serve_build_asgi_app__(), raise_server_exceptions=False) as client:
        request = RankRequest(request_id="r", user_id="u", candidates=("a",))
        body = request.model_dump_json(exclude_none=True)
        head = {"content-type": "application/json", **headers}
        return client.post("/v1/ctr/rank", content=body, headers=head)


def backed_by(root: Path, rank: Any, **changes: Any) -> Gateway:
    gateway = Gateway(config(root, **changes))
    gateway.backends["ctr"] = replace(gateway.backends["ctr"], rank=rank)
    return gateway


@pytest.mark.parametrize(
    ("wish", "limit"), [("9", 0.2), ("-1", 0.2), ("0", 0.2), ("x", 0.2), ("nan", 0.2), ("0.1", 5)]
)
def test_the_deadline_holds_whatever_a_client_wishes(root: Path, wish: str, limit: float) -> None:
    async def slow(request: RankRequest) -> Any:
        await asyncio.sleep(30)

    gateway = backed_by(root, slow, http=dict(request_timeout_s=limit))
    begin = time.monotonic()
    refused(one(gateway, **{"x-request-timeout-seconds": wish}), 408, "timeout")
    assert time.monotonic() - begin < 10
    assert gateway.in_flight == 0


def test_one_death_is_retried_and_two_are_not(root: Path) -> None:
    deaths: list[int] = []

    def dying(times: int) -> Any:
        async def rank(request: RankRequest) -> Any:
            deaths.append(1)
            if len(deaths) <= times:
                raise ActorDiedError
            return 200, b"{}"

        return rank

    assert one(backed_by(root, dying(1))).status_code == 200
    deaths.clear()
    refused(one(backed_by(root, dying(9))), 503, "unavailable")
    assert len(deaths) == 2


def test_a_full_gateway_refuses_at_once(root: Path) -> None:
    gateway = Gateway(config(root, limits=dict(in_flight=1)))
    gateway.in_flight = 1
    refused(one(gateway), 503, "busy")
    assert gateway.in_flight == 1


def test_a_model_that_is_not_served(root: Path) -> None:
    only_news = dict(news=dict(run=fixtures.news_run(root)))
    refused(one(Gateway(config(root, models=only_news))), 404, "not_served")


@pytest.mark.parametrize(("histories", "order"), [(True, "popularity"), (False, "as_sent")])
def test_a_model_that_fails_falls_back(root: Path, histories: bool, order: str) -> None:
    ranking = CTRRanking(config(root).models.ctr.model_copy(
        update={"run": fixtures.ctr_run(root, histories=histories)}))  # fmt: skip
    stored = [request for request in fixtures.requests(12) if not request.history]
    good, bad, other = (RankRequest(**dict(request)) for request in stored[:3])
    expected = [RankAnswer.model_validate_json(body) for body in ranking.answer([good, other])]
    score = ranking.predictor.score

    def failing(requests: Any) -> Any:
        if bad in requests:
            raise ArtifactError("non-finite score")
        return score(requests)

    ranking.predictor.score = failing
    answers = [RankAnswer.model_validate_json(body) for body in ranking.answer([good, bad, other])]
    for mine, alone in zip((answers[0], answers[2]), expected, strict=True):
        assert mine.fallback is None
        assert [i.item_id for i in mine.items] == [i.item_id for i in alone.items]
    fallen = answers[1]
    assert fallen.fallback == order
    assert all(item.p_click is None for item in fallen.items)
    counts = dict.fromkeys(bad.candidates, 0)
    if histories:
        events = fixtures.dataset(root).dataset.table("events", ["item_id"])["item_id"]
        counts = {item: events.to_pylist().count(item) for item in bad.candidates}
    wanted = sorted(bad.candidates, key=lambda item: -counts[item])
    assert [item.item_id for item in fallen.items] == wanted


def test_the_split_graph_is_wired_like_the_fused_one(root: Path) -> None:
    handle = serve.run(build(config(root, fused=False)), name="split", _local_testing_mode=True)
    cards = handle.describe.remote().result()
    assert {family: card.recipe for family, card in cards.items()} == {
        "ctr": "ctr/din",
        "news": "news/nrms",
    }


def test_bad_runs_are_refused_before_anything_starts(root: Path, tmp_path: Path) -> None:
    swapped = dict(ctr=dict(run=fixtures.news_run(root)))
    with pytest.raises(ArtifactError, match="no ctr recipe"):
        check_runs(config(root, models=swapped))
    with pytest.raises(ArtifactError, match="no such run folder"):
        check_runs(config(root, models=dict(ctr=dict(run=tmp_path / "absent"))))
    damaged = tmp_path / "damaged"
    shutil.copytree(fixtures.news_run(root), damaged)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(ArtifactError, match=r"model\.safetensors: damaged"):
        check_runs(config(root, models=dict(news=dict(run=damaged))))


def test_ctr_models_take_no_recent_events(http: TestClient) -> None:
    request = fixtures.requests(1)[0].model_copy(update={"history": None})
    recent = [{"item_id": fixtures.ITEMS[0], "ts": fixtures.NOW - 5}]
    told = refused(post(http, "ctr", request, recent=recent), 422, "bad_request")
    assert "only news models" in told.detail
    assert post(http, "news", request, recent=recent).status_code == 200
