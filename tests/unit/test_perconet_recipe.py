"""`news/perconet` and its rivals by name: options, faults of data, cards."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import newspaper as paper
import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from raysys.artifacts.predictor import Predictor
from raysys.cli.build import app
from raysys.data.batch import Collator
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.prepared import prepare
from raysys.data.requests import Request
from raysys.data.sampling import pointers_of
from raysys.errors import ConfigError, DataError
from raysys.news.entities import EntityOptions, EntityTable, fit_entities
from raysys.options import resolve
from raysys.perconet.config import PersonaOptions
from raysys.perconet.fit import fit_placebo, training_clicks
from raysys.perconet.persona import Prominence
from raysys.perconet.presets import PRESETS
from raysys.recipes.registry import recipe_of, run
from raysys.tracking.figures import LineFigure, TableFigure, read_figures


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paper.write(tmp_path_factory.mktemp("news") / "data")


def recipe(*over: str):
    return resolve(recipe_of("news/perconet"), None, over, {"data": "D"})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_and_reads_the_vectors_it_needs(name: str) -> None:
    config = recipe(f"preset={name}")
    again = type(config).model_validate(config.model_dump())
    assert again == config
    assert config.features.vectors == config.model.fields
    assert config.features.items == config.features.contexts == ()


def test_a_preset_is_laid_upon_the_options() -> None:
    config = recipe("preset=P2", "model.contrast.weight=0.3", "model.width=64")
    assert (config.model.user, config.model.contrast.weight) == ("persona", 0)
    assert (config.model.width, config.model.persona.size) == (64, 20)
    assert recipe("preset=V5", "model.contrast.weight=0.3").model.contrast.weight == 0.3
    assert recipe("preset=P1").model.persona.prominence == "even"
    assert recipe("features.vectors=[abstract, title]").features.vectors == ("abstract", "title")


@pytest.mark.parametrize(
    ("over", "told"),
    [
        (["preset=P9"], "P9"),
        (["model.persona.sise=3"], "sise"),
        (["model.width=10", "model.heads=3"], "not divisible"),
        (["model.fusion=concat_text"], "no two views"),
        (["model.dropout=0", "model.contrast.views=dropout"], "compares nothing"),
        (["model.history_length=20"], "more than history_length"),
    ],
)
def test_impossible_options_are_named(over: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        recipe(*over)


def test_entities_are_those_of_the_fields_and_types_asked_for(data: Path) -> None:
    prepared = prepare(Dataset(data))
    rows = {row["item_id"]: row["entities"] for row in prepared.dataset.table("items").to_pylist()}
    for options in (
        EntityOptions(),
        EntityOptions(fields=("title",)),
        EntityOptions(types=("O",)),
        EntityOptions(per_news=1),
    ):
        table = fit_entities(prepared, options)
        for item, row in zip(prepared.item_ids.to_pylist(), table.news[2:], strict=True):
            wanted = [
                e["id"]
                for e in rows[item]
                if e["field"] in options.fields and e["type"] in (options.types or ("P", "O"))
            ][: options.per_news]
            assert [table.ids[e - 1] for e in row if e] == wanted
        assert table.labels[0] == f"person{table.ids[0][1:]}"


def test_an_entity_of_title_and_abstract_counts_once_with_its_best_confidence(
    tmp_path: Path,
) -> None:
    folder = paper.write(tmp_path / "d")
    twice = [
        dict(id="Q1", label="a", type="P", confidence=0.4, field="abstract"),
        dict(id="Q1", label="a", type="P", confidence=0.7, field="title"),
        dict(id=None, label="x", type="P", confidence=1.0, field="title"),
        dict(id="Q2", label="b", type="O", confidence=None, field=None),
    ]
    changed = rewritten(
        folder, tmp_path / "e", lambda rows: [{**r, "entities": twice} for r in rows]
    )
    table = fit_entities(prepare(Dataset(changed)), EntityOptions())
    assert [table.ids[e - 1] for e in table.news[2] if e] == ["Q1", "Q2"]
    assert table.confidence[2].tolist() == pytest.approx([0.7, 1.0])
    assert table.idf[1] == pytest.approx(1e-6)  # in every news


def rewritten(folder: Path, out: Path, change, entities=None) -> Path:
    source = Dataset(folder)
    with DatasetWriter(out, contexts={}) as writer:
        for name in source.manifest.tables:
            for part in source.parts(name):
                if name == "items":
                    rows = change(part.to_pylist())
                    part = pa.Table.from_pylist(rows, writer.schemas["items"])
                if name == "entities" and entities is not None:
                    part = pa.Table.from_pylist(entities, writer.schemas["entities"])
                writer.write(name, part)
        writer.commit(source.card, history_behaviours=("click",))
    return out


def test_faults_of_the_data_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="types: Z occurs nowhere; the data set has O, P"):
        fit_entities(prepare(Dataset(data)), EntityOptions(types=("Z",)))
    bare = rewritten(data, tmp_path / "bare", lambda rows: [{**r, "entities": []} for r in rows])
    with pytest.raises(ConfigError, match="no news names an entity"):
        run(resolve(recipe_of("news/perconet"), None, [], {"data": str(bare)}), tmp_path / "r")
    assert not (tmp_path / "r").exists()
    uneven = rewritten(
        data, tmp_path / "uneven", lambda rows: rows,
        [dict(id="Q1", vector=[1.0, 2.0]), dict(id="Q2", vector=[1.0])],
    )  # fmt: skip
    with pytest.raises(DataError, match=r"vectors of 1, 2 numbers"):
        fit_entities(prepare(Dataset(uneven)), EntityOptions())


def test_a_latent_user_needs_no_entities(data: Path, tmp_path: Path) -> None:
    bare = rewritten(data, tmp_path / "bare", lambda rows: [{**r, "entities": []} for r in rows])
    paper.train_run(bare, tmp_path / "r", "preset=P0", "train.max_steps=2")
    requests = [Request(request_id="a", user_id="u01", ts=9 * paper.DAY, candidates=("n1", "n2"))]
    assert len(Predictor.load(tmp_path / "r").score(requests)) == 2
    found = CliRunner().invoke(app, ["personas", str(tmp_path / "r")])
    assert found.exit_code != 0


@pytest.mark.parametrize("clicks", [4, 10, 50])
def test_a_shuffled_persona_is_another_users(data: Path, clicks: int) -> None:
    """On every training request, also in bins of one and of longer histories than are dealt."""
    prepared = prepare(Dataset(data))
    table = fit_entities(prepared, PersonaOptions())
    options = PersonaOptions(clicks=clicks, placebo="shuffled")
    dealt = fit_placebo(prepared, table, options)
    assert dealt is not None
    made = Prominence(options)
    made.bind(table, dealt)
    log = prepared.impressions
    train = log.of("train")
    collate = Collator(prepared.histories, prepared.codec, 50)
    batch = collate(pointers_of(prepared, train))
    some = batch.history_mask.any(1)
    others, real = made._others(batch.history_items, batch.history_mask, batch.owner)
    assert torch.equal(real.any(1), some)
    whose = {
        tuple(row): owner for row, owner in zip(dealt.drawn.tolist(), dealt.owner, strict=True)
    }
    assert len(whose) == len(dealt.drawn)
    found = np.array([whose[tuple(row)] for row in others[some].tolist()])
    assert (found != batch.owner[some].numpy()).all()
    # About as many clicks, where anybody has.
    length = batch.history_mask.sum(1).clamp(max=clicks)[some].numpy()
    lengths = (dealt.drawn != 0).sum(1)
    near = np.isin(np.floor(np.log2(length)), np.floor(np.log2(lengths)))
    alike = np.floor(np.log2(real.sum(1)[some].numpy())) == np.floor(np.log2(length))
    assert alike[near].mean() > 0.9


def test_everybodys_persona_is_that_of_training_clicks(data: Path) -> None:
    prepared = prepare(Dataset(data))
    table = fit_entities(prepared, PersonaOptions())
    options = PersonaOptions(clicks=10, size=4, placebo="popular")
    everybody = fit_placebo(prepared, table, options)
    assert everybody is not None
    assert len(everybody.popular) == 4
    assert float(everybody.popular_weight.sum()) == pytest.approx(1)
    rows, owner = training_clicks(prepared, 10)
    assert len(rows) == len(owner) and (rows[:, 0] > 0).all()
    assert rows.max() < 2 + paper.NEWS - paper.LATE


def test_tables_come_back_from_disk(tmp_path: Path) -> None:
    table = paper.entity_table()
    table.save(tmp_path)
    again = EntityTable.load(tmp_path)
    assert (again.ids, again.labels, again.types) == (table.ids, table.labels, table.types)
    for name in ("idf", "vectors", "news", "confidence"):
        assert np.array_equal(getattr(again, name), getattr(table, name))


@pytest.mark.parametrize("fields", [True, False])
@pytest.mark.parametrize("recipe_name", ["news/naml", "news/lstur", "news/kred"])
def test_rivals_train_from_a_data_set_to_scores(
    data: Path, tmp_path: Path, recipe_name: str, fields: bool
) -> None:
    over = ["model.width=8", "batch_size=32", "train.max_steps=3", "train.early_stopping=null"]
    if recipe_name != "news/kred":
        over += ["model.query=4"]
        if fields:
            over += ['features.items=[{encoding: vocabulary, source: "category:1"}]']
    config = resolve(recipe_of(recipe_name), None, over, {"data": str(data)})
    run(config, tmp_path / "r", show_progress=False)
    requests = [
        Request(request_id="a", user_id="u01", ts=9 * paper.DAY, candidates=("n1", "n2", "n9"))
    ]
    table = Predictor.load(tmp_path / "r").score(requests)
    assert np.isfinite(table["score"].to_numpy()).all()
    assert len(set(table["score"].to_pylist())) == 3


def test_cards_say_what_the_ranker_reads(data: Path, tmp_path: Path) -> None:
    paper.train_run(data, tmp_path / "r", "train.max_steps=3")
    found = CliRunner().invoke(app, ["personas", str(tmp_path / "r"), "--json"])
    assert found.exit_code == 0, found.output
    cards = [
        json.loads(line)
        for line in (tmp_path / "r/indexes/personas/cards.jsonl").read_text().splitlines()
    ]
    predictor = Predictor.load(tmp_path / "r")
    assert len(cards) == len(predictor.histories.users)
    explained = 0
    for card in cards:
        request = Request(
            request_id="a", user_id=card["user"], ts=99 * paper.DAY, candidates=("n1",)
        )
        parts = predictor.explain_persona([request])[0]
        assert parts is not None
        told = {e.id: (e.weight, e.clicks) for e in parts[0].entities}
        assert {e["id"]: pytest.approx(e["weight"], abs=1e-5) for e in card["entities"]} == {
            name: weight for name, (weight, _) in told.items()
        }
        for entity in card["entities"]:
            assert tuple(entity["clicks"]) == told[entity["id"]][1]
            assert entity["last"] == entity["clicks"][0]
        assert card["fallback"] == (not told)
        assert card["schema"] == "persona/1"
        explained += len(told)
    assert explained > 50
    assert CliRunner().invoke(app, ["personas", str(tmp_path / "r"), "--user", "nobody"]).exit_code
    one = CliRunner().invoke(
        app,
        ["personas", str(tmp_path / "r"), "--user", "u01", "--out", str(tmp_path / "c")],
    )
    assert one.exit_code == 0
    assert len((tmp_path / "c").read_text().splitlines()) == 1


def test_the_entity_table_learns_after_its_frozen_steps() -> None:
    table = paper.entity_table()
    model = paper.model(persona={"tuned": True}, contrast={"weight": 0.0})
    model.vectors.frozen_steps = 2
    batch = paper.batch(0, empty=False)
    model.train()
    grads = []
    for _ in range(4):
        model.zero_grad()
        model.loss(batch)[0].backward()
        grad = model.vectors.shipped.weight.grad
        grads.append(0.0 if grad is None else float(grad.abs().sum()))
    assert grads[:2] == [0.0, 0.0]
    assert min(grads[2:]) > 0
    assert torch.equal(model.vectors.shipped.weight.detach(), torch.from_numpy(table.vectors))
    fixed = paper.model(persona={"tuned": False})
    assert not fixed.vectors.shipped.weight.requires_grad
    other = replace(table, vectors=table.vectors * 2)
    fixed.bind_entities(other)
    assert torch.equal(fixed.vectors.shipped.weight, torch.from_numpy(other.vectors))


@pytest.mark.slow
def test_training_draws_cards_contributions_and_faithfulness(data: Path, tmp_path: Path) -> None:
    paper.train_run(data, tmp_path / "run", "train.epochs=4")
    figures = read_figures(tmp_path / "run")
    cards, parts, curve = (
        figures[f"persona-{name}"] for name in ("cards", "contributions", "faithfulness")
    )
    assert isinstance(cards, TableFigure)
    assert {row[2] for row in cards.rows} <= {f"person{n}" for n in range(paper.ENTITIES)}
    assert isinstance(parts, TableFigure)
    starts = [n for n, row in enumerate(parts.rows) if row[2] == "score"]
    for begin, end in pairwise([*starts, len(parts.rows)]):
        told = sum(row[3] for row in parts.rows[begin + 1 : end])
        assert told == pytest.approx(parts.rows[begin][3], abs=0.01)
    assert isinstance(curve, LineFigure)
    # Readers click for an entity, so its clicks matter more than others.
    assert curve.series[0].x[0] == 1.0 and curve.series[0].low[0] > 0
    paper.train_run(data, tmp_path / "latent", "train.epochs=1", "model.user=latent")
    assert not read_figures(tmp_path / "latent")
    paper.train_run(data, tmp_path / "even", "train.epochs=1", "preset=P1")
    assert "persona-cards" not in read_figures(tmp_path / "even")
    private = paper.train_run(data, tmp_path / "p", "train.epochs=2", "with_histories=false")
    assert private
    assert set(read_figures(tmp_path / "p")) == {"persona-faithfulness"}
    paper.train_run(data, tmp_path / "x1", "train.epochs=1", "preset=X1")
    assert set(read_figures(tmp_path / "x1")) == {"persona-contributions"}
