"""A small client for the served graph."""

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import requests
from pydantic import BaseModel

from raysys.data.requests import Request
from raysys.errors import RaysysError
from serve_apps.config import Family
from serve_apps.llm_schemas import (
    AnswerRequest,
    DirectAnswer,
    ExplainRequest,
    UserExplanation,
)
from serve_apps.schemas import (
    ErrorBody,
    ModelCard,
    PersonaAnswer,
    PersonaClick,
    PersonaWish,
    RankAnswer,
    RankRequest,
    Stats,
)


class ServerError(RaysysError):
    """An answer other than 200, or none."""

    def __init__(self, status: int | None, body: ErrorBody) -> None:
        where = f"HTTP {status}" if status else "no answer"
        super().__init__(f"{where}: {body.error}: {body.detail}")
        self.status = status
        self.body = body


class Client:
    """Keeps one connection open; use one client per thread.

    A 503 is tried again after its Retry-After, and a lost connection at once: ranking changes
    nothing on the server and a click told twice counts once, so asking twice is safe. What hides
    or forgets is asked once only: told again late, it would undo what came in between.

    Args:
        url: e.g. http://127.0.0.1:8000.
        timeout_s: for one request, its retries included.
        retries: how often to ask again.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, retries: int = 3) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.retries = retries
        self._http = requests.Session()
        # Requests to the server must not travel through a proxy that the environment names.
        self._http.trust_env = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def rank(
        self,
        family: Family,
        request: Request,
        *,
        explain: bool = False,
        top_k: int | None = None,
    ) -> RankAnswer:
        """Ranked candidates.

        Raises:
            ServerError: refused, or still failing after all retries.
        """
        ask = RankRequest(**dict(request), explain=explain, top_k=top_k)
        answer = self._send("POST", f"/v1/{family}/rank", _body(ask))
        return RankAnswer.model_validate_json(answer.content)

    def persona(self, reader: str) -> PersonaAnswer:
        """What the news model believes of a reader.

        Raises:
            ServerError: no personas are served, or the server does not answer.
        """
        return self._persona("GET", reader)

    def hide(self, reader: str, entities: Iterable[str]) -> PersonaAnswer:
        """Hide these entities of the reader's persona, and no others, from now on.

        Raises:
            ServerError: an entity that the model does not know, or as for `persona`.
        """
        wish = PersonaWish(hidden=tuple(entities))
        return self._persona("PUT", reader, wish.model_dump_json().encode())

    def click(self, reader: str, item_id: str, ts: int) -> PersonaAnswer:
        """Tell that the reader has just clicked a news, at `ts` µs UTC; told twice it counts once.

        Raises:
            ServerError: as for `persona`.
        """
        body = PersonaClick(item_id=item_id, ts=ts).model_dump_json().encode()
        return self._persona("POST", reader, body, "/clicks")

    def forget(self, reader: str) -> PersonaAnswer:
        """Have everything up to now forgotten that the news model knows of a reader.

        Raises:
            ServerError: as for `persona`.
        """
        return self._persona("DELETE", reader)

    def explain_user(self, request: ExplainRequest) -> UserExplanation:
        """What the system knows of a user, and what its language model makes of it.

        Raises:
            ServerError: no `models.llm` is served, or the server does not answer.
        """
        answer = self._send("POST", "/v1/explain/user", _body(request))
        return UserExplanation.model_validate_json(answer.content)

    def answer(self, request: AnswerRequest) -> DirectAnswer:
        """Names as a language model answers them about a user, likeliest first.

        Raises:
            ServerError: no `models.llm.model` is served, a task it cannot be asked, or no answer.
        """
        answer = self._send("POST", "/v1/answer", _body(request))
        return DirectAnswer.model_validate_json(answer.content)

    def _persona(
        self, method: str, reader: str, body: bytes | None = None, more: str = ""
    ) -> PersonaAnswer:
        answer = self._send(method, f"/v1/personas/{quote(reader, safe='')}{more}", body)
        return PersonaAnswer.model_validate_json(answer.content)

    def models(self) -> dict[Family, ModelCard]:
        """What is served.

        Raises:
            ServerError: the server or a ranker does not answer.
        """
        cards: Mapping[Family, Any] = self._send("GET", "/v1/models").json()["models"]
        return {family: ModelCard.model_validate(card) for family, card in cards.items()}

    def stats(self) -> dict[Family, Stats]:
        """What one replica of each ranker has done since it started.

        Raises:
            ServerError: the server or a ranker does not answer.
        """
        found: Mapping[Family, Any] = self._send("GET", "/v1/stats").json()["stats"]
        return {family: Stats.model_validate(stats) for family, stats in found.items()}

    def _send(self, method: str, path: str, body: bytes | None = None) -> requests.Response:
        end = time.monotonic() + self.timeout_s
        headers = {"content-type": "application/json"}
        for attempt in range(self.retries + 1):
            left = end - time.monotonic()
            try:
                answer = self._http.request(
                    method, self.url + path, data=body, headers=headers, timeout=max(left, 0.001)
                )
            except requests.RequestException as error:
                failure = ServerError(None, ErrorBody(error="unreachable", detail=str(error)))
                pause = 0.0
            else:
                if answer.status_code == 200:
                    return answer
                failure = ServerError(answer.status_code, _error(answer))
                pause = float(answer.headers.get("Retry-After", "1"))
            again = failure.status in (None, 503) and method in ("GET", "POST")
            retry = again and attempt < self.retries
            if not retry or time.monotonic() + pause >= end:
                raise failure
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def _body(request: BaseModel) -> bytes:
    return request.model_dump_json(exclude_defaults=True).encode()


def _error(answer: requests.Response) -> ErrorBody:
    try:
        return ErrorBody.model_validate_json(answer.content)
    except ValueError:  # not ours: Ray's proxy answers in plain text
        return ErrorBody(error="server", detail=answer.text[:200])
