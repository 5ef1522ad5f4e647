"""Recipes: every shipped config resolves, faults are named, a run trains, resumes and scores."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from raysys.artifacts.predictor import Predictor
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.mapping import LocalMapper
from raysys.data.prepared import prepare
from raysys.data.world import WorldConfig, make_world
from raysys.errors import ArtifactError, ConfigError, DataError, ResumeError
from raysys.options import resolve
from raysys.recipes.evaluate import evaluate
from raysys.recipes.ranker import run
from raysys.recipes.registry import MODELS, RECIPES, recipe_of

CONFIGS = sorted((Path(__file__).parents[2] / "raysys" / "configs").rglob("*.yaml"))
TINY = [
    "model.embedding_dim=4", "model.attention_hidden=[8]", "model.hidden=[16]",
    "model.history_length=20", "batch_size=16", "train.epochs=2", "train.early_stopping=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipes") / "world"
    make_world(WorldConfig(kind="food", users=60, days=20, seed=3), out, LocalMapper())
    return out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_resolves_and_starts_with_its_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# raysys train ")
    recipe = first.split()[3]
    assert f"raysys/configs/{path.parent.name}/{path.name}" in first
    config = resolve(recipe_of(recipe), path, (), {"data": "D"})
    assert config.recipe == recipe


def test_every_recipe_has_a_model_of_its_config() -> None:
    assert set(RECIPES) == set(MODELS)
    for name, kind in RECIPES.items():
        assert kind.model_fields["model"].annotation is MODELS[name].Config


def test_unknown_recipe_and_key_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean ctr/din"):
        recipe_of("ctr/dinn")
    with pytest.raises(ConfigError, match=r"unknown key train\.epoch; did you mean train\.epochs"):
        resolve(recipe_of("ctr/din"), None, ["train.epoch=3"], {"data": "D"})


def test_one_override_keeps_the_other_defaults_of_the_recipe() -> None:
    kind = recipe_of("news/nrms")
    config = resolve(kind, None, ["train.lr=1e-2"], {"data": "D"})
    assert config.train.lr == 0.01
    assert config.train.early_stopping == kind.model_fields["train"].default.early_stopping


def test_the_road_trains_resumes_evaluates_and_refuses_damage(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = resolve(recipe_of("ctr/din"), None, TINY, {"data": str(world)})
    first = run(config, out, show_progress=False)
    assert first.ran
    again = run(config, out, show_progress=False)
    assert not again.ran
    assert again.result == first.result
    other = resolve(recipe_of("ctr/din"), None, [*TINY, "train.lr=0.5"], {"data": str(world)})
    with pytest.raises(ResumeError, match="lr"):
        run(other, out, show_progress=False)

    result = json.loads(evaluate(out, world, replicates=100).model_dump_json())
    for key in ("model", "baselines", "groups", "data_card_id", "intervals", "oracle_gap"):
        assert result[key], key
    assert {"random", "popularity", "recency", "gbdt_lambdarank"} <= set(result["baselines"])

    predictor = Predictor.load(out)
    assert predictor.model_id == first.result["model_id"]
    weights = out / "model.safetensors"
    body = bytearray(weights.read_bytes())
    body[len(body) // 2] ^= 1
    weights.write_bytes(body)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: damaged.*same train command"):
        Predictor.load(out)
    assert run(config, out, show_progress=False).ran
    assert Predictor.load(out).model_id == first.result["model_id"]
    (out / "checksums.json").unlink()
    with pytest.raises(ArtifactError, match="run the same train command again to finish it"):
        Predictor.load(out)
    mended = run(config, out, show_progress=False)
    assert (mended.ran, mended.result) == (True, first.result)
    assert Predictor.load(out).model_id == first.result["model_id"]


def test_same_seed_same_weights_and_other_seed_others(world: Path, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        over = [*TINY, f"train.seed={seed}", "train.max_steps=5"]
        config = resolve(recipe_of("ctr/din"), None, over, {"data": str(world)})
        outcome = run(config, tmp_path / name, show_progress=False)
        digests.append(outcome.result["weights_sha256"])
    assert digests[0] == digests[1] != digests[2]


def without(world: Path, out: Path, *labels: str) -> Path:
    """The world with these labels empty everywhere."""
    source = Dataset(world)
    with DatasetWriter(out, contexts=dict(source.manifest.contexts)) as writer:
        for table in ("items", "events", "contexts"):
            writer.write(table, source.table(table))
        rows = source.table("impressions")
        empty = pa.array([[]] * len(rows), pa.list_(pa.string()))
        for name in labels:
            rows = rows.set_column(rows.column_names.index(name), name, empty)
        writer.write("impressions", rows)
        writer.commit(source.card, history_behaviours=source.manifest.history_behaviours)
    return out


def test_orders_are_learned_only_from_orders(world: Path, tmp_path: Path) -> None:
    data = {"data": str(without(world, tmp_path / "clicks", "orders"))}
    config = resolve(recipe_of("ctr/din"), None, [*TINY, "train.epochs=1"], data)
    run(config, tmp_path / "run", show_progress=False)
    model = Predictor.load(tmp_path / "run").run.model
    assert not model.orders
    given = resolve(recipe_of("ctr/din"), None, [*TINY, "model.orders=true"], data)
    with pytest.raises(ConfigError, match=r"model\.orders=true.* holds no order"):
        run(given, tmp_path / "refused", show_progress=False)
    assert not (tmp_path / "refused").exists()


def test_constant_labels_are_refused_and_leave_nothing(world: Path, tmp_path: Path) -> None:
    source = Dataset(world)
    bad = without(world, tmp_path / "constant", "clicks", "orders")
    config = resolve(recipe_of("ctr/din"), None, TINY, {"data": str(bad)})
    with pytest.raises(DataError, match="constant labels"):
        run(config, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()
    assert len(prepare(Dataset(bad)).item_ids) == source.manifest.tables["items"].rows
