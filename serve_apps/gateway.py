"""The HTTP side: limits, validation, deadline, one safe retry, and a defined end for every
request: 200, 4xx, 408 or 503 with Retry-After.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RequestCancelledError

from raysys.data.requests import MAX_ID, HistoryEvent
from serve_apps.config import Family, ServeConfig, most_values
from serve_apps.ctr import CTRRanking
from serve_apps.edge import TIMEOUT_HEADER, WISH_HEADER
from serve_apps.llm_desk import LlmDesk
from serve_apps.news import NewsRanking
from serve_apps.personas import Wish
from serve_apps.ranking import Ranking, Reply
from serve_apps.refusals import Refusal, json_response, unavailable
from serve_apps.schemas import (
    ModelCard,
    PersonaClick,
    PersonaWish,
    RankRequest,
    Stats,
    parse,
    parse_told,
    request_id,
    to_json,
)

log = logging.getLogger("ray.serve")

HEALTH_TIMEOUT_S = 5.0
Question = Callable[[bytes, float], Awaitable[Reply]]
Told = TypeVar("Told")
Wanted = TypeVar("Wanted", PersonaWish, PersonaClick)


@dataclass(frozen=True)
class Backend:
    """A ranker in another process, or in this one; calling it looks the same."""

    rank: Callable[[RankRequest], Awaitable[Reply]]
    describe: Callable[[], Awaitable[ModelCard]]
    stats: Callable[[], Awaitable[Stats]]


@dataclass(frozen=True)
class PersonaDesk:
    """Where readers see and change their personas. store: handle of a `PersonaStore`; card,
    strange, untimely: of the news ranker, here or in another process."""

    store: Any
    card: Callable[[str, Wish], Awaitable[Reply]]
    strange: Callable[[tuple[str, ...]], Awaitable[str | None]]
    untimely: Callable[[int], Awaitable[str | None]]

    async def read(self, reader: str) -> Reply:
        """The card as it counts now."""
        return await self.card(reader, await self.store.read.remote(reader))

    async def hide(self, reader: str, hidden: tuple[str, ...]) -> Reply:
        """The card without these entities; 422 if the model does not know one of them."""
        unknown = await self.strange(hidden)
        if unknown is not None:
            raise Refusal(422, "bad_request", f"hidden: {unknown!r} is no entity of this model")
        return await self.card(reader, await self.store.hide.remote(reader, hidden))

    async def click(self, reader: str, item: str, ts: int) -> Reply:
        """The card with another click; 422 if its time is none."""
        fault = await self.untimely(ts)
        if fault is not None:
            raise Refusal(422, "bad_request", fault)
        return await self.card(reader, await self.store.click.remote(reader, item, ts))

    async def forget(self, reader: str) -> Reply:
        """The empty card that is left."""
        return await self.card(reader, await self.store.forget.remote(reader))

    async def heeded(self, request: RankRequest) -> RankRequest:
        """The request with what its reader did and asked for since the run was made."""
        wish: Wish = await self.store.read.remote(request.user_id)
        if wish == Wish():
            return request
        known = [since for since in (request.since, wish.since) if since is not None]
        update: dict[str, Any] = {
            "hidden": (*request.hidden, *wish.hidden),
            "since": max(known) if known else None,
        }
        if request.history is None:
            clicks = {(event.item_id, event.ts): event for event in request.recent}
            clicks |= {
                (item, ts): HistoryEvent(item_id=item, ts=ts)
                for item, ts in wish.clicks
                if request.ts is None or ts < request.ts
            }
            update["recent"] = tuple(sorted(clicks.values(), key=lambda event: event.ts or 0))
        return request.model_copy(update=update)


def _desk(store: Any, *ranker: Any) -> PersonaDesk | None:
    return None if store is None else PersonaDesk(store, *ranker)


class Gateway:
    """Ingress of the graph.

    Args:
        config: of the whole server.
        ctr, news: handles of the deployments; None where the model is not served, or where it
            is fused into this process.
        scene: handle of the text encoder for a ctr model that is fused.
        personas: handle of what readers have asked for about their personas.
        llm: handle of what tells and answers about users.
    """

    def __init__(
        self,
        config: ServeConfig,
        ctr: Any = None,
        news: Any = None,
        scene: Any = None,
        personas: Any = None,
        llm: Any = None,
    ) -> None:
        self.config = config
        self.desk: PersonaDesk | None = None
        self.llm: LlmDesk | None = None
        if config.models.llm is not None:
            self.llm = LlmDesk(config.models.llm, config.limits, llm, personas)
        self.in_flight = 0
        self.backends: dict[Family, Backend] = {}
        handles: dict[Family, Any] = {"ctr": ctr, "news": news}
        for family, model in config.models.served():
            handle = handles[family]
            if config.fused:
                local: Ranking
                if family == "ctr":
                    local = CTRRanking(model, scene, most_values(config))
                else:
                    local = NewsRanking(model, config.models.personas)
                    self.desk = _desk(personas, local.persona, local.unknown_entity, local.untimely)
                self.backends[family] = Backend(local.rank, local.describe, local.stats)
            else:
                self.backends[family] = Backend(
                    handle.rank.remote, handle.describe.remote, handle.stats.remote
                )
                if family == "news":
                    self.desk = _desk(
                        personas,
                        handle.persona.remote,
                        handle.unknown_entity.remote,
                        handle.untimely.remote,
                    )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes; there are no generated documentation pages."""
        api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        @api.post("/v1/ctr/rank")
        async def rank_ctr(http: Request) -> Response:
            return await self.rank("ctr", http)

        @api.post("/v1/news/rank")
        async def rank_news(http: Request) -> Response:
            return await self.rank("news", http)

        # With a method each of its own, and `path`, since ids of readers may hold slashes.
        @api.get("/v1/personas/{reader:path}")
        async def persona(reader: str) -> Response:
            return await self.persona(reader, lambda desk: desk.read(reader))

        @api.put("/v1/personas/{reader:path}")
        async def hide(reader: str, http: Request) -> Response:
            wish = self._told(PersonaWish, await self._body(http))
            return await self.persona(reader, lambda desk: desk.hide(reader, wish.hidden))

        @api.post("/v1/personas/{reader:path}/clicks")
        async def click(reader: str, http: Request) -> Response:
            told = self._told(PersonaClick, await self._body(http))
            return await self.persona(
                reader, lambda desk: desk.click(reader, told.item_id, told.ts)
            )

        @api.delete("/v1/personas/{reader:path}")
        async def forget(reader: str) -> Response:
            return await self.persona(reader, lambda desk: desk.forget(reader))

        @api.post("/v1/explain/user")
        async def explain_user(http: Request) -> Response:
            return await self.ask(http, lambda desk: desk.explain)

        @api.post("/v1/answer")
        async def answer(http: Request) -> Response:
            return await self.ask(http, lambda desk: desk.answer)

        @api.get("/v1/models")
        async def models() -> Response:
            cards = await self.describe()
            return json_response(200, to_json({"models": cards}))

        @api.get("/v1/stats")
        async def stats() -> Response:
            return json_response(200, to_json({"stats": await self.stats()}))

        @api.get("/healthz")
        async def healthz() -> Response:
            cards = await self.describe()
            ids = {family: card.model_id for family, card in cards.items()}
            return json_response(200, to_json({"status": "ok", "models": ids}))

        @api.exception_handler(Refusal)
        async def refused(_: Request, refusal: Refusal) -> Response:
            return refusal.response()

        @api.exception_handler(404)
        async def unrouted(_: Request, error: Exception) -> Response:
            return Refusal(404, "not_found", "no such route").response()

        @api.exception_handler(405)
        async def unfit(_: Request, error: Exception) -> Response:
            told = (
                "ranking, explaining and answering are POSTs; personas are read by GET, changed by "
                "PUT, POST and DELETE"
            )
            return Refusal(405, "method_not_allowed", told).response()

        @api.exception_handler(Exception)
        async def unexpected(_: Request, error: Exception) -> Response:
            return unavailable(error).response()

        return api

    async def describe(self) -> dict[Family, ModelCard]:
        """Cards of the served models.

        Raises:
            Refusal: a ranker does not answer.
        """
        return await _all({family: b.describe for family, b in self.backends.items()})

    async def stats(self) -> dict[Family, Stats]:
        """What one replica of each ranker has done.

        Raises:
            Refusal: a ranker does not answer.
        """
        return await _all({family: b.stats for family, b in self.backends.items()})

    def _told(self, kind: type[Wanted], body: bytes) -> Wanted:
        told = parse_told(kind, body, self.config.limits)
        if isinstance(told, str):
            raise Refusal(422, "bad_request", told)
        return told

    async def persona(
        self, reader: str, ask: Callable[["PersonaDesk"], Awaitable[Reply]]
    ) -> Response:
        """One question about a reader's persona, or one change of it.

        Raises:
            Refusal: it ends in anything but a card.
        """
        if self.desk is None:
            raise Refusal(404, "not_served", "no personas are served here; see models.personas")
        if not 0 < len(reader) <= min(MAX_ID, self.config.limits.string):
            raise Refusal(422, "bad_request", f"a reader's id has 1 to {MAX_ID} characters")
        if self.in_flight >= self.config.limits.in_flight:
            raise Refusal(503, "busy", "too many requests are being answered; try again")
        allowed = self.config.http.request_timeout_s
        self.in_flight += 1
        try:
            async with asyncio.timeout(allowed):
                status, body = await ask(self.desk)
        except TimeoutError as error:
            raise Refusal(408, "timeout", f"no answer within {allowed:g} s") from error
        except Refusal:
            raise
        except Exception as error:
            raise unavailable(error) from error
        finally:
            self.in_flight -= 1
        return json_response(status, body)

    async def ask(self, http: Request, question: Callable[[LlmDesk], Question]) -> Response:
        """One question about a user.

        Raises:
            Refusal: it ends in anything but an answer.
        """
        if self.llm is None or self.config.models.llm is None:
            raise Refusal(404, "not_served", "nothing is told of users here; see models.llm")
        allowed = self._allowed(http, self.config.models.llm.timeout_s)
        status, body = await question(self.llm)(await self._body(http), allowed)
        return json_response(status, body)

    async def rank(self, family: Family, http: Request) -> Response:
        """One ranking request, from its headers to its answer.

        Raises:
            Refusal: it ends in anything but a ranking.
        """
        if family not in self.backends:
            served = ", ".join(self.backends)
            raise Refusal(404, "not_served", f"no {family} model is served here, only {served}")
        if self.in_flight >= self.config.limits.in_flight:
            raise Refusal(503, "busy", "too many requests are being answered; try again")
        loop = asyncio.get_running_loop()
        allowed = self._allowed(http, self.config.http.request_timeout_s)
        deadline = loop.time() + allowed
        self.in_flight += 1
        work = loop.create_task(self._work(family, http, deadline))
        # An abandoned task may still end in an error that nobody is there to see.
        work.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await asyncio.wait({work}, timeout=allowed)
            if not work.done():
                raise Refusal(408, "timeout", f"no answer within {allowed:g} s")
            return work.result()
        finally:
            work.cancel()
            self.in_flight -= 1

    async def _work(self, family: Family, http: Request, deadline: float) -> Response:
        body = await self._body(http)
        request = parse(body, self.config.limits)
        if isinstance(request, str):
            raise Refusal(422, "bad_request", request, request_id(body))
        if family == "news" and self.desk is not None:
            try:
                request = await self.desk.heeded(request)
            except Exception as error:
                # What a reader has hidden must not come back because nobody could be asked.
                raise unavailable(error, request.request_id) from error
        status, answer = await self._ask(family, request, deadline)
        return json_response(status, answer)

    async def _ask(self, family: Family, request: RankRequest, deadline: float) -> Reply:
        """Scoring changes nothing, so a request whose replica died is simply sent to another,
        once: two deaths in a row are not bad luck."""
        rank = self.backends[family].rank
        try:
            return await rank(request)
        except RequestCancelledError:
            raise  # the deadline has passed, and `rank` has answered
        except RayActorError as death:
            log.warning("%s replica died under %s: asking another", family, request.request_id)
            if asyncio.get_running_loop().time() >= deadline:
                raise unavailable(death, request.request_id) from death
        except Exception as error:
            raise unavailable(error, request.request_id) from error
        try:
            return await rank(request)
        except Exception as error:
            raise unavailable(error, request.request_id) from error

    async def _body(self, http: Request) -> bytes:
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also keeps web pages from posting to a loopback server behind the user's back.
            raise Refusal(415, "not_json", "send the header content-type: application/json")
        limit = self.config.limits.body_bytes
        body = bytearray()
        async for chunk in http.stream():
            body += chunk
            if len(body) > limit:
                raise Refusal(413, "too_large", f"the body is larger than {limit:,} bytes")
        return bytes(body)

    def _allowed(self, http: Request, limit: float) -> float:
        """Seconds for this request: what the client asks for, never more than the limit."""
        wish = http.headers.get(WISH_HEADER.decode()) or http.headers.get(TIMEOUT_HEADER.decode())
        try:
            seconds = float(wish or limit)
        except ValueError:
            return limit
        return seconds if 0 < seconds < limit else limit


async def _all(asked: dict[Family, Callable[[], Awaitable[Told]]]) -> dict[Family, Told]:
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            return {family: await ask() for family, ask in asked.items()}
    except Exception as error:
        raise Refusal(503, "unavailable", "a ranker does not answer; try again") from error


gateway = serve.deployment(name="gateway")(serve.ingress()(Gateway))
