"""What stands between the network and Ray Serve's proxy, in the proxy's own process.

Serve's proxies find it by an environment variable; they inherit it from the Serve controller,
which is given it by `CONTROLLER`.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.middleware import Middleware

from serve_apps.config import APP

CONTROLLER = {
    "runtime_env": {
        "env_vars": {
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_apps.edge.middlewares",
            # Replicas inherit these. Nothing of ours blocks an event loop, so Serve need not
            # run our code and its own router in threads apart: a tenth less time per request.
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
            "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        }
    }
}
# The types of the ASGI protocol.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TIMEOUT_HEADER = b"x-request-timeout-seconds"
# Under this name the gateway sees the wish, and the proxy, which would obey it, does not.
WISH_HEADER = b"x-raysys-timeout-seconds"
# They switch off the proxy's own care for a request.
_DROPPED = (b"x-request-disconnect-disabled", b"serve_multiplexed_model_id", WISH_HEADER)
_LOST = (
    b'{"error":"lost","detail":"the process that was answering is gone; send the request again",'
    b'"request_id":null}'
)
_HIDDEN = b'{"error":"not_found","detail":"no such route","request_id":null}'


class Edge:
    """Clients may not lift the time limit, see the routes of the cluster, or be left without
    an answer when the replica that had their request dies."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] == "/-/routes":
            await _send(send, 404, _HIDDEN)
            return
        started = False

        async def watch(message: Scope) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        await self.app({**scope, "headers": _guarded(scope["headers"])}, receive, watch)
        if not started:
            await _send(send, 503, _LOST, (b"retry-after", b"1"))


def middlewares() -> list[Middleware]:
    """Called by Serve's proxy when it starts."""
    return [Middleware(Edge)]


def _guarded(headers: Any) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name not in _DROPPED]
    return [(WISH_HEADER if name == TIMEOUT_HEADER else name, value) for name, value in kept]


async def _send(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    start = [(b"content-type", b"application/json"), (b"server", APP.encode()), *headers]
    start.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
