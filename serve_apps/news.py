"""Deployment of a news ranker, and of the cards that show readers their personas."""

import time
from typing import Any

import numpy as np
from ray import serve

from raysys.artifacts.run import LoadedRun
from raysys.data.contexts import FIRST
from raysys.data.histories import UNKNOWN_TS
from raysys.data.requests import HistoryEvent
from raysys.data.split import iso
from raysys.errors import ArtifactError, ConfigError
from raysys.news.entities import EntityTable
from raysys.perconet.cards import Cards, PersonaTally
from raysys.perconet.ranker import Perconet
from serve_apps.config import Family, Model, Personas
from serve_apps.personas import Wish
from serve_apps.ranking import Ranking, Reply
from serve_apps.schemas import PersonaAnswer, RankRequest, to_json

_UNKNOWN = "\x00unknown"  # no id of a news, and so unknown to every catalogue
_AHEAD_US = 3_600_000_000  # clocks of clients may be fast by an hour


def persona_table(run: LoadedRun) -> EntityTable:
    """The entities of a run whose ranker has personas.

    Raises:
        ArtifactError: it has none.
    """
    model = run.model
    if not isinstance(model, Perconet) or model.table is None:
        raise ArtifactError(
            f"models.personas: {run.path} ({run.config.recipe}) has no personas; train "
            "news/perconet, or leave models.personas out"
        )
    try:
        PersonaTally(model.options.persona, model.table)
    except ConfigError as error:
        raise ArtifactError(f"models.personas: {run.path}: {error}") from error
    return model.table


class NewsRanking(Ranking):
    """Ranks with a run of a `news/...` recipe.

    personas: what no persona may hold, and that cards are to be had.
    """

    family: Family = "news"

    def __init__(self, model: Model, personas: Personas | None = None) -> None:
        super().__init__(model)
        self.cards: Cards | None = None
        kept = self.predictor.model
        self.limited = (
            isinstance(kept, Perconet) and kept.options.persona.retention_days is not None
        )
        if personas is not None:
            model = self.predictor.model
            model_table = persona_table(self.predictor.run)
            assert isinstance(model, Perconet)
            # Once for all: what counts for nobody need not be looked for in every request.
            model.bar(personas.barred(model_table))
            assert model.table is not None
            self.cards = Cards(
                options=model.options.persona,
                table=model.table,
                model=self.predictor.model_id,
                ids=self.predictor.run.catalogue.item_ids,
                histories=self.predictor.histories,
            )

    async def rank(self, request: RankRequest) -> Reply:
        """See `Ranking`; recent clicks count, and old ones do not where retention is limited."""
        update: dict[str, Any] = {}
        if self.limited and request.ts is None:
            update["ts"] = time.time_ns() // 1000  # without a time clicks have no age
        request = request.model_copy(update=update) if update else request
        return await super().rank(self._joined(request) if request.recent else request)

    def _joined(self, request: RankRequest) -> RankRequest:
        """The request with a history of its own: as much of the stored one as the model reads, and
        the recent clicks on known news."""
        past, ids = self.predictor.histories, self.predictor.run.catalogue.item_ids
        row = np.array(past.lookup([request.user_id]))
        start, end = int(past.begin(row)[0]), int(past.finish(row)[0])
        if request.ts is not None:
            end = int(past.end_before(row, np.array([request.ts]))[0])
        elif request.history_end is not None:
            end = min(end, start + request.history_end)
        first = max(start, end - self.predictor.model.history_length)
        # News that nobody knew at training has no id here; it holds its place as the unknown one.
        stored = [
            HistoryEvent(
                item_id=ids[item - FIRST].as_py() if item >= FIRST else _UNKNOWN,
                ts=None if ts == UNKNOWN_TS else ts,
            )
            for item, ts in zip(
                past.item[first:end].tolist(), past.ts[first:end].tolist(), strict=True
            )
        ]
        there = {(event.item_id, event.ts) for event in stored}
        rows = self.predictor.run.catalogue.rows([event.item_id for event in request.recent])
        events = stored + [
            event
            for event, known in zip(request.recent, (rows >= FIRST).tolist(), strict=True)
            if known and (event.item_id, event.ts) not in there
        ]
        events.sort(key=lambda event: UNKNOWN_TS if event.ts is None else event.ts)
        update = {"history": tuple(events), "history_end": None, "recent": ()}
        return request.model_copy(update=update)

    async def persona(self, reader: str, wish: Wish) -> Reply:
        """Status 200 and a `PersonaAnswer`; 404 where there are no cards."""
        if self.cards is None:
            body = dict(error="not_served", detail="the news model is served without personas")
            return 404, to_json(body)
        row = int(self.predictor.histories.lookup([reader])[0])
        since = None if wish.since is None else max(wish.since, UNKNOWN_TS + 1)
        rows = self.predictor.run.catalogue.rows([item for item, _ in wish.clicks]).tolist()
        recent = [(item, ts) for item, (_, ts) in zip(rows, wish.clicks, strict=True)]
        now = time.time_ns() // 1000
        card = self.cards.of(reader, row, wish.hidden, since, self._unknown(row, recent), now)
        return 200, to_json(PersonaAnswer(card=card, hidden=wish.hidden, since=wish.since))

    def _unknown(self, row: int, recent: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of (catalogue row, µs UTC) of clicks, known news that the stored history lacks."""
        past = self.predictor.histories
        span = slice(int(past.start[row]), int(past.start[row + 1])) if row >= 0 else slice(0, 0)
        stored = set(zip(past.item[span].tolist(), past.ts[span].tolist(), strict=True))
        return [click for click in recent if click[0] >= FIRST and click not in stored]

    async def untimely(self, ts: int) -> str | None:
        """What is wrong with the time of a click, µs UTC, in words."""
        early = self.predictor.fit.early(ts)
        if early is None and ts > time.time_ns() // 1000 + _AHEAD_US:
            return f"ts: {ts} is {iso(ts)}, in the future; ts is in µs since 1970, UTC"
        return early

    async def unknown_entity(self, entities: tuple[str, ...]) -> str | None:
        """The first of these ids that is no entity of the model."""
        if self.cards is None:
            return None
        return next((name for name in entities if not self.cards.table.row(name)), None)


news = serve.deployment(name="news")(NewsRanking)
