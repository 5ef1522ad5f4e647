"""What the report shows of a trained `news/perconet`: cards, contributions, faithfulness."""

from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch

from raysys.artifacts.persona import PersonaExplanation
from raysys.artifacts.predictor import Predictor
from raysys.data.batch import Batch
from raysys.data.contexts import FIRST
from raysys.data.prepared import Prepared
from raysys.data.sampling import pointers_of
from raysys.errors import ConfigError
from raysys.perconet.cards import Cards
from raysys.perconet.faithful import deletion
from raysys.perconet.ranker import Perconet
from raysys.tracking.figures import Cell, Figure, LineFigure, Series, TableFigure

Ints = npt.NDArray[np.int64]
_REQUESTS = 256  # newest of the validation split, from which all is shown
_READERS = 4
_ENTITIES = 4  # of a reader, and of an explained news
_DELETED = 5  # so many top entities lose their clicks, at most


def pictures(predictor: Predictor, data: Prepared, *, readers: bool = True) -> dict[str, Figure]:
    """Name → figure, of the newest validation requests with a click and a history; none without
    such a request. readers: single ones may be shown."""
    log, model = data.impressions, predictor.model
    assert isinstance(model, Perconet)
    valid = log.of("valid")
    clicked = np.array([log.click[log.rows(valid[n : n + 1])].any() for n in range(len(valid))])
    some = valid[clicked & (log.end > log.start)[valid]] if len(valid) else valid
    newest = some[np.argsort(log.ts[some], kind="stable")[-_REQUESTS:]]
    if not len(newest):
        return {}
    some = np.sort(newest[np.unique(log.user[newest], return_index=True)[1]][:_READERS])
    found: dict[str, Figure] = {}
    if readers:
        found["persona-contributions"] = _contributions(predictor, data, some)
        with suppress(ConfigError):  # a prominence that is no sum over clicks has no cards
            found["persona-cards"] = _cards(predictor, data, some)
    if model.options.persona.placebo is None:
        curve = _faithfulness(model, _batch(predictor, data, newest), log.user[newest])
        if curve is not None:
            found["persona-faithfulness"] = curve
    return found


def _batch(predictor: Predictor, data: Prepared, chosen: Ints) -> Batch:
    collate = predictor.model.collator(data.histories, predictor.codec)
    return collate(pointers_of(data, chosen))


def _cards(predictor: Predictor, data: Prepared, readers: Ints) -> Figure:
    """The most prominent entities of some readers, as their cards tell them."""
    model = predictor.model
    assert isinstance(model, Perconet) and model.table is not None
    ids, log = predictor.run.catalogue.item_ids, data.impressions
    cards = Cards(model.options.persona, model.table, predictor.model_id, ids, data.histories)
    rows: list[tuple[Cell, ...]] = []
    for row in log.user[readers].tolist():
        name = data.histories.users[row].as_py()
        card = cards.of(name, row)
        rows += [
            (name, card.n_clicks, entity.label or entity.id, entity.type, round(entity.weight, 3),
             len(entity.clicks), entity.last)
            for entity in card.entities[:_ENTITIES]
        ]  # fmt: skip
    return TableFigure(
        title="Persona cards",
        caption="The most prominent entities of some readers' newest clicks.",
        columns=("reader", "clicks", "entity", "type", "share", "clicks on it", "newest"),
        rows=tuple(rows),
    )


def _contributions(predictor: Predictor, data: Prepared, chosen: Ints) -> Figure:
    """The best ranked news of some requests, its score in parts."""
    batch = _batch(predictor, data, chosen)
    with torch.inference_mode():
        score = predictor.model(batch).score.masked_fill(~batch.candidate_mask, -torch.inf)
        told = predictor.model.explain_persona(batch, predictor.run.catalogue)
    assert told is not None
    titles = data.dataset.table("items", ["title"])["title"]
    rows: list[tuple[Cell, ...]] = []
    for row, best in enumerate(score.argmax(1).tolist()):
        item = int(batch.candidates[row, best]) - FIRST
        title = titles[item].as_py() if item >= 0 else "(unknown)"
        request = data.impressions.ids[int(chosen[row])].as_py()
        rows += _parts(request, title, float(score[row, best]), told[row][best])
    return TableFigure(
        title="What the score of the best ranked news is made of",
        caption="Contributions of entities, latent part and default add up to the score.",
        columns=("request", "news", "part", "adds", "share in the persona", "news names it"),
        rows=tuple(rows),
    )


def _parts(
    request: str, title: str | None, score: float, told: PersonaExplanation
) -> list[tuple[Cell, ...]]:
    strongest = sorted(told.entities, key=lambda part: -abs(part.contribution))
    shown = strongest[:_ENTITIES]
    rest = sum(part.contribution for part in strongest[_ENTITIES:])
    rows: list[tuple[Cell, ...]] = [(request, title, "score", round(score, 3), None, None)]
    rows += [
        ("", "", part.label or part.id, round(part.contribution, 3), round(part.weight, 3),
         "yes" if part.match else "no")
        for part in shown
    ]  # fmt: skip
    parts = {"other entities": rest, "latent": told.latent, "default": told.default}
    return [*rows, *(("", "", name, round(v, 3), None, None) for name, v in parts.items() if v)]


def _faithfulness(model: Perconet, batch: Batch, users: npt.NDArray[np.int32]) -> Figure | None:
    """How much more a clicked news loses without the clicks behind its top entities than without
    as many others, over the number of these entities."""
    x, y, low, high = [], [], [], []
    for entities in range(1, 1 + min(_DELETED, model.options.persona.size)):
        found = deletion(model, batch, seed=0, entities=entities)
        # Readers, not requests, are independent of each other.
        mine = users[found.request]
        means = np.array([found.effect[mine == user].mean() for user in np.unique(mine)])
        if len(means) < 2:
            break
        mean, error = float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))
        x.append(float(entities))
        y.append(mean)
        low.append(mean - 1.96 * error)
        high.append(mean + 1.96 * error)
    if not x:
        return None
    return LineFigure(
        title="Deletion faithfulness",
        caption="Mean over readers of the validation split with a 95 % interval; above 0 the "
        "clicks that an explanation names matter more than others as recent.",
        x_label="top entities whose clicks are deleted",
        y_label="score lost beyond that of other clicks",
        series=(Series(name="", x=tuple(x), y=tuple(y), low=tuple(low), high=tuple(high)),),
    )
