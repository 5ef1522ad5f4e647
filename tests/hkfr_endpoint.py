"""An OpenAI-compatible endpoint on the loopback, for the tests of HKFR's remote back-end."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, str, dict[str, str]]  # status, body, headers
SILENCE, HANG_UP = 0, 1  # statuses of an answer that never comes, and of none


def completion(content: str, tokens: Any = 7) -> Answer:
    """A chat completion."""
    body = {"choices": [{"message": {"content": content}}], "usage": {"total_tokens": tokens}}
    return 200, json.dumps(body), {}


def said(*facts: str, prose: str = "The user looks around.") -> str:
    """An answer of the schema with these facts, all from the oldest event."""
    statements = [{"text": fact, "events": ["e1"]} for fact in facts]
    return json.dumps({"facts": statements, "interests": [], "prose": prose})


GOOD = completion(said("The user is known."))


class Endpoint(ThreadingHTTPServer):
    """Answers each request by `reply(body)`; keeps the bodies and headers it was sent."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """What the option `url` is."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        status, text, headers = self.server.reply(body)
        if status == SILENCE:
            self.server.closing.wait()
        if status in (SILENCE, HANG_UP):
            return
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Answer]) -> Iterator[Endpoint]:
    """An endpoint while the block lasts."""
    endpoint = Endpoint(reply)
    thread = threading.Thread(target=endpoint.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.closing.set()
        endpoint.shutdown()
        thread.join()
        endpoint.server_close()
