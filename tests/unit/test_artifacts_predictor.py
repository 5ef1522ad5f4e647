"""The one scoring path: equal scores however a request comes, and every unknown counted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import serve_fixtures as fixtures
import torch
from hypothesis import given
from hypothesis import strategies as st
from serve_fixtures import HOUR, ITEMS, NOW, START, USERS

from raysys.artifacts.predictor import SCORES, Predictor
from raysys.artifacts.run import load_run
from raysys.ctr.retrievers.config import (
    ETA,
    SDIM,
    TWIN,
    CountedJS,
    Exact,
    Permuted,
    Random,
    RandomContexts,
    RetrieverConfig,
    SIMHard,
    SIMSoft,
)
from raysys.data.attributes import AttributeConfig, AttributeField
from raysys.data.batch import Collator
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST
from raysys.data.histories import Histories
from raysys.data.requests import HistoryEvent, Request, Requests
from raysys.errors import ArtifactError, DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predictor")


@pytest.fixture(scope="module", params=["ctr", "news"])
def predictor(root: Path, request: pytest.FixtureRequest) -> Predictor:
    make = {"ctr": fixtures.ctr_run, "news": fixtures.news_run}[request.param]
    return Predictor.load(make(root))


def scores(predictor: Predictor, *requests: Request) -> np.ndarray:
    return predictor.score(requests)["score"].to_numpy()


def ask(user: str, **more: object) -> Request:
    base = dict(
        request_id="r", user_id=user, ts=NOW, candidates=ITEMS[:6], context={"meal": "lunch"}
    )
    return Request.model_validate(base | more)


def stored(root: Path, user: str) -> list[HistoryEvent]:
    """The events of a user as the data set holds them, oldest first."""
    table = fixtures.dataset(root).dataset.table("events").to_pylist()
    kept = ("item_id", "ts", "behaviour", "context")
    return [HistoryEvent(**{k: e[k] for k in kept}) for e in table if e["user_id"] == user]


def same(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_history_sent_is_the_history_stored(root: Path, predictor: Predictor) -> None:
    for user in USERS:
        sent = ask("stranger", history=stored(root, user))
        same(scores(predictor, sent), scores(predictor, ask(user)))
    assert not np.allclose(scores(predictor, ask(USERS[3])), scores(predictor, ask(USERS[9])))


@given(past=st.integers(0, 30))
def test_time_and_place_cut_the_history_alike(root: Path, predictor: Predictor, past: int) -> None:
    """The first n events: by a time strictly after them, by history_end, or sent alone."""
    user = USERS[-1]
    events = stored(root, user)
    by_time = ask(user, ts=START + past * HOUR)
    by_place = ask(user, ts=None, history_end=past)
    sent = ask(user, ts=NOW, history=events[:past])
    for other in (by_place, sent, ask(user, ts=START + past * HOUR, history=events)):
        same(scores(predictor, other), scores(predictor, by_time))


def test_an_event_at_the_moment_of_the_request_is_not_past(
    root: Path, predictor: Predictor
) -> None:
    user = USERS[-1]
    last = stored(root, user)[-1].ts
    assert last is not None
    after = scores(predictor, ask(user, ts=last + 1))
    assert not np.allclose(scores(predictor, ask(user, ts=last)), after)


def test_requests_do_not_see_each_other(predictor: Predictor) -> None:
    requests = fixtures.requests(40, seed=1)
    together = scores(predictor, *requests)
    same(together, np.concatenate([scores(predictor, request) for request in requests]))
    back = predictor.score(requests[::-1])
    owner = {
        (r, i): s for r, i, s in zip(*(back[n].to_pylist() for n in SCORES.names[:3]), strict=True)
    }
    expected = [owner[request.request_id, i] for request in requests for i in request.candidates]
    same(together, np.array(expected))


def test_candidates_keep_their_order_and_their_score(predictor: Predictor) -> None:
    request = fixtures.requests(1, seed=2)[0]
    turned = request.model_copy(update={"candidates": request.candidates[::-1]})
    table = predictor.score([turned])
    assert table.schema.equals(SCORES)
    assert table["item_id"].to_pylist() == list(turned.candidates)
    same(table["score"].to_numpy()[::-1], scores(predictor, request))


def test_unknown_items_users_and_values_are_scored_and_counted(root: Path) -> None:
    predictor = Predictor.load(fixtures.ctr_run(root))
    known = ask(USERS[5], context={"meal": "lunch", "degrees": 5.0})
    predictor.score([known])
    assert predictor.unknown == {"items": 0, "users": 0, "contexts": 0}
    strange = ask("stranger", candidates=("new", "newer", ITEMS[0]), context={"meal": "brunch"})
    got = scores(predictor, strange, known)
    assert predictor.unknown == {"items": 2, "users": 1, "contexts": 1}
    assert got[0] == got[1] != got[2]
    other = scores(predictor, strange.model_copy(update={"context": {"meal": "supper"}}))
    same(other, got[:3])  # two unknown values are the same unknown value
    predictor.unknown.clear()
    predictor.score([known.model_copy(update={"ts": START}), ask("stranger", history=[])])
    assert predictor.unknown["users"] == 0  # no past event, yet known
    assert predictor.unknown["contexts"] == 1  # what is missing is not passed over in silence
    none = scores(predictor, strange.model_copy(update={"context": {}}))
    assert predictor.unknown["contexts"] == 2
    assert not np.allclose(none, got[:3])  # but missing is something else


def test_histories_come_from_the_request_the_caller_or_the_run(root: Path) -> None:
    bare = fixtures.ctr_run(root, histories=False)
    cold = Predictor.load(bare)
    given_ = Predictor.load(bare, histories=fixtures.dataset(root).histories)
    full = Predictor.load(fixtures.ctr_run(root))
    emptied = Predictor.load(fixtures.ctr_run(root), histories=Histories.empty(full.codec))
    request = ask(USERS[5])
    same(scores(given_, request), scores(full, request))
    same(scores(cold, request), scores(full, ask("stranger")))
    same(scores(emptied, request), scores(cold, request))
    assert cold.unknown["users"] == 2
    sent = ask("stranger", history=stored(root, USERS[5]))
    same(scores(cold, sent), scores(full, request))


def test_probabilities_where_the_model_has_them(root: Path) -> None:
    table = Predictor.load(fixtures.ctr_run(root)).score(fixtures.requests(10))
    click, order = (table[name].to_numpy() for name in ("p_click", "p_order"))
    same(click, 1 / (1 + np.exp(-table["score"].to_numpy())))
    assert ((order > 0) & (order < click)).all()
    table = Predictor.load(fixtures.news_run(root)).score(fixtures.requests(10))
    assert table["p_click"].null_count == table["p_order"].null_count == len(table)


def test_no_requests_give_no_rows(predictor: Predictor) -> None:
    assert predictor.score([]).schema.equals(SCORES)
    assert predictor.explain([]) == []


def test_a_model_with_a_nan_is_refused(root: Path) -> None:
    for weight in ("click.layers.2.bias", "order.layers.2.bias"):
        run = load_run(fixtures.ctr_run(root))
        with torch.no_grad():
            dict(run.model.named_parameters())[weight].fill_(float("nan"))
        with pytest.raises(ArtifactError, match=r"non-finite score for item item-00 of request r;"):
            Predictor(run).score([ask(USERS[0])])


def test_context_values_of_the_wrong_type_are_refused(predictor: Predictor) -> None:
    for context, message in (
        (dict(meal=3), r"context\.meal: a categorical feature takes text, not 3"),
        (dict(degrees="hot"), r"context\.degrees: a numeric feature takes a number, not 'hot'"),
    ):
        for wrong in (dict(context=context), dict(history=[dict(item_id="a", context=context)])):
            with pytest.raises(DataError, match=message):
                predictor.score([ask("u"), ask("u", **wrong)])


def test_explanations_are_the_heaviest_events_of_the_window(
    root: Path, predictor: Predictor
) -> None:
    requests = fixtures.requests(25, seed=3)
    got = predictor.explain(requests, top=2)
    for request, rows in zip(requests, got, strict=True):
        assert len(rows) == len(request.candidates)
        (alone,) = predictor.explain([request], top=2)
        for row, one in zip(rows, alone, strict=True):
            same(np.array([e.weight for e in row]), np.array([e.weight for e in one]))
    user = USERS[4]
    request = ask(user)
    columns = Requests.of([request], predictor.codec)
    pointers = columns.pointers(predictor.run.catalogue, predictor.histories, predictor.codec)
    batch = Collator(predictor.histories, predictor.codec, 50)(pointers)
    weights = predictor.model.event_weights(batch)[0].tolist()
    names = [ITEMS[item - FIRST] for item in batch.history_items[0].tolist()]
    rows_of = predictor.histories.ts[int(pointers.start[0]) : int(pointers.end[0])]
    times = rows_of[::-1][: len(names)].tolist()
    (rows,) = predictor.explain([request], top=2)
    for column, row in enumerate(rows):
        found = zip(names, times, weights[column], strict=True)
        heaviest = sorted(found, key=lambda e: -abs(e[2]))[:2]
        assert [(e.item_id, e.ts) for e in row] == [(item, ts) for item, ts, _ in heaviest]
        np.testing.assert_allclose([e.weight for e in row], [w for *_, w in heaviest], rtol=1e-5)
        assert {e.behaviour for e in row} <= {"click", "order"}
    assert predictor.explain([ask("stranger")]) == [[[] for _ in range(6)]]


BRANDS = AttributeConfig(fields=(AttributeField(source="brand"),))
ARMS = [
    Random(k=4),
    Exact(k=4, contexts=("meal",)),
    Permuted(k=4),
    CountedJS(k=4, attributes=BRANDS),
    RandomContexts(k=4, attributes=BRANDS, seed=1),
    SIMHard(k=4, category="brand"),
    SIMSoft(k=4),
    ETA(k=4),
    SDIM(),
    TWIN(k=4),
]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.kind)
def test_every_retriever_is_shown_the_same_of_a_history_sent_or_stored(
    root: Path, arm: RetrieverConfig
) -> None:
    predictor = Predictor.load(fixtures.ctr_run(root, retriever=arm))
    plain = Predictor.load(fixtures.ctr_run(root))
    together = [ask(user, request_id=user) for user in USERS]
    expected = scores(predictor, *together).reshape(len(USERS), -1)
    for user, own in zip(USERS, expected, strict=True):
        sent = ask("stranger", history=stored(root, user))
        same(scores(predictor, sent), own)
        same(scores(predictor, ask(user)), own)
    assert not np.allclose(expected[-1], scores(plain, together[-1]))


@pytest.mark.parametrize("sent", [False, True])
def test_events_before_since_are_as_if_they_had_never_been(root: Path, sent: bool) -> None:
    predictor = Predictor.load(fixtures.ctr_run(root))
    user = USERS[-1]
    past = stored(root, user)
    since = past[len(past) // 2].ts
    asked = ask("stranger", history=past, since=since) if sent else ask(user, since=since)
    left = ask("stranger", history=[event for event in past if event.ts >= since])
    same(scores(predictor, asked), scores(predictor, left))
    assert not np.allclose(scores(predictor, left), scores(predictor, ask(user)))
    nothing = ask(user, since=NOW * 2)
    same(scores(predictor, nothing), scores(predictor, ask("stranger")))


@pytest.mark.parametrize("arm", ARMS[:4], ids=lambda arm: arm.kind)
def test_who_needs_the_whole_history_refuses_to_cut_it(root: Path, arm: RetrieverConfig) -> None:
    predictor = Predictor.load(fixtures.ctr_run(root, retriever=arm))
    asked = ask(USERS[-1], since=START + HOUR)
    assert "cannot leave the old ones out" in predictor.fit.misfit(asked)
    with pytest.raises(DataError, match="since: this model chooses events"):
        predictor.score([asked])
    assert predictor.fit.misfit(ask(USERS[-1])) is None


@pytest.mark.parametrize("sent", [False, True])
def test_explanations_name_events_that_were_chosen(root: Path, sent: bool) -> None:
    """Lunch on even hours: with exact-context no dinner explains a lunch."""
    arm = Exact(k=4, contexts=("meal",), strict=True)
    predictor = Predictor.load(fixtures.ctr_run(root, retriever=arm))
    user = USERS[-1]
    request = ask("stranger", history=stored(root, user)) if sent else ask(user)
    past = {event.ts: event.item_id for event in stored(root, user)}
    lunches = sorted(ts for ts in past if (ts - START) // HOUR % 2 == 0)
    (rows,) = predictor.explain([request], top=9)
    for row in rows:
        assert {event.ts for event in row} == set(lunches[-4:])
        assert all(past[event.ts] == event.item_id for event in row)


def test_items_in_another_order_are_the_same_items(root: Path) -> None:
    """The catalogue of a run is its own; a data set that lists its items otherwise is no matter."""
    run = load_run(fixtures.ctr_run(root))
    order = np.random.default_rng(0).permutation(len(run.items))
    turned = replace(run, catalogue=Catalogue.build(run.items.take(order), run.features))
    sent = ask("stranger", history=stored(root, USERS[6]))
    same(scores(Predictor(turned), sent), scores(Predictor(load_run(fixtures.ctr_run(root))), sent))
