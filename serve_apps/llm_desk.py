"""Where questions about users come in: limits, wishes of readers, a deadline of their own."""

import asyncio
from typing import Any

from serve_apps.config import Limits, Llm
from serve_apps.llm_schemas import AnswerRequest, ExplainRequest, parse_about
from serve_apps.personas import Wish
from serve_apps.ranking import Reply
from serve_apps.refusals import Refusal, unavailable
from serve_apps.schemas import request_id


class LlmDesk:
    """Asks the deployment `llm`.

    Args:
        config: of it.
        limits: of requests.
        llm: handle of a `UserLlm`.
        wishes: handle of a `PersonaStore`, where one is served: whom it has forgotten is a
            stranger here too.
    """

    def __init__(self, config: Llm, limits: Limits, llm: Any, wishes: Any = None) -> None:
        self.in_flight = 0
        self._config, self._limits, self._llm, self._wishes = config, limits, llm, wishes

    async def explain(self, body: bytes, allowed_s: float) -> Reply:
        """What is known of a user; see `UserLlm.explain`."""
        return await self._reply(self._llm.explain, ExplainRequest, body, allowed_s)

    async def answer(self, body: bytes, allowed_s: float) -> Reply:
        """What a model answers about a user; see `UserLlm.answer`."""
        return await self._reply(self._llm.answer, AnswerRequest, body, allowed_s)

    async def _reply(
        self,
        ask: Any,
        kind: type[ExplainRequest] | type[AnswerRequest],
        body: bytes,
        allowed_s: float,
    ) -> Reply:
        request = parse_about(kind, body, self._limits)
        if isinstance(request, str):
            raise Refusal(422, "bad_request", request, request_id(body))
        if self.in_flight >= self._config.in_flight:
            told = "too many questions about users are being answered; try again"
            raise Refusal(503, "busy", told, request.request_id)
        self.in_flight += 1
        try:
            async with asyncio.timeout(allowed_s):
                found: Reply = await ask.remote(await self._heeded(request))
                return found
        except TimeoutError as error:
            told = f"no answer within {allowed_s:g} s"
            raise Refusal(408, "timeout", told, request.request_id) from error
        except Exception as error:
            raise unavailable(error, request.request_id) from error
        finally:
            self.in_flight -= 1

    async def _heeded(
        self, request: ExplainRequest | AnswerRequest
    ) -> ExplainRequest | AnswerRequest:
        if self._wishes is None or request.since is not None:
            return request
        wish: Wish = await self._wishes.read.remote(request.user_id)
        return request.model_copy(update={"since": wish.since})
