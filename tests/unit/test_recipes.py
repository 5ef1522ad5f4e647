"""Recipes: every shipped config resolves, faults are named, a run trains, resumes and scores."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from raysys.artifacts.export import export_run
from raysys.artifacts.predictor import Predictor
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.mapping import LocalMapper
from raysys.data.prepared import prepare
from raysys.data.requests import Requests
from raysys.data.world import WorldConfig, make_world
from raysys.errors import ArtifactError, ConfigError, DataError, ResumeError
from raysys.options import resolve
from raysys.recipes.evaluate import evaluate
from raysys.recipes.ranker import RankerRecipe, train
from raysys.recipes.registry import MODELS, RECIPES, recipe_of, run
from raysys.training import CheckpointStore, InterruptedRunError, Session, World
from raysys.training.reporter import InProcessReporter
from raysys.training.rng import seed_everything

# Those of recipes; the others are of `raysys build`, and tested with what they build.
CONFIGS = sorted(
    path
    for family in {name.partition("/")[0] for name in RECIPES}
    for path in (Path(__file__).parents[2] / "raysys" / "configs" / family).rglob("*.yaml")
)
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
    rankers = {n: kind for n, kind in RECIPES.items() if issubclass(kind, RankerRecipe)}
    assert set(rankers) == set(MODELS)
    for name, kind in rankers.items():
        # What a recipe fits itself its model's options hold besides.
        assert issubclass(MODELS[name].Config, kind.model_fields["model"].annotation)


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


@pytest.mark.slow
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


def auc(scores: list[float], labels: list[bool]) -> float | None:
    """Share of (clicked, other) pairs in the right order; None where there is no pair."""
    ones = [s for s, label in zip(scores, labels, strict=True) if label]
    others = [s for s, label in zip(scores, labels, strict=True) if not label]
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ones for b in others]
    return sum(won) / len(won) if won else None


@pytest.mark.parametrize("kind", ["exact", "random", "sim-soft", "counted-js"])
def test_what_a_retriever_is_trained_on_it_is_also_asked_with(
    world: Path, tmp_path: Path, kind: str
) -> None:
    """Validation in training, from the columns of the data set, agrees with the scores of the
    run, from its own snapshot and vocabularies."""
    over = [*TINY, f"model.retriever.kind={kind}", "model.retriever.k=5", "train.max_steps=4"]
    if kind == "counted-js":
        over.append("model.retriever.attributes.fields=[{source: brand}]")
    config = resolve(recipe_of("ctr/din"), None, over, {"data": str(world)})
    outcome = run(config, tmp_path / "run", show_progress=False)
    dataset = Dataset(world)
    rows = [row for row in dataset.table("impressions").to_pylist() if row["split"] == "valid"]
    predictor = Predictor.load(tmp_path / "run")
    assert (predictor._collate.selector is not None) == (kind != "sim-soft")
    table = pa.Table.from_pylist(rows, schema=dataset.table("impressions").schema)
    asked = Requests.of_table(table, predictor.codec)
    scores = iter(predictor.score(asked)["score"].to_pylist())
    key = dict(impression="impression_id").get(dataset.card.group_key, "user_id")
    groups: dict[str, tuple[list[float], list[bool]]] = {}
    for row in rows:
        own = groups.setdefault(row[key], ([], []))
        for item in row["candidates"]:
            own[0].append(next(scores))
            own[1].append(item in row["clicks"])
    found = [value for value in (auc(*own) for own in groups.values()) if value is not None]
    assert outcome.result["validation"]["gauc"] == pytest.approx(sum(found) / len(found), abs=1e-4)


class StopAfter(InProcessReporter):
    """Asks to stop after so many steps, if at all."""

    def __init__(self, steps: int | None) -> None:
        super().__init__(show=False)
        self.left = steps

    def stop_requested(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left == 0


def learned(config: RankerRecipe, folder: Path, stop_after: int | None = None) -> dict[str, Tensor]:
    """The weights that this process, or the group it belongs to, learns in `folder`."""
    seed_everything(config.train.seed)
    store = CheckpointStore(folder / "checkpoints")
    train(config, Session(folder, StopAfter(stop_after), store))
    return load_file(folder / "model.safetensors") if World.current().leads else {}


def sparse_or_not(world: Path, sparse: bool, recipe: str = "ctr/din", **more: Any) -> RankerRecipe:
    over = [line for line in TINY if recipe == "ctr/din" or "attention" not in line]
    over += [f"model.sparse_embeddings={sparse}", *(f"{k}={v}" for k, v in more.items())]
    return resolve(recipe_of(recipe), None, over, {"data": str(world)})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ctr/din", "ctr/dcnv2", "ctr/finalmlp"])
def test_sparse_embeddings_take_the_first_step_of_dense_ones_and_then_rest(
    world: Path, tmp_path: Path, recipe: str
) -> None:
    """Moments begin at zero, so one step of Adam moves the rows in use only; later ones differ:
    dense moments go on moving a row after its last use."""
    weights = {
        (sparse, steps): learned(
            sparse_or_not(world, sparse, recipe, **{"train.max_steps": steps}),
            tmp_path / f"{sparse}{steps}",
        )
        for sparse in (False, True)
        for steps in (1, 4)
    }
    table = "items.fields.table.weight"
    for name, dense in weights[False, 1].items():
        torch.testing.assert_close(weights[True, 1][name], dense, rtol=0, atol=1e-6)
    assert not torch.allclose(weights[True, 4][table], weights[False, 4][table], atol=1e-5)


@pytest.mark.slow
def test_sparse_embeddings_resume_to_the_same_bits(world: Path, tmp_path: Path) -> None:
    config = sparse_or_not(world, True, **{"features.contexts": []})
    whole = learned(config, tmp_path / "whole")
    for stop_after in (3, 2):
        with pytest.raises(InterruptedRunError):
            learned(config, tmp_path / "broken", stop_after)
    resumed = learned(config, tmp_path / "broken")
    assert all(torch.equal(resumed[name], values) for name, values in whole.items())
    assert export_run(tmp_path / "whole", tmp_path / "ranker.pt2").max_difference <= 1e-6


def _in_group(rank: int, size: int, folder: Path, config: RankerRecipe) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    learned(config, folder)
    dist.destroy_process_group()


@pytest.mark.slow
def test_sparse_embeddings_of_two_workers_equal_those_of_one(world: Path, tmp_path: Path) -> None:
    # 100 histories of 20 name more items than the catalogue has, so that one worker looks up all
    # of it at once; two workers do not.
    more = {"batch_size": 100, "train.epochs": 5, "train.clip_norm": 0.5}
    config = sparse_or_not(world, True, **more)
    one = learned(config, tmp_path / "one")
    folder = tmp_path / "two"
    folder.mkdir()
    mp.start_processes(_in_group, (2, folder, config), nprocs=2, start_method="forkserver")
    for name, values in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(values, one[name], rtol=0, atol=1e-5)


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
