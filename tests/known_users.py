"""A small city served by a language model of random weights: knowledge, samples, HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hkfr_city
import pytest
from hkfr_city import City
from serve_fixtures import Handle
from starlette.testclient import TestClient

from raysys.hkfr.config import InstructionConfig
from raysys.hkfr.store import KnowledgeStore
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.recipes.hkfr_instructions import build_instructions
from serve_apps.config import Llm, ServeConfig
from serve_apps.gateway import Gateway
from serve_apps.llm import UserLlm
from serve_apps.llm_schemas import DirectAnswer, UserExplanation
from serve_apps.schemas import ErrorBody

DAYS = 4  # of knowledge, the last after all events
LAST = hkfr_city.DAYS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A city, its knowledge, samples of it and a small model of random weights."""
    folder = tmp_path_factory.mktemp("llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(folder / "cache"))
        data = City().write(folder / "city")
        hkfr_city.build(data, folder / "known", days=DAYS)
        hkfr_city.build(data, folder / "daily", days=LAST)
        fields = InstructionConfig(category="category:1", sub_category="category:2")
        build_instructions(data, folder / "daily", folder / "samples", fields)
        texts = KnowledgeStore(folder / "known").texts()["text"].to_pylist()
        sizes = FreshModel(layers=1, width=16, heads=2, vocab=600, positions=1500)
        write_fresh_model(folder / "model", sizes, texts)
        yield folder


def options(root: Path, **changes: Any) -> Llm:
    plain: dict[str, Any] = dict(
        knowledge=root / "known", model=f"dir:{root / 'model'}", samples=root / "samples",
        max_new_tokens=60,
    )  # fmt: skip
    return Llm.model_validate(plain | changes)


@pytest.fixture(scope="module")
def llm(root: Path) -> UserLlm:
    return UserLlm(options(root))


@pytest.fixture(scope="module")
def http(root: Path, llm: UserLlm) -> Iterator[TestClient]:
    with client(options(root), Handle(llm)) as found:
        yield found


def client(chosen: Llm | None, handle: Any) -> TestClient:
    models = dict(llm=chosen, ctr=None if chosen else dict(run="never/opened"))
    graph = Gateway(ServeConfig.model_validate(dict(models=models)), llm=handle, ctr=handle)
    return TestClient(graph.__serve_build_asgi_app__(), raise_server_exceptions=False)


def explained(http: TestClient, user: str, **more: Any) -> UserExplanation:
    body = dict(request_id="r", user_id=user, ask=False) | more
    response = http.post("/v1/explain/user", json=body)
    assert response.status_code == 200, response.text
    return UserExplanation.model_validate_json(response.content)


def answered(http: TestClient, user: str = "u0", **more: Any) -> DirectAnswer:
    response = http.post("/v1/answer", json=dict(request_id="r", user_id=user) | more)
    assert response.status_code == 200, response.text
    return DirectAnswer.model_validate_json(response.content, strict=True)


def refused(response: Any, status: int, error: str) -> str:
    assert response.status_code == status, response.text
    body = ErrorBody.model_validate_json(response.content)
    assert body.error == error
    return body.detail
