"""Deployment of a news ranker, and of the cards that show readers their personas."""

from ray import serve

from raysys.artifacts.run import LoadedRun
from raysys.data.histories import UNKNOWN_TS
from raysys.errors import ArtifactError
from raysys.news.entities import EntityTable
from raysys.perconet.cards import Cards
from raysys.perconet.ranker import Perconet
from serve_apps.config import Family, Model, Personas
from serve_apps.personas import Wish
from serve_apps.ranking import Ranking, Reply
from serve_apps.schemas import PersonaAnswer, RankRequest, to_json


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
    return model.table


class NewsRanking(Ranking):
    """Ranks with a run of a `news/...` recipe.

    personas: what no persona may hold, and that cards are to be had.
    """

    family: Family = "news"

    def __init__(self, model: Model, personas: Personas | None = None) -> None:
        super().__init__(model)
        self.barred: tuple[str, ...] = ()
        self.cards: Cards | None = None
        if personas is not None:
            table = persona_table(self.predictor.run)
            self.barred = personas.barred(table)
            self.cards = Cards(
                options=self.predictor.model.options.persona,  # type: ignore[union-attr, arg-type]
                table=table,
                model=self.predictor.model_id,
                ids=self.predictor.run.catalogue.item_ids,
                histories=self.predictor.histories,
            )

    async def rank(self, request: RankRequest) -> Reply:
        """See `Ranking`; barred entities count for nobody."""
        if self.barred:
            hidden = (*request.hidden, *self.barred)
            request = request.model_copy(update={"hidden": hidden})
        return await super().rank(request)

    async def persona(self, reader: str, wish: Wish) -> Reply:
        """Status 200 and a `PersonaAnswer`; 404 where there are no cards."""
        if self.cards is None:
            body = dict(error="not_served", detail="the news model is served without personas")
            return 404, to_json(body)
        row = int(self.predictor.histories.lookup([reader])[0])
        since = None if wish.since is None else max(wish.since, UNKNOWN_TS + 1)
        card = self.cards.of(reader, row, (*wish.hidden, *self.barred), since)
        return 200, to_json(PersonaAnswer(card=card, hidden=wish.hidden, since=wish.since))

    async def unknown_entity(self, entities: tuple[str, ...]) -> str | None:
        """The first of these ids that is no entity of the model."""
        if self.cards is None:
            return None
        return next((name for name in entities if not self.cards.table.row(name)), None)


news = serve.deployment(name="news")(NewsRanking)
