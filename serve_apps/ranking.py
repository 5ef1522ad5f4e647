"""One run folder behind a Serve handle: what the ctr and news deployments share."""

import logging
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raysys.artifacts.predictor import Predictor
from raysys.data.contexts import FIRST
from raysys.data.requests import Request
from serve_apps.config import Family, Model, check_family
from serve_apps.merging import Merger
from serve_apps.schemas import ModelCard, RankRequest, Stats, to_json

log = logging.getLogger("ray.serve")

# The name of the only variant until traffic is split between several.
VARIANT = "main"
Reply = tuple[int, bytes]  # HTTP status, JSON body


class Ranking:
    """Loads a run, verifies it, and ranks requests with its `Predictor`.

    Scoring has a thread of its own, so that the event loop keeps taking requests; those that
    come in meanwhile form the next batch. One thread also means that two batches never fight
    for the cores given to this replica.

    Raises:
        ArtifactError: the run is unfinished, damaged or of the other family.
    """

    family: Family

    def __init__(self, model: Model) -> None:
        self.predictor = Predictor.load(model.run)
        self.counts: Counter[str] = Counter()
        check_family(self.predictor.run.config.recipe, self.family, model)
        self._popularity = _popularity(self.predictor)
        self.thread = ThreadPoolExecutor(1, "score", torch.set_num_threads, (model.threads,))
        self._merged = Merger(
            self.answer, self.thread, size=model.batch, wait_s=model.batch_wait_ms / 1000
        )
        self.card = self._describe()
        self.predictor.unknown.clear()  # the warm-up is nobody's request
        self.name = uuid.uuid4().hex[:8]

    async def rank(self, request: RankRequest) -> Reply:
        """Status 200 and a `RankAnswer`, or 422 and what does not fit this model."""
        problem = self.predictor.fit.misfit(request)
        if problem:
            body = dict(error="bad_request", detail=problem, request_id=request.request_id)
            return 422, to_json(body)
        self.counts["requests"] += 1
        return 200, await self._merged(request)

    async def describe(self) -> ModelCard:
        """Who is serving."""
        return self.card

    async def stats(self) -> Stats:
        """What this replica has done."""
        unknown = self.predictor.unknown
        return Stats(
            replica=self.name,
            requests=self.counts["requests"],
            fallbacks=self.counts["fallbacks"],
            unknown_items=unknown["items"],
            unknown_users=unknown["users"],
        )

    def answer(self, requests: list[RankRequest]) -> list[bytes]:
        """One JSON `RankAnswer` per request; never fails for a reason that lies with the model."""
        try:
            return self._scored(requests)
        except Exception:
            if len(requests) > 1:  # only the request that fails loses its ranking
                return [self.answer([request])[0] for request in requests]
            log.exception("scoring request %s failed, answered by fallback", requests[0].request_id)
            return [self._fallback(requests[0])]

    def _scored(self, requests: list[RankRequest]) -> list[bytes]:
        table = self.predictor.score(requests)
        score, p_click, p_order = (
            table[name].to_numpy() for name in ("score", "p_click", "p_order")
        )
        answers = []
        begin = 0
        for request in requests:
            rows = slice(begin, begin + len(request.candidates))
            answers.append(
                self._body(
                    request,
                    score[rows],
                    p_click[rows] if self.card.p_click else None,
                    p_order[rows] if self.card.p_order else None,
                    fallback=None,
                )
            )
            begin = rows.stop
        return answers

    def _fallback(self, request: RankRequest) -> bytes:
        self.counts["fallbacks"] += 1
        rows = self.predictor.run.catalogue.rows(request.candidates)
        if self._popularity is None:
            score = -np.arange(len(rows), dtype=float)
            return self._body(request, score, None, None, fallback="as_sent")
        return self._body(request, self._popularity[rows], None, None, fallback="popularity")

    def _body(
        self,
        request: RankRequest,
        score: npt.NDArray[np.float64],
        p_click: npt.NDArray[np.float64] | None,
        p_order: npt.NDArray[np.float64] | None,
        fallback: str | None,
    ) -> bytes:
        rows = self.predictor.run.catalogue.rows(request.candidates)
        because = retrieval = personas = None
        if request.explain and fallback is None:
            because = self.predictor.explain([request])[0]
            retrieval = self.predictor.explain_retrieval([request])[0]
            personas = self.predictor.explain_persona([request])[0]
        items = []
        for index in np.argsort(-score, kind="stable")[: request.top_k].tolist():
            item: dict[str, Any] = dict(
                item_id=request.candidates[index],
                known=bool(rows[index] >= FIRST),
                score=float(score[index]),
                p_click=None if p_click is None else float(p_click[index]),
                p_order=None if p_order is None else float(p_order[index]),
                explanation=None,
            )
            if because is not None:
                item["explanation"] = [event._asdict() for event in because[index]]
            if personas is not None:
                item["persona"] = personas[index]
            items.append(item)
        body = dict(
            request_id=request.request_id,
            model_id=self.predictor.model_id,
            data_card_id=self.predictor.data_card_id,
            variant=VARIANT,
            cold_user=request.history is None and self._is_cold(request.user_id),
            items=items,
            fallback=fallback,
        )
        return to_json(body if retrieval is None else body | {"retrieval": retrieval})

    def _is_cold(self, user: str) -> bool:
        return bool(self.predictor.histories.lookup([user])[0] < 0)

    def _describe(self) -> ModelCard:
        """Also a warm-up: the first score of a process pays for lazy initialisation."""
        run = self.predictor.run
        first = str(run.items["item_id"][0])
        probe = Request(request_id="warm-up", user_id="warm-up", candidates=(first,))
        table = self.thread.submit(self.predictor.score, [probe]).result()
        return ModelCard(
            model_id=self.predictor.model_id,
            data_card_id=self.predictor.data_card_id,
            variant=VARIANT,
            recipe=run.config.recipe,
            items=len(run.items),
            users=len(self.predictor.histories.users),
            contexts=list(self.predictor.codec.names),
            p_click=table["p_click"].null_count == 0,
            p_order=table["p_order"].null_count == 0,
        )


def _popularity(predictor: Predictor) -> npt.NDArray[np.float64] | None:
    """log(1 + events) of each catalogue row in the stored histories; None without any."""
    item = predictor.histories.item
    if len(item) == 0:
        return None
    rows = FIRST + len(predictor.run.catalogue.item_ids)
    return np.log1p(np.bincount(item, minlength=rows).astype(float))
