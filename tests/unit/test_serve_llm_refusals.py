"""Questions about users that are refused: why, when, and before anything starts."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hkfr_city
import pytest
from known_users import client, explained, http, llm, options, refused, root
from ray import serve
from ray.exceptions import ActorDiedError
from serve_fixtures import Handle
from starlette.testclient import TestClient

from raysys.errors import ConfigError, DataError, RaysysError
from serve_apps.app import build
from serve_apps.config import ServeConfig
from serve_apps.llm import UserLlm
from serve_apps.server import check_runs

__all__ = ["http", "llm", "root"]  # the fixtures


def test_every_refusal_says_why(http: TestClient) -> None:
    def posted(path: str = "/v1/answer", **body: Any) -> Any:
        return http.post(path, json=dict(request_id="r", user_id="u0") | body)

    for body, told in {
        "none": ({}, "send one of the two"),
        "both": (dict(task="category", instruction="x", candidates=["a"]), "send one of the two"),
        "names": (dict(instruction="x"), "it needs candidates"),
        "task": (dict(task="categry"), "no task is called 'categry'"),
        "lacks": (dict(task="yes_or_no"), "given.candidate: task yes_or_no needs it"),
        "more": (dict(task="category", given=dict(a="b")), "task category takes nothing"),
        "twice": (dict(task="category", candidates=["a", "a"]), "'a' is there twice"),
        "many": (dict(task="category", candidates=[str(n) for n in range(301)]), "at most 300"),
        "empty": (dict(task="category", candidates=[" "]), "candidates.0"),
        "long": (dict(task="category", candidates=["x" * 257]), "at most 256 are allowed"),
        "unknown": (dict(task="category", modle=1), "modle: Extra inputs"),
        "time": (dict(task="category", ts="5"), "ts: Input should be a valid integer"),
        "rare": (dict(task="dish_type"), "of dish_type none known here; send 1 to 300"),
    }.values():
        assert told in refused(posted(**body), 422, "bad_request"), body
    too_long = posted(instruction="q!z?" * 250, candidates=["x" * 250])
    assert "max_tokens=1024 is less than the instruction" in refused(too_long, 422, "bad_request")
    assert "ask" in refused(posted("/v1/explain/user", ask="maybe"), 422, "bad_request")
    refused(http.post("/v1/answer", content=b"{}"), 415, "not_json")
    refused(http.get("/v1/answer"), 405, "method_not_allowed")


def test_what_is_not_served_is_not_found(root: Path) -> None:
    body = dict(request_id="r", user_id="u0", task="category")
    absent = client(None, Handle(SimpleNamespace(rank=None, describe=None, stats=None)))
    for path in ("/v1/explain/user", "/v1/answer"):
        assert "models.llm" in refused(absent.post(path, json=body), 404, "not_served")
    told = UserLlm(options(root, model=None, samples=None))
    with client(options(root, model=None, samples=None), Handle(told)) as http:
        assert "models.llm.model" in refused(http.post("/v1/answer", json=body), 404, "not_served")
        found = explained(http, "u0", ask=True)
        assert found.told is None and found.facts


class Slow:
    """Never answers, or dies."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def explain(self, request: Any) -> Any:
        if self.error:
            raise self.error
        await asyncio.sleep(60)


def test_time_runs_out_alone_and_crowds_are_refused_at_once(root: Path) -> None:
    body = dict(request_id="r", user_id="u0")
    with client(options(root, timeout_s=0.3, in_flight=1), Handle(Slow())) as http:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: http.post("/v1/explain/user", json=body), range(4)))
        told = sorted(response.status_code for response in found)
        assert told[0] == 408 and set(told) == {408, 503}
        assert all(r.headers["retry-after"] for r in found if r.status_code == 503)
        refused(http.post("/v1/explain/user", json=body), 408, "timeout")  # there is room again
    with client(options(root), Handle(Slow())) as http:
        wish = {"x-request-timeout-seconds": "0.1"}
        refused(http.post("/v1/explain/user", json=body, headers=wish), 408, "timeout")
    with client(options(root), Handle(Slow(ActorDiedError()))) as http:
        refused(http.post("/v1/explain/user", json=body), 503, "unavailable")


def test_what_cannot_be_opened_is_told_before_anything_starts(root: Path, tmp_path: Path) -> None:
    def check(**changes: Any) -> None:
        chosen = options(root, **changes)
        check_runs(ServeConfig.model_validate(dict(models=dict(llm=chosen))))

    check()
    check(model=None, samples=None)
    with pytest.raises(DataError, match="is no knowledge store"):
        check(knowledge=tmp_path)
    hkfr_city.build(root / "city", tmp_path / "asked", as_of_request=True)
    with pytest.raises(DataError, match="no knowledge of a day"):
        check(knowledge=tmp_path / "asked")
    with pytest.raises(DataError, match="no such folder of instruction samples"):
        check(samples=tmp_path / "none")
    with pytest.raises(RaysysError, match="no such"):
        check(model=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="samples: only a model is asked"):
        options(root, model=None)
    with pytest.raises(ConfigError, match=r"max_new_tokens=1490 leaves 10 of the 1500"):
        UserLlm(options(root, max_new_tokens=1490))


def test_it_is_a_deployment_of_its_own(root: Path) -> None:
    chosen = ServeConfig.model_validate(dict(models=dict(llm=options(root)), fused=True))
    assert (chosen.cpus, chosen.longest_s) == (1.0, 30.0)
    handle = serve.run(build(chosen), name="llm", _local_testing_mode=True)
    assert handle.describe.remote().result() == {}
