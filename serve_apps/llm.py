"""Deployment that knows users in words, and asks a language model about them: low traffic, apart
from the rankers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from ray import serve

from raysys.errors import ConfigError
from raysys.hkfr.answering import Answerer, asked_tasks, open_instructed, slots_of, worded
from raysys.hkfr.lookup import KnowledgeLookup, KnownUser, names_any
from raysys.hkfr.samples import Samples
from serve_apps.config import Llm
from serve_apps.llm_schemas import (
    MAX_NAMES,
    AboutUser,
    AnsweredName,
    AnswerRequest,
    DirectAnswer,
    ExplainRequest,
    ToldByModel,
    ToldInterest,
    UserExplanation,
)
from serve_apps.schemas import ErrorBody, to_json

Reply = tuple[int, bytes]  # HTTP status, JSON body


def check_llm(config: Llm) -> None:
    """Open what the replica will open, weights excepted.

    Raises:
        RaysysError: no store, a damaged run or folder of samples, no such model.
    """
    KnowledgeLookup(config.knowledge)
    if config.model is not None:
        open_instructed(config.model)
    if config.samples is not None:
        Samples.open(config.samples)


class UserLlm:
    """Tells what is known of users, and what a language model answers about them.

    One thread does all of it: the model's cores are fought over by nobody, and what waits in front
    of it can still be given up.

    Raises:
        RaysysError: see `check_llm`; weights that do not load or score otherwise with a cache.
    """

    def __init__(self, config: Llm) -> None:
        self.lookup = KnowledgeLookup(config.knowledge)
        self.tasks = {} if config.samples is None else asked_tasks(Samples.open(config.samples))
        self._thread = ThreadPoolExecutor(1, "llm", torch.set_num_threads, (config.threads,))
        self.answerer: Answerer | None = None
        if config.model is not None:
            self.answerer = self._thread.submit(self._load, config.model, config).result()

    @staticmethod
    def _load(model: str, config: Llm) -> Answerer:
        return Answerer(
            model,
            statements=config.interests,
            statement_chars=config.interest_chars,
            max_new_tokens=config.max_new_tokens,
        )

    async def explain(self, request: ExplainRequest) -> Reply:
        """Status 200 and a `UserExplanation`."""
        return await self._in_thread(self._explain, request)

    async def answer(self, request: AnswerRequest) -> Reply:
        """Status 200 and a `DirectAnswer`; 404 without a model, 422 for what it cannot answer."""
        return await self._in_thread(self._answer, request)

    def known(self, request: AboutUser) -> KnownUser:
        """What the request may know. Of a user who has asked to be forgotten that is nothing: what
        knowledge holds of before and after cannot be told apart."""
        if request.since is not None:
            return KnownUser()
        found = self.lookup.of(request.user_id, request.ts, request.tz_offset_min)
        return found.without(request.hidden)

    def _explain(self, request: ExplainRequest) -> Reply:
        known = self.known(request)
        told = None
        if self.answerer is not None and request.ask and not known.cold:
            found = self.answerer.interests(known.text)
            interests = () if isinstance(found, str) else found
            told = ToldByModel(
                model_id=self.answerer.model_id,
                interests=[
                    ToldInterest(text=s.text, lines=[int(event[1:]) for event in s.events])
                    for s in interests
                    if not names_any(s.text, request.hidden)
                ],
                fault=found if isinstance(found, str) else None,
            )
        body = UserExplanation(
            request_id=request.request_id,
            user_id=request.user_id,
            cold_user=known.cold,
            date=None if known.day is None else known.day.isoformat(),
            events=known.events,
            last_ts=known.last_ts,
            backend=known.backend,
            fallback=known.fallback,
            text=known.text,
            facts=known.record.facts,
            interests=known.record.interests,
            told=told,
        )
        return 200, to_json(body)

    def _answer(self, request: AnswerRequest) -> Reply:
        if self.answerer is None:
            told = "no language model is served here; see models.llm.model"
            return _refused(404, "not_served", told, request)
        known = self.known(request)
        try:
            instruction, names = self._question(request)
            names = [name for name in names if not names_any(name, request.hidden)]
            log_p = np.array(
                self.answerer.log_p(known.text, instruction, names) if names else [], float
            )
        except ConfigError as error:
            return _refused(422, "bad_request", str(error), request)
        share = np.exp(log_p - log_p.max(initial=-np.inf))
        share /= share.sum()
        best = np.argsort(-log_p, kind="stable")[: request.top_k].tolist()
        body = DirectAnswer(
            request_id=request.request_id,
            user_id=request.user_id,
            model_id=self.answerer.model_id,
            instruction=instruction,
            cold_user=known.cold,
            date=None if known.day is None else known.day.isoformat(),
            items=[
                AnsweredName(name=names[i], log_p=float(log_p[i]), p=float(share[i])) for i in best
            ],
        )
        return 200, to_json(body)

    def _question(self, request: AnswerRequest) -> tuple[str, list[str]]:
        """Instruction and candidates.

        Raises:
            ConfigError: an unknown task, what it needs is missing, or candidates are.
        """
        if request.instruction is not None:
            return request.instruction, list(request.candidates or ())
        task = str(request.task)
        asked = self.tasks.get(task)
        if asked is not None and not slots_of(task) and not request.given:
            instruction = asked.instruction
        else:
            instruction = worded(task, request.given)
        names = request.candidates or (() if asked is None else asked.names)
        if not 0 < len(names) <= MAX_NAMES:
            there = f"of task {task} there are {len(names):,}" if names else f"of {task} none known"
            raise ConfigError(f"candidates: {there} here; send 1 to {MAX_NAMES} names")
        return instruction, list(names)

    async def _in_thread(self, call: Callable[..., Reply], request: AboutUser) -> Reply:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, request)


def _refused(status: int, error: str, detail: str, request: AboutUser) -> Reply:
    return status, to_json(ErrorBody(error=error, detail=detail, request_id=request.request_id))


llm = serve.deployment(name="llm")(UserLlm)
