"""Both sides of the training bench compute the same model on the same rows."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bench.equal_data import FEATURES, ITEM_FIELDS, fuxictr_data, planted_world, split_rows
from bench.equal_din import EqualDIN
from bench.equal_loaders import write_pointers
from bench.equal_run import EqualTask, Job, RowLoader, run_job
from raysys.data.batch import Collator
from raysys.data.catalogue import Catalogue
from raysys.data.dataset import Dataset
from raysys.data.features import FeatureSpace, fit_features
from raysys.data.prepared import Prepared, prepare
from raysys.data.sampling import ImpressionLoader
from raysys.errors import RaysysError
from raysys.training import TrainConfig, World

LENGTH = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield prepare(Dataset(planted_world(users=30, days=12, seed=1)))


@pytest.fixture
def features(data: Prepared) -> FeatureSpace:
    return fit_features(data, FEATURES)


def model_of(data: Prepared, features: FeatureSpace) -> EqualDIN:
    torch.manual_seed(0)
    model = EqualDIN(
        features.item_cardinalities,
        features.context_cardinalities,
        embedding_dim=3,
        attention_units=(5,),
        hidden=(6, 7),
        history_length=LENGTH,
    )
    model.bind(Catalogue.build(data.dataset.table("items"), features))
    return model


def rows_of(data: Prepared, features: FeatureSpace, shuffle: bool = False) -> RowLoader:
    collator = Collator(data.histories, features.contexts, LENGTH)
    return RowLoader(data, collator, 50, seed=3, shuffle=shuffle)


def fuxictr_weights(features: FeatureSpace, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random weights under FuxiCTR's names for embedding width 3."""
    table = "embedding_layer.embedding_layer.embedding_layers.{}.weight".format
    sizes = (*features.item_cardinalities, *features.context_cardinalities)
    names = (*ITEM_FIELDS, *features.contexts.names)
    shapes = {table(name): (size, 3) for name, size in zip(names, sizes, strict=True)}
    target, context = 3 * len(ITEM_FIELDS), 3 * len(features.contexts.names)
    attention, tower = "attention_layers.attention_layer.mlp", "dnn.mlp"
    for prefix, widths in (
        (attention, (4 * target, 5, 1)),
        (tower, (context + 2 * target, 6, 7, 1)),
    ):
        for layer, (wide, out) in enumerate(pairwise(widths)):
            shapes[f"{prefix}.{2 * layer}.weight"] = (out, wide)
            shapes[f"{prefix}.{2 * layer}.bias"] = (out,)
    shapes |= {f"{attention}.1.{name}": (5,) for name in ("alpha", "bn.running_mean")}
    weights = {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
    weights[f"{attention}.1.bn.running_var"] = np.ones(5, np.float32)
    weights[f"{attention}.1.bn.num_batches_tracked"] = np.array(7)
    for name in names:
        weights[table(name)][0] = 0  # padding
    return weights


def test_the_model_is_fuxictrs_formula(
    data: Prepared, features: FeatureSpace, tmp_path: Path
) -> None:
    w = fuxictr_weights(features, np.random.default_rng(0))
    np.savez(tmp_path / "weights.npz", **w)
    model = model_of(data, features).train()
    model.load_fuxictr(tmp_path / "weights.npz", ITEM_FIELDS, features.contexts.names)
    batch = rows_of(data, features).batch(0, 0, 0, 1)
    assert batch is not None
    assert not batch.history_mask.all()
    codes = Catalogue.build(data.dataset.table("items"), features).codes
    table = "embedding_layer.embedding_layer.embedding_layers.{}.weight".format

    def items(rows: torch.Tensor) -> np.ndarray:
        return np.concatenate(
            [w[table(name)][codes[rows, i]] for i, name in enumerate(ITEM_FIELDS)], -1
        )

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    t, h = items(batch.candidates), items(batch.history_items)
    t_wide = np.broadcast_to(t, h.shape)
    x = linear(
        np.concatenate([t_wide, h, t_wide - h, t_wide * h], -1),
        "attention_layers.attention_layer.mlp.0",
    )
    flat = x.reshape(-1, 5)
    gate = 1 / (1 + np.exp(-(x - flat.mean(0)) / flat.std(0)))
    x = (gate + (1 - gate) * w["attention_layers.attention_layer.mlp.1.alpha"]) * x
    weight = (
        linear(x, "attention_layers.attention_layer.mlp.2") * batch.history_mask.numpy()[..., None]
    )
    context = [
        w[table(name)][batch.context[:, i]] for i, name in enumerate(features.contexts.names)
    ]
    y = np.concatenate([*context, t[:, 0], (weight * h).sum(1)], -1)
    y = np.maximum(linear(np.maximum(linear(y, "dnn.mlp.0"), 0), "dnn.mlp.2"), 0)
    expected = linear(y, "dnn.mlp.4")
    got, _ = model.logits(batch)
    np.testing.assert_allclose(got.detach(), expected, rtol=2e-4, atol=2e-4)


def test_both_sides_read_the_same_rows(data: Prepared, features: FeatureSpace) -> None:
    loader = rows_of(data, features)
    folder = fuxictr_data(data)
    samples = pq.read_table(folder / "train.parquet").to_pylist()
    past = pq.read_table(folder / "user_info.parquet")["full_item_seq"].to_pylist()
    seen = 0
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(0, step, 0, 1)
        assert batch is not None
        for row in range(len(batch)):
            sample = samples[seen]
            seen += 1
            history = past[sample["user_index"]][: sample["seq_len"]][-LENGTH:]
            assert batch.history_items[row, batch.history_mask[row]].tolist() == history[::-1]
            assert batch.candidates[row].tolist() == [sample["item_index"]]
            assert batch.clicks is not None
            assert batch.clicks[row].tolist() == [sample["label"]]
            assert batch.context[row].tolist() == [sample[n] for n in features.contexts.names]
    assert seen == len(samples)


def test_shuffled_rows_and_their_parts_are_all_rows_once(
    data: Prepared, features: FeatureSpace
) -> None:
    loader = rows_of(data, features, shuffle=True)
    parts = [
        loader.batch(1, step, part, 3)
        for step in range(loader.steps_per_epoch)
        for part in range(3)
    ]
    items = np.sort(np.concatenate([p.candidates[:, 0].numpy() for p in parts if p is not None]))
    row, _ = split_rows(data, "train")
    np.testing.assert_array_equal(items, np.sort(data.impressions.item[row]))


def test_whole_impressions_and_single_rows_score_alike(
    data: Prepared, features: FeatureSpace
) -> None:
    model = model_of(data, features).eval()
    collator = Collator(data.histories, features.contexts, LENGTH)
    whole = ImpressionLoader(data, collator, batch_size=10**6, seed=0)
    wide, rows = whole.batch(0, 0), RowLoader(data, collator, 10**6, 0, True).batch(0, 0, 0, 1)
    assert wide is not None
    assert rows is not None
    together = model(wide).score[wide.candidate_mask].detach().sort().values
    apart = model(rows).score[:, 0].detach().sort().values
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        quality = EqualTask(model, data, collator).validate(World.current("cpu"))
    assert 0 < quality["auc"] < 1


def job(data: Prepared, steps: int, single: bool) -> Job:
    return Job(
        data=str(data.dataset.path),
        batch_size=40,
        embedding_dim=2,
        attention_units=(3,),
        hidden=(4,),
        history_length=LENGTH,
        warmup_steps=1,
        single=single,
        train=TrainConfig(max_steps=steps, log_every_steps=1, device="cpu"),
    )


@pytest.mark.parametrize("single", [False, True])
def test_a_run_counts_the_rows_after_the_warm_up(
    data: Prepared, tmp_path: Path, single: bool
) -> None:
    figures = run_job(job(data, 4, single), tmp_path / "run")
    assert len(figures["losses"]) == 4
    assert 100 <= figures["samples"] <= 140
    assert figures["samples_per_s"] == figures["samples"] / figures["seconds"]
    assert set(figures["valid"]) == {"auc", "logloss", "gauc"}


def test_steps_beyond_one_epoch_are_refused(data: Prepared, tmp_path: Path) -> None:
    with pytest.raises(RaysysError, match="validation would be timed"):
        run_job(job(data, 10_000, True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ray_data_is_given_the_pointers_of_all_impressions(data: Prepared, tmp_path: Path) -> None:
    write_pointers(data, tmp_path)
    rows = data.impressions
    chosen = rows.of("train")
    for at, row in zip(chosen, pq.read_table(tmp_path).to_pylist(), strict=True):
        own = slice(rows.offsets[at], rows.offsets[at + 1])
        assert row == {
            "start": rows.start[at],
            "end": rows.end[at],
            "ts": rows.ts[at],
            "context": rows.context[at].tolist(),
            "item": rows.item[own].tolist(),
            "click": rows.click[own].tolist(),
        }
