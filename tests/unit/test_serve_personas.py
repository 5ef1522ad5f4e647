"""Persona cards that readers edit: what is hidden or forgotten no longer counts in any answer."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import newspaper as paper
import pytest
from serve_fixtures import Handle
from starlette.testclient import TestClient

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import load_run
from raysys.data.dataset import Dataset
from raysys.data.prepared import prepare
from raysys.data.requests import Request
from raysys.errors import ArtifactError
from raysys.perconet.cards import Cards
from raysys.perconet.ranker import Perconet
from serve_apps.config import ServeConfig
from serve_apps.gateway import Gateway
from serve_apps.personas import KEPT, PersonaBook, PersonaStore, Wish
from serve_apps.schemas import PersonaAnswer, RankAnswer
from serve_apps.server import check_runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("personas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(folder / "cache"))
        data = paper.write(folder / "data")
        paper.train_run(data, folder / "run", "train.epochs=1")
        yield folder


@pytest.fixture(scope="module")
def requests(root: Path) -> list[Request]:
    """A test request of each of some readers."""
    log = prepare(Dataset(root / "data")).dataset.table("impressions").to_pylist()
    rows = [row for row in log if row["split"] == "test"][:6]
    return [
        Request(request_id=r["impression_id"], user_id=r["user_id"], ts=r["ts"],
                candidates=tuple(r["candidates"]))
        for r in rows
    ]  # fmt: skip


def config(root: Path, store: Path, **more: Any) -> ServeConfig:
    models = {"news": {"run": root / "run"}, "personas": {"store": store, **more}}
    return ServeConfig.model_validate({"models": models, "fused": True})


@pytest.fixture
def http(root: Path, tmp_path: Path) -> Iterator[TestClient]:
    store = tmp_path / "wishes.db"
    gateway = Gateway(config(root, store), personas=Handle(PersonaStore(store)))
    with TestClient(gateway.__serve_build_asgi_app__(), raise_server_exceptions=False) as client:
        yield client


def card(http: TestClient, reader: str) -> PersonaAnswer:
    answer = http.get(f"/v1/personas/{reader}")
    assert answer.status_code == 200, answer.text
    return PersonaAnswer.model_validate_json(answer.content)


def rank(http: TestClient, request: Request, **extra: Any) -> RankAnswer:
    body = request.model_dump(mode="json", exclude_defaults=True) | extra
    answer = http.post("/v1/news/rank", json=body)
    assert answer.status_code == 200, answer.text
    return RankAnswer.model_validate_json(answer.content)


def scores(answer: RankAnswer) -> dict[str, float]:
    return {item.item_id: item.score for item in answer.items}


def test_a_hidden_entity_counts_in_no_answer_until_it_is_shown_again(
    http: TestClient, requests: list[Request]
) -> None:
    # After the last click, so that ranker and card look at the same ones.
    request = requests[0].model_copy(update={"ts": requests[0].ts + 10 * paper.DAY})
    whole, before = card(http, request.user_id), rank(http, request, explain=True)
    strangers = [other for other in requests if other.user_id != request.user_id]
    others = [scores(rank(http, other)) for other in strangers]
    top = whole.card.entities[0]
    named = {part.id for item in before.items for part in item.persona.entities}
    assert top.id in named
    told = http.put(f"/v1/personas/{request.user_id}", json={"hidden": [top.id]})
    edited = PersonaAnswer.model_validate_json(told.content)
    assert edited.hidden == (top.id,)
    assert top.id not in {entity.id for entity in edited.card.entities}
    assert sum(entity.weight for entity in edited.card.entities) == pytest.approx(1)
    after = rank(http, request, explain=True)
    assert scores(after) != scores(before)
    for item in after.items:
        assert top.id not in {part.id for part in item.persona.entities}
        parts = [*(part.contribution for part in item.persona.entities), item.persona.latent,
                 item.persona.default]  # fmt: skip
        assert sum(parts) == pytest.approx(item.score, abs=1e-5)
    # The card tells what the ranker counts with.
    persona = after.items[0].persona.entities
    assert {part.id: part.weight for part in persona} == pytest.approx(
        {entity.id: entity.weight for entity in edited.card.entities}, abs=1e-5
    )
    # Nobody else's answer has changed, and the wish can be taken back.
    assert [scores(rank(http, other)) for other in strangers] == others != []
    http.put(f"/v1/personas/{request.user_id}", json={"hidden": []})
    assert scores(rank(http, request)) == scores(before)
    assert card(http, request.user_id) == whole


def test_what_is_forgotten_is_as_if_it_had_never_been(
    http: TestClient, requests: list[Request]
) -> None:
    request = requests[2]
    stranger = request.model_copy(update={"user_id": "nobody"})
    before, cold = rank(http, request), rank(http, stranger)
    assert scores(before) != scores(cold)
    http.put(f"/v1/personas/{request.user_id}",
             json={"hidden": [card(http, request.user_id).card.entities[0].id]})  # fmt: skip
    told = PersonaAnswer.model_validate_json(http.delete(f"/v1/personas/{request.user_id}").content)
    assert (told.hidden, told.card.entities, told.card.n_clicks) == ((), (), 0)
    assert told.card.fallback and told.card.as_of is None
    assert scores(rank(http, request)) == scores(cold)
    assert scores(rank(http, requests[1])) != scores(cold)
    # Neither may a client send it along.
    past = [{"item_id": "n1", "ts": request.ts - 5}, {"item_id": "n2", "ts": request.ts - 3}]
    assert scores(rank(http, request, history=past)) == scores(cold)


def test_a_click_counts_in_the_next_answer_once(
    root: Path, http: TestClient, requests: list[Request]
) -> None:
    late = max(int(r["ts"]) for r in Dataset(root / "data").table("events").to_pylist())
    for request in (requests[3], requests[3].model_copy(update={"user_id": "a/new one"})):
        asked = request.model_copy(update={"ts": late + 10 * paper.DAY})
        before, whole = rank(http, asked), card(http, asked.user_id)
        named = {click for entity in whole.card.entities for click in entity.clicks}
        fresh = next(n for n in range(1, 30) if n % 5 and f"n{n}" not in named)
        told = {"item_id": f"n{fresh}", "ts": late + 5}
        for _ in range(2):
            answer = http.post(f"/v1/personas/{asked.user_id}/clicks", json=told)
            assert answer.status_code == 200, answer.text
        after, shown = rank(http, asked), card(http, asked.user_id)
        assert scores(after) != scores(before)
        assert shown.card.n_clicks == min(20, whole.card.n_clicks + 1)
        assert f"n{fresh}" in {entity.last for entity in shown.card.entities}
        # As if the click had been in the history all along.
        predictor = Predictor.load(root / "run")
        past = [
            {"item_id": r["item_id"], "ts": r["ts"]}
            for r in Dataset(root / "data").table("events").to_pylist()
            if r["user_id"] == asked.user_id
        ]
        inline = Request.model_validate(asked.model_dump() | {"history": [*past, told]})
        wanted = {r["item_id"]: r["score"] for r in predictor.score([inline]).to_pylist()}
        assert scores(after) == pytest.approx(wanted, abs=1e-6)
        # A click after the request tells it nothing; one before its own time does not either.
        early = asked.model_copy(update={"ts": late + 2})
        assert scores(rank(http, early)) == scores(before)
        assert http.delete(f"/v1/personas/{asked.user_id}").status_code == 200
        assert card(http, asked.user_id).card.n_clicks == 0
    far = 2**53  # µs: the year 2255
    for body in ({"item_id": "n1"}, {"item_id": "n1", "ts": "now"}, {"item_id": "", "ts": 1},
                 {"item_id": "n1", "ts": far}):  # fmt: skip
        assert http.post("/v1/personas/u01/clicks", json=body).status_code == 422


def test_recent_clicks_join_what_the_request_may_see_and_is_known(
    root: Path, http: TestClient, requests: list[Request]
) -> None:
    request = requests[0]
    past = [r for r in Dataset(root / "data").table("events").to_pylist()
            if r["user_id"] == request.user_id and r["ts"] < request.ts]  # fmt: skip
    fresh = {"item_id": "n3", "ts": request.ts - 1}
    stranger = {"item_id": "of today", "ts": request.ts - 1}
    for recent, more in (([fresh], [fresh]), ([stranger], []), ([stranger, fresh], [fresh])):
        found = scores(rank(http, request, recent=recent))
        history = [{"item_id": r["item_id"], "ts": r["ts"]} for r in past]
        assert found == pytest.approx(scores(rank(http, request, history=history + more)), abs=1e-6)
    # An earlier request: later stored clicks are not in the window's way.
    early = request.model_copy(update={"ts": past[len(past) // 2]["ts"]})
    left = [{"item_id": r["item_id"], "ts": r["ts"]} for r in past if r["ts"] < early.ts]
    joined = scores(rank(http, early, recent=[{"item_id": "n3", "ts": early.ts - 1}]))
    told = [*left, {"item_id": "n3", "ts": early.ts - 1}]
    assert joined == pytest.approx(scores(rank(http, early, history=told)), abs=1e-6)


def test_recent_events_go_with_the_stored_history_alone(
    http: TestClient, requests: list[Request]
) -> None:
    body = requests[0].model_dump(mode="json", exclude_defaults=True)
    for more, told in (
        ({"recent": [{"item_id": "n1"}]}, "recent: events need a ts"),
        ({"recent": [{"item_id": "n1", "ts": 5}, {"item_id": "n2", "ts": 4}]}, "oldest first"),
        ({"recent": [{"item_id": "n1", "ts": 5}], "history": []}, "history is there instead"),
    ):
        answer = http.post("/v1/news/rank", json=body | more)
        assert answer.status_code == 422 and told in answer.json()["detail"], answer.text


def test_bad_wishes_are_refused_and_change_nothing(
    http: TestClient, requests: list[Request]
) -> None:
    reader = requests[0].user_id
    whole = card(http, reader)
    for body, told in (
        ({"hidden": ["Q-none"]}, "'Q-none' is no entity of this model"),
        ({"hidden": "Q1"}, "hidden"),
        ({"hidden": [], "hiden": []}, "hiden"),
        ({"hidden": [""]}, "hidden.0"),
    ):
        answer = http.put(f"/v1/personas/{reader}", json=body)
        assert answer.status_code == 422, answer.text
        assert told in answer.json()["detail"]
    plain = http.put(
        f"/v1/personas/{reader}", content=b"{}", headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 415
    assert http.post(f"/v1/personas/{reader}", json={}).status_code in (404, 405)
    assert card(http, reader) == whole
    assert http.get(f"/v1/personas/{'x' * 300}").status_code == 422
    unknown = card(http, "who/is%20this")
    assert (unknown.card.user, unknown.card.n_clicks, unknown.card.fallback) == (
        "who/is this", 0, True,
    )  # fmt: skip


def test_without_the_store_nobody_is_ranked(root: Path, requests: list[Request]) -> None:
    class Gone:
        async def read(self, reader: str) -> Wish:
            raise OSError("the disk is gone")

    gateway = Gateway(config(root, root / "never.db"), personas=Handle(Gone()))
    with TestClient(gateway.__serve_build_asgi_app__(), raise_server_exceptions=False) as http:
        body = requests[0].model_dump(mode="json", exclude_defaults=True)
        assert http.post("/v1/news/rank", json=body).status_code == 503
        assert http.get("/v1/personas/u1").status_code == 503


def test_the_operator_suppresses_entities_and_types(
    root: Path, requests: list[Request], tmp_path: Path
) -> None:
    store = tmp_path / "wishes.db"
    kinds = set(load_run(root / "run").model.table.types)
    gone = sorted(kinds)[0]
    given = config(root, store, suppress_types=[gone])
    gateway = Gateway(given, personas=Handle(PersonaStore(store)))
    with TestClient(gateway.__serve_build_asgi_app__(), raise_server_exceptions=False) as http:
        for request in requests:
            shown = card(http, request.user_id).card.entities
            assert shown
            assert gone not in {entity.type for entity in shown}
            for item in rank(http, request, explain=True).items:
                assert gone not in {part.type for part in item.persona.entities}
    for option, value in (("suppress", "Qx"), ("suppress_types", "Personn")):
        with pytest.raises(ArtifactError, match=rf"models.personas.{option}: '{value}'"):
            check_runs(config(root, store, **{option: [value]}))


def test_personas_need_a_ranker_that_has_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither without personas, nor with some that cannot be told in cards.
    for name, over, told in (
        ("latent", "model.user=latent", "has no personas; train news/perconet"),
        ("learned", "model.persona.prominence=learned", "cannot be kept click by click"),
        ("popular", "preset=X2", "cannot be kept click by click"),
    ):
        paper.train_run(root / "data", tmp_path / name, "train.epochs=1", over)
        models = {"news": {"run": tmp_path / name}, "personas": {"store": tmp_path / "s.db"}}
        with pytest.raises(ArtifactError, match=told):
            check_runs(ServeConfig.model_validate({"models": models}))
    with pytest.raises(ValueError, match="only a news model has personas"):
        ServeConfig.model_validate({"models": {"ctr": {"run": "R"}, "personas": {"store": "S"}}})


def test_the_book_keeps_what_it_has_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "wishes.db"
    book = PersonaBook(path)
    assert book.read("a") == Wish()
    assert book.hide("a", ("Q1", "Q2")) == Wish(hidden=("Q1", "Q2"))
    assert book.forget("b", 77) == Wish(since=77)
    assert book.hide("b", ("Q3",)) == Wish(hidden=("Q3",), since=77)
    # Another process sees it without the first having been closed.
    assert PersonaBook(path).read("b") == Wish(hidden=("Q3",), since=77)
    assert PersonaBook(path).forget("b", 99) == Wish(since=99)
    assert PersonaBook(path).forget("b", 50) == Wish(since=99)  # a clock that was set back
    assert json.loads(
        sqlite3.connect(path).execute("SELECT hidden FROM wishes WHERE reader='a'").fetchone()[0]
    ) == ["Q1", "Q2"]
    for n in range(KEPT + 5):
        book.click("c", f"n{n % 7}", n)
    clicks = PersonaBook(path).read("c").clicks
    assert len(clicks) == KEPT and clicks[0] == ("n5", 5) and clicks[-1][1] == KEPT + 4
    assert book.forget("c", 500) == Wish(since=500)
    assert book.click("c", "n1", 499) == Wish(since=500)  # told late, of before
    assert book.click("c", "n1", 501).clicks == (("n1", 501),)
    (tmp_path / "text.db").write_text("no data base, but long enough to be read as one" * 20)
    with pytest.raises(ArtifactError, match=r"text\.db: file is not a database"):
        PersonaBook(tmp_path / "text.db")


def test_old_clicks_leave_the_persona_where_retention_is_limited(
    root: Path, requests: list[Request], tmp_path: Path
) -> None:
    over = ["train.epochs=1", "model.persona.retention_days=2"]
    paper.train_run(root / "data", tmp_path / "kept", *over)
    short, long = Predictor.load(tmp_path / "kept"), Predictor.load(root / "run")
    model = short.model
    assert isinstance(model, Perconet)
    histories, ids = short.histories, short.run.catalogue.item_ids
    cards = Cards(model.options.persona, model.table, "m", ids, histories)
    for request in requests:
        row = int(histories.lookup([request.user_id])[0])
        start, end = histories.start[row], histories.start[row + 1]
        events = list(zip(histories.item[start:end], histories.ts[start:end], strict=True))

        def young(before: int, events: list[Any] = events) -> set[str]:
            oldest = before - 2 * paper.DAY
            return {ids[int(n) - 2].as_py() for n, ts in events if oldest <= ts <= before}

        shown = cards.of(request.user_id, row).entities
        assert {c for e in shown for c in e.clicks} <= young(int(histories.ts[end - 1]))
        # Seen from a day later, a day less is left.
        later = int(histories.ts[end - 1]) + paper.DAY
        aged = cards.of(request.user_id, row, now=later).entities
        assert {c for e in aged for c in e.clicks} <= young(later)
        part = short.explain_persona([request])[0][0]
        assert {c for e in part.entities for c in e.clicks} <= young(request.ts)
        older = {c for e in long.explain_persona([request])[0][0].entities for c in e.clicks}
        assert older - young(request.ts)


def test_without_a_time_a_request_is_of_now_where_retention_is_limited(
    root: Path, requests: list[Request], tmp_path: Path
) -> None:
    over = ["train.epochs=1", "model.persona.retention_days=2", "model.user=persona"]
    paper.train_run(root / "data", tmp_path / "run", *over)
    models = {"news": {"run": tmp_path / "run"}}
    gateway = Gateway(ServeConfig.model_validate({"models": models, "fused": True}))
    with TestClient(gateway.__serve_build_asgi_app__(), raise_server_exceptions=False) as http:
        asked = requests[0].model_copy(update={"ts": None})
        # All clicks are of 1970: nothing is left of them.
        for item in rank(http, asked, explain=True).items:
            assert item.persona is not None and item.persona.entities == ()
        assert any(item.persona.entities for item in rank(http, requests[0], explain=True).items)


def test_suppressed_entities_never_reach_the_model(root: Path, tmp_path: Path) -> None:
    table = load_run(root / "run").model.table
    over = ["train.epochs=1", f"model.persona.suppress=[{table.ids[0]}]"]
    paper.train_run(root / "data", tmp_path / "run", *over)
    assert load_run(tmp_path / "run").model.table.ids == table.ids[1:]
