"""The client against a small real HTTP server that answers by a script."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from raysys.data.requests import Request
from serve_apps.client import Client, ServerError
from serve_apps.schemas import RankAnswer

REQUEST = Request(request_id="r", user_id="u", ts=3, candidates=("a", "b"))
ANSWER = RankAnswer(
    request_id="r",
    model_id="m",
    data_card_id="d",
    variant="main",
    cold_user=True,
    items=[],
    fallback=None,
)


class Script(HTTPServer):
    """Answers the n-th request with the n-th (status, body, headers); keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[tuple[int, str, dict[str, str]]] = []
        self.bodies: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.bodies.append(json.loads(body or b"{}"))
        status, text, headers = self.server.steps.pop(0)
        if status == 0:  # hang up
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    do_PUT = do_DELETE = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()
    thread = threading.Thread(target=script.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    yield script
    script.shutdown()
    thread.join()
    script.server_close()


@pytest.fixture
def client(server: Script) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{server.server_port}/") as ready:
        yield ready


GOOD = (200, ANSWER.model_dump_json(), {})
BUSY = (503, '{"error":"busy","detail":"later"}', {"Retry-After": "0"})


def test_a_request_goes_out_as_the_schema_wants_it(server: Script, client: Client) -> None:
    server.steps = [GOOD]
    assert client.rank("ctr", REQUEST, top_k=1) == ANSWER
    assert server.bodies == [
        dict(request_id="r", user_id="u", ts=3, candidates=["a", "b"], top_k=1)
    ]


@pytest.mark.parametrize("step", [BUSY, (0, "", {})])
def test_busy_servers_and_lost_connections_are_asked_again(
    server: Script, client: Client, step: Any
) -> None:
    server.steps = [step, step, GOOD]
    assert client.rank("ctr", REQUEST) == ANSWER
    assert len(server.bodies) == 3


def test_what_hides_or_forgets_is_asked_once(server: Script, client: Client) -> None:
    for ask in (lambda: client.hide("u", ["Q1"]), lambda: client.forget("u")):
        server.steps, server.bodies = [(0, "", {}), GOOD], []
        with pytest.raises(ServerError, match="no answer: unreachable"):
            ask()
        assert len(server.bodies) == 1


def test_retries_end(server: Script, client: Client) -> None:
    server.steps = [BUSY] * 9
    with pytest.raises(ServerError, match="HTTP 503: busy: later"):
        client.rank("ctr", REQUEST)
    assert len(server.bodies) == 4


def test_a_long_wait_is_not_begun(server: Script, client: Client) -> None:
    server.steps = [(503, "{}", {"Retry-After": "3600"})]
    with pytest.raises(ServerError, match="HTTP 503"):
        client.rank("ctr", REQUEST)


@pytest.mark.parametrize("status", [408, 413, 422, 500])
def test_refusals_are_not_repeated(server: Script, client: Client, status: int) -> None:
    server.steps = [(status, "plain words", {})]
    with pytest.raises(ServerError, match="plain words") as caught:
        client.rank("ctr", REQUEST)
    assert caught.value.status == status
