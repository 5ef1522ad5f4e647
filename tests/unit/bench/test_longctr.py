"""Our retrievers inside FuxiCTR's models: equal logits from equal weights, and fixed words."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.equal_data import FEATURES, planted_world, split_rows
from bench.equal_longctr import EqualLongCTR, LongSizes
from bench.equal_run import RowLoader
from bench.longctr import MODELS, WIDEST, compared, markdown, seed_difference, verdict
from bench.longctr_runs import Runs, Sizes
from bench.peers.environment import FUXICTR, is_made, peer_python
from raysys.data.batch import Collator
from raysys.data.catalogue import Catalogue
from raysys.data.dataset import Dataset
from raysys.data.features import fit_features
from raysys.data.prepared import Prepared, prepare

# Before the cache folder is another one; a test run makes no environment.
PYTHON = peer_python(*FUXICTR) if is_made(*FUXICTR) else None
SIZES = Sizes(
    window=30,
    k=6,
    short=5,
    batch_size=200,
    embedding_dim=4,
    attention_units=(5,),
    attention_dim=6,
    hidden=(7, 6),
    bits=128,
    groups=4,
    group_bits=2,
    lr=0.02,
    threads=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield prepare(Dataset(planted_world(users=30, days=12, seed=1)))


def model_of(data: Prepared, model: str, k: int) -> EqualLongCTR:
    features = fit_features(data, FEATURES)
    torch.manual_seed(0)
    sizes = LongSizes.model_validate(
        {"model": model, "short": 5, "width": 6, "k": k, "bits": 4, "groups": 3}
    )
    made = EqualLongCTR(
        features.item_cardinalities,
        features.context_cardinalities,
        embedding_dim=4,
        hidden=(7,),
        history_length=SIZES.window,
        sizes=sizes,
        seed=0,
    )
    made.bind(Catalogue.build(data.dataset.table("items"), features))
    return made


def loader_of(data: Prepared, passes: int = 1, least: int = 0) -> RowLoader:
    collator = Collator(data.histories, fit_features(data, FEATURES).contexts, SIZES.window)
    return RowLoader(data, collator, 64, seed=0, shuffle=True, passes=passes, least=least)


@pytest.mark.slow
@pytest.mark.skipif(
    PYTHON is None, reason="FuxiCTR's environment is missing; `raysys bench longctr` makes it"
)
@pytest.mark.parametrize("model", MODELS)
def test_equal_weights_give_fuxictrs_losses_and_logits(
    data: Prepared, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.longctr_runs.peer_python", lambda *_: PYTHON)
    same = Runs(data, replace(SIZES, window=12), tmp_path).equal_weights(model, steps=12)
    # Which of tied events ETA takes is left to each side's sorting, and moves its losses.
    assert same["max_loss_difference"] < (1e-2 if model == "ETA" else 1e-4)
    assert same["certain_rows"] > 0.2 * same["rows"]
    # In so few steps the logits of some models have hardly parted from each other yet.
    assert same["max_logit_difference"] < min(1e-5, same["sd_of_logits"] / 20)


@pytest.mark.parametrize("model", ["SIM", "ETA", "TWIN"])
def test_of_certain_rows_no_other_choice_is_as_good(data: Prepared, model: str) -> None:
    made = model_of(data, model, k=3).eval()
    batch = loader_of(data).batch(0, 0, 0, 1)
    assert batch is not None
    pairs = made.inputs(batch).pairs
    relevance = made.retriever.relevance(pairs)[:, 0].detach().numpy()  # type: ignore[operator]
    certain = made.certain(batch)[:, 0]
    for row, sure in enumerate(certain.tolist()):
        real = batch.history_mask[row].numpy()
        found, items = relevance[row, real], batch.history_items[row].numpy()[real]
        best = np.argsort(-found, kind="stable")[:3]
        level = found[best[-1]] if len(best) else 0.0
        tied = {items[i] for i in np.flatnonzero(np.isclose(found, level, rtol=1e-9, atol=0))}
        if model == "SIM":
            assert sure <= (real.sum() == SIZES.window)
        assert not sure or len(found) <= 3 or len(tied) == 1
    if model != "SIM":
        assert certain.any()


@pytest.mark.parametrize("model", ["SIM", "ETA", "SDIM", "TWIN"])
def test_every_weight_is_learned(data: Prepared, model: str) -> None:
    made = model_of(data, model, k=3)
    batch = loader_of(data).batch(0, 0, 0, 1)
    assert batch is not None
    loss, _ = made.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    idle = {name for name, weight in made.named_parameters() if weight.grad is None}
    assert idle == set()


def test_each_pass_has_all_rows_in_an_order_of_its_own(data: Prepared) -> None:
    loader = loader_of(data, passes=2)
    half = loader.steps_per_epoch // 2
    batches = [loader.batch(0, step, 0, 1) for step in range(2 * half)]
    items = [b.candidates[:, 0].numpy() for b in batches if b is not None]
    first, second = np.concatenate(items[:half]), np.concatenate(items[half:])
    np.testing.assert_array_equal(np.sort(first), np.sort(second))
    assert (first != second).any()


def test_rows_of_short_histories_can_be_left_out(data: Prepared) -> None:
    _, owner = split_rows(data, "train", 9)
    lengths = data.impressions.end - data.impressions.start
    assert (lengths[owner] >= 9).all()
    kept = (lengths[split_rows(data, "train")[1]] >= 9).sum()
    assert len(owner) == kept == len(loader_of(data, least=9).row)


def test_the_interval_is_students() -> None:
    found = seed_difference([1.0, 2.0, 3.0], [1.0, 1.0, 4.0], 0.05)
    half = 2.776445 * np.sqrt((2 + 6) / 4 * (1 / 3 + 1 / 3))
    assert found["delta"] == 0
    assert found["high"] == pytest.approx(half, rel=1e-6)
    assert found["low"] == -found["high"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.01, 0.01, "equal within seed noise"),
        (0.001, 0.002, "different"),
        (-0.002, -0.001, "different"),
        (-0.01, 2 * WIDEST, "too few seeds to tell"),
    ],
)
def test_words_follow_the_worst_interval(low: float, high: float, words: str) -> None:
    assert verdict([{"low": -0.001, "high": 0.001}, {"low": low, "high": high}]) == words


def test_the_page_has_a_row_for_each_arm_and_metric() -> None:
    runs = {
        side: [{"auc": 0.6 + seed / 1000, "gauc": 0.7} for seed in range(3)]
        for side in ("raysys", "fuxictr")
    }
    same = dict(
        steps=4,
        max_loss_difference=1e-7,
        certain_rows=1,
        rows=2,
        max_logit_difference=1e-6,
        sd_of_logits=0.1,
    )
    page = markdown(
        {
            "data": {"users": 1, "days": 2, "train_rows": 3},
            "sizes": {"steps": 4, "batch_size": 5, "window": 6, "k": 7, "seeds": 3},
            "rule": "…",
            "equal_weights": {"DIN": same},
            "arms": {"DIN": compared(runs, 0.05)},
            "note": "the note",
        }
    )
    assert (
        "| DIN | `auc` | 0.6010 ± 0.0010 | 0.6010 ± 0.0010 | +0.0000 [-0.0023, +0.0023] |" in page
    )
    assert "| DIN | `gauc` | 0.7000 ± 0.0000 |" in page
