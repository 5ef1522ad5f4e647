"""`raysys build cofars-lists`: nightly lists, later events, refusals; runs that use them."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import serve_fixtures
import torch
from cofars_planted import Planted, histories
from cofars_runs import inline, small_world, tiny, valid_requests

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import load_run
from raysys.cli.main import run as command
from raysys.cofars.lists import Lists
from raysys.cofars.ranker import CofarsDIN
from raysys.cofars.stored import grown, made_of, write_lists
from raysys.data.columns import ColumnFolder
from raysys.data.context_index import ContextIndex
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import ContextCodec, ContextFeature
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.histories import Histories
from raysys.data.prepared import prepare
from raysys.errors import ArtifactError, ConfigError, DataError
from raysys.recipes.cofars_lists import build_lists, check_contexts
from raysys.recipes.registry import run
from raysys.tracking.figures import read_figures


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build") / "world"
    small_world(out)
    return out


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build") / "run"
    run(tiny(world), out, show_progress=False)
    return out


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def changed(
    world: Path,
    out: Path,
    declared: Callable[[dict[str, str]], dict[str, str]] = dict,
    **tables: Callable[[pa.Table], pa.Table],
) -> Path:
    """A copy of the world with other tables."""
    source = Dataset(world)
    manifest = source.manifest
    with DatasetWriter(out, contexts=declared(dict(manifest.contexts))) as writer:
        for name in manifest.tables:
            kept = source.table(name)
            writer.write(name, tables[name](kept) if name in tables else kept)
        writer.commit(manifest.data_card, history_behaviours=manifest.history_behaviours)
    return out


def yesterday(world: Path, out: Path) -> Path:
    """The world without the later half of its events."""
    cut = int(np.median(Dataset(world).table("events")["ts"].to_numpy()))
    before = lambda table: table.filter(pc.less(table["ts"], cut))  # noqa: E731
    return changed(world, out, events=before, impressions=before)


def arrays(folder: Path) -> dict[str, list[object]]:
    names = ("pair_begin", "key", "entry_begin", "entry", "bits", "users")
    return {name: ColumnFolder(folder).read(name).tolist() for name in names}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def scores(predictor: Predictor, requests: list) -> np.ndarray:
    return predictor.score(requests)["score"].to_numpy()


def test_built_lists_are_those_of_training(world: Path, own: Path, tmp_path: Path) -> None:
    folder = own / "indexes" / "cofars"
    first = contents(folder)
    shutil.rmtree(folder)
    report = build_lists(own, world)
    assert contents(folder) == first
    assert report.out == str(folder) and report.served and report.added is None
    elsewhere = build_lists(own, world, tmp_path / "lists")
    assert contents(tmp_path / "lists") == first
    assert elsewhere.out == str(tmp_path / "lists")
    stored = prepare(Dataset(world)).histories
    assert report.events == len(stored.item) and report.users == len(stored.users)
    assert report.bytes == sum(map(len, first.values()))
    pairs = {
        (user, *stored.context[row].tolist())
        for user in range(len(stored.users))
        for row in range(*stored.start[user : user + 2])
    }
    assert report.contexts == len(pairs)
    bits = np.unpackbits(ColumnFolder(folder).read("bits"), axis=1, count=report.prototypes)
    assert report.open == pytest.approx(bits.mean())


def test_lists_grow_by_later_events(world: Path, own: Path, tmp_path: Path) -> None:
    folder, old = own / "indexes" / "cofars", yesterday(world, tmp_path / "old")
    whole = arrays(folder)
    less = build_lists(own, old)
    assert not less.served
    steps = ColumnFolder(folder).read("moves")[:, 2].tolist()
    more = build_lists(own, world, append=True)
    assert more.added == more.events - less.events > 0 and more.served
    assert arrays(folder) == whole
    # The graph is as old as the last whole build.
    assert ColumnFolder(folder).read("moves")[:, 2].tolist() == steps
    assert build_lists(own, world, append=True).added == 0
    assert arrays(folder) == whole


@pytest.mark.slow
def test_grown_histories_are_served_with_and_without_their_lists(
    world: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = valid_requests(world)
    grown_since = prepare(Dataset(world)).histories
    wanted = scores(Predictor.load(own), requests)
    build_lists(own, yesterday(world, tmp_path / "old"))
    # The lists of yesterday are not taken for those of today, from a snapshot or a store.
    assert (scores(Predictor.load(own), requests) == wanted).all()
    assert (scores(Predictor.load(own, histories=grown_since), requests) == wanted).all()
    sent = scores(Predictor.load(own), inline(world, requests))
    np.testing.assert_allclose(sent, wanted, atol=1e-6)
    build_lists(own, world, append=True)

    def refuse(self: CofarsDIN, histories: Histories) -> None:
        raise AssertionError("built although there are lists")

    with monkeypatch.context() as patch:
        patch.setattr(CofarsDIN, "lists", refuse)
        assert np.isfinite(scores(Predictor.load(own), requests)).all()
        with pytest.raises(AssertionError, match="built although"):
            scores(Predictor.load(own), inline(world, requests))
    np.testing.assert_allclose(scores(Predictor.load(own), inline(world, requests)), sent)
    build_lists(own, world)
    assert (scores(Predictor.load(own), requests) == wanted).all()


def test_an_explanation_is_the_same_for_a_history_sent_along(world: Path, trained: Path) -> None:
    predictor = Predictor.load(trained)
    requests = valid_requests(world)
    stored = predictor.explain_retrieval(requests)
    mixed = [*inline(world, requests[:15]), *requests[15:]]
    sent = predictor.explain_retrieval(mixed)
    for one, two, request in zip(stored, sent, requests, strict=True):
        assert one is not None and two is not None
        assert {name: value or "(missing)" for name, value in request.context.items()
                if name in one.target} == one.target  # fmt: skip
        assert [p.prototype for p in one.prototypes] == [p.prototype for p in two.prototypes]
        for a, b in zip(one.prototypes, two.prototypes, strict=True):
            assert a.beta == pytest.approx(b.beta, abs=1e-6)
        assert (one.contexts, one.back_off) == (two.contexts, two.back_off)


def test_models_without_reasons_give_none(tmp_path: Path) -> None:
    predictor = Predictor.load(serve_fixtures.ctr_run(tmp_path))
    assert predictor.explain_retrieval(serve_fixtures.requests(6)) == [None] * 6
    assert predictor.explain_retrieval([]) == []


def test_stale_lists_are_replaced_and_mixtures_refused(world: Path, own: Path) -> None:
    version = own / "indexes" / "cofars" / "lists.json"
    whole = version.read_text()
    made = json.loads(whole)["model"]
    version.write_text(whole.replace(made, "0123456789ab"))
    with pytest.raises(ArtifactError, match=rf"0123456789ab.*{made}; build them with"):
        Predictor.load(own)
    with pytest.raises(ArtifactError, match=rf"0123456789ab.*{made}"):
        build_lists(own, world, append=True)
    assert build_lists(own, world).selector == made
    assert version.read_text() == whole
    Predictor.load(own)


def test_a_build_that_dies_leaves_the_lists_as_they_were(
    world: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own / "indexes" / "cofars"
    before = contents(folder)
    save = ContextIndex.save

    def dying(self: ContextIndex, where: Path) -> None:
        save(self, where)
        raise RuntimeError("killed")

    old = yesterday(world, tmp_path / "old")
    monkeypatch.setattr(ContextIndex, "save", dying)
    with pytest.raises(RuntimeError, match="killed"):
        build_lists(own, old)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["cofars"]


def test_lists_that_stood_aside_when_a_build_was_killed_serve_on(
    world: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own / "indexes" / "cofars"
    before, wanted = contents(folder), scores(Predictor.load(own), valid_requests(world))
    # Killed when the old lists had been moved away, and the new ones were not there yet.
    folder.rename(folder.with_name(".cofars.old"))

    def refuse(self: CofarsDIN, histories: Histories) -> None:
        raise AssertionError("built although there are lists")

    with monkeypatch.context() as patch:
        patch.setattr(CofarsDIN, "lists", refuse)
        assert (scores(Predictor.load(own), valid_requests(world)) == wanted).all()
    assert build_lists(own, world, append=True).added == 0
    assert [path.name for path in folder.parent.iterdir()] == ["cofars"]
    assert contents(folder) == before


def test_incomplete_lists_are_named_and_mended(world: Path, own: Path) -> None:
    folder = own / "indexes" / "cofars"
    (folder / "entry.arrow").write_bytes((folder / "entry.arrow").read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"cofars/entry\.arrow: missing or damaged; build"):
        Predictor.load(own)
    (folder / "entry.arrow").unlink()
    with pytest.raises(ArtifactError, match=r"cofars/entry\.arrow: missing or damaged; build"):
        Predictor.load(own)
    (folder / "histories").unlink()
    build_lists(own, world)
    Predictor.load(own)


def test_what_does_not_fit_is_refused(world: Path, own: Path, tmp_path: Path) -> None:
    before = contents(own / "indexes" / "cofars")
    # A run of another recipe; no run; a folder of something else; no data set.
    with pytest.raises(ArtifactError, match=r"a run of ctr/din; only ctr/cofars has lists"):
        build_lists(serve_fixtures.ctr_run(tmp_path / "din"), world)
    with pytest.raises(ArtifactError, match="is a data set folder"):
        build_lists(world, world)
    with pytest.raises(ConfigError, match="holds no CoFARS lists; choose another --out"):
        build_lists(own, world, world)
    with pytest.raises(DataError, match="no data set folder"):
        build_lists(own, own)
    with pytest.raises(ArtifactError, match="holds no CoFARS lists; build them"):
        build_lists(own, world, tmp_path / "nothing", append=True)
    assert not (tmp_path / "nothing").exists()

    def only(*names: str) -> Callable[[pa.Table], pa.Table]:
        def change(table: pa.Table) -> pa.Table:
            rows = [{n: row[n] for n in names} for row in table["context"].to_pylist()]
            return table.set_column(
                table.schema.get_field_index("context"), "context", pa.array(rows)
            )

        return change

    kept = only("mealtime", "place", "weather")
    fewer = changed(
        world,
        tmp_path / "fewer",
        lambda names: {n: names[n] for n in ("mealtime", "place", "weather")},
        events=kept,
        impressions=kept,
        contexts=lambda table: table.filter(
            pc.is_in(table["name"], pa.array(["mealtime", "place", "weather"]))
        ),
    )
    with pytest.raises(DataError, match=r"fewer: context feature day is missing; .*mealtime"):
        build_lists(own, fewer)
    assert contents(own / "indexes" / "cofars") == before


def test_contexts_of_another_make_are_named() -> None:
    def codec(*features: ContextFeature) -> ContextCodec:
        return ContextCodec(features=features)

    meal = ContextFeature(name="meal", kind="categorical", values=("lunch", "dinner"))
    heat = ContextFeature(name="heat", kind="numeric", edges=(0.0, 9.0))
    table = ContextTable(codec=codec(meal, heat))
    more = ContextFeature(name="meal", kind="categorical", values=("brunch",))
    for fine in (codec(meal, heat), codec(heat, more)):
        check_contexts(table, fine, Path("D"))
    for bad, words in (
        (codec(meal), r"D: context feature heat is missing; .* meal, heat, the data set has meal$"),
        (codec(), "has none"),
        (codec(heat, meal.model_copy(update={"kind": "numeric"})), "meal is numeric, the run was"),
        (codec(meal, heat.model_copy(update={"edges": (1.0,)})), "D: .*heat: the bucket edges"),
    ):
        with pytest.raises(DataError, match=words):
            check_contexts(table, bad, Path("D"))


def test_only_later_events_may_be_appended(world: Path, own: Path, tmp_path: Path) -> None:
    before = contents(own / "indexes" / "cofars")
    with pytest.raises(ArtifactError, match=r"build without --append"):
        build_lists(own, yesterday(world, tmp_path / "old"), append=True)
    (own / "indexes" / "cofars" / "users.arrow").unlink()
    with pytest.raises(ArtifactError, match=r"do not name their users; build without --append"):
        build_lists(own, world, append=True)
    del before["users.arrow"]
    assert contents(own / "indexes" / "cofars") == before


def test_users_may_come_but_neither_go_nor_change(tmp_path: Path) -> None:
    data = Planted.of(histories([9, 5, 12], 4))
    past, table = data.past, data.table
    selector = data.selector(init_std=1.0).eval()
    with torch.no_grad():
        seen = selector(data.reader(data.pointers([0, 1, 2], [9, 5, 12])))
        selector.edge_gate.calibrate(seen.similarity, 50.0)
    rows = np.array([2, -1, 0])

    def some(users: list[int], lengths: list[int]) -> Histories:
        chosen = np.concatenate(
            [past.start[u] + np.arange(n) for u, n in zip(users, lengths, strict=True)]
        )
        fields = {name: getattr(past, name)[chosen] for name in
                  ("item", "ts", "behaviour", "context")}  # fmt: skip
        start = np.concatenate([[0], np.cumsum(lengths)])
        return replace(past, users=past.users.take(pa.array(users)), start=start, **fields)

    def lists_of(part: Histories, users: np.ndarray) -> Lists:
        keys = table.keys(part.context)
        return Lists.build(selector, table, ContextIndex.build(part.start, keys), users, "m")

    # Users 2 and 0, in this order and with fewer events; user 1 comes later.
    old = some([2, 0], [7, 9])
    folder = tmp_path / "lists"
    write_lists(folder, lists_of(old, rows[[2, 0]]), old)
    assert made_of(folder, "m", old) and not made_of(folder, "m", past)
    found, added = grown(folder, selector, table, past, rows, "m")
    assert added == 26 - 16
    wanted = lists_of(past, rows)
    assert found.bits.tolist() == wanted.bits.tolist()
    for name in ("pair_begin", "key", "entry_begin", "entry"):
        assert getattr(found.index, name).tolist() == getattr(wanted.index, name).tolist()
    with pytest.raises(ArtifactError, match="1 of 2 users have no history any more"):
        grown(folder, selector, table, some([0, 1], [9, 5]), rows[:2], "m")
    other = past.context.copy()
    other[past.start[2]] = 2 + (other[past.start[2]] - 1) % 3
    with pytest.raises(ArtifactError, match="1 users have other events"):
        grown(folder, selector, table, replace(past, context=other), rows, "m")
    with pytest.raises(ArtifactError, match="1 users have other events"):
        grown(folder, selector, table, some([0, 1, 2], [9, 5, 6]), rows, "m")
    with pytest.raises(ArtifactError, match="lists of model m cannot serve model n"):
        grown(folder, selector, table, past, rows, "n")


def test_a_run_draws_its_selector(trained: Path) -> None:
    figures = read_figures(trained)
    assert {name: figure.kind for name, figure in figures.items()} == {
        "cofars-contexts": "heatmap",
        "cofars-prototypes": "heatmap",
        "cofars-graph": "graph",
    }


def test_the_verb(
    world: Path,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(*arguments: object) -> int:
        given = ["raysys", "build", "cofars-lists", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as ended:
            command()
        return int(ended.value.code or 0)

    assert call(own, "--data", world, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["out"] == str(own / "indexes" / "cofars")
    assert shown["model_id"] == load_run(own).config.model_id
    assert call(own, "--data", world) == 0
    assert str(own / "indexes" / "cofars") in capsys.readouterr().out
    assert call(world, "--data", world) == 2
    assert "error:" in capsys.readouterr().err
