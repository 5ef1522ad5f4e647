from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from serve_apps.edge import Edge
from serve_apps.schemas import ErrorBody


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Stands for Serve's proxy: answers with the headers that reach it."""
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    await JSONResponse(headers)(scope, receive, send)


async def silent(scope: Any, receive: Any, send: Any) -> None:
    """A replica that died: the proxy ends the call without an answer."""


def ask(app: Callable[..., Awaitable[None]], path: str = "/x", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return TestClient(Edge(app)).get(path, headers=named)


@pytest.mark.parametrize("wish", ["0", "-1", "999999"])
def test_the_proxy_never_sees_the_clients_time_limit(wish: str) -> None:
    seen = ask(echo, x_request_timeout_seconds=wish).json()
    assert "x-request-timeout-seconds" not in seen
    assert seen["x-raysys-timeout-seconds"] == wish


def test_switches_of_the_proxy_are_dropped_and_the_rest_is_kept() -> None:
    seen = ask(
        echo,
        x_request_disconnect_disabled="?1",
        x_raysys_timeout_seconds="5",
        x_request_id="mine",
    ).json()
    assert "x-request-disconnect-disabled" not in seen
    assert "x-raysys-timeout-seconds" not in seen
    assert seen["x-request-id"] == "mine"


def test_a_lost_request_is_answered() -> None:
    answer = ask(silent)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert ErrorBody.model_validate_json(answer.content).error == "lost"


def test_the_routes_of_the_cluster_are_hidden() -> None:
    answer = ask(echo, "/-/routes")
    assert answer.status_code == 404
    ErrorBody.model_validate_json(answer.content)
