"""`ctr/cofars` from data set to scores: stages, lists, resumption, and runs without a data set."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from cofars_runs import TINY, inline, small_world, tiny, valid_requests
from safetensors.torch import load_file

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import load_run, read_config
from raysys.cofars.fit import hash_users
from raysys.cofars.ranker import CofarsDIN
from raysys.data.dataset import Dataset
from raysys.data.histories import Histories
from raysys.data.prepared import prepare
from raysys.data.requests import Request, Requests
from raysys.data.training_counts import training_stop
from raysys.errors import ArtifactError, ConfigError
from raysys.options import resolve
from raysys.recipes import cofars, ranker
from raysys.recipes.cofars import CofarsRecipe
from raysys.recipes.cofars_lists import build_lists
from raysys.recipes.registry import recipe_of, run
from raysys.recipes.split_scorer import SplitScorer
from raysys.training import CheckpointStore, InterruptedRunError, Session
from raysys.training.reporter import InProcessReporter
from raysys.training.rng import seed_everything


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cofars") / "world"
    small_world(out)
    return out


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    run(tiny(world), out, show_progress=False)
    return out


class StopAfter(InProcessReporter):
    """Asks for a stop after so many steps, whatever stage they belong to."""

    def __init__(self, steps: int | None) -> None:
        super().__init__(show=False)
        self._left = steps

    def stop_requested(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left == 0


def learned(config: CofarsRecipe, folder: Path, stop_after: int | None = None) -> bytes:
    seed_everything(config.train.seed)
    store = CheckpointStore(folder / "checkpoints")
    cofars.train(config, Session(folder, StopAfter(stop_after), store))
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_stopped_in_any_stage_it_ends_with_the_same_bytes(world: Path, tmp_path: Path) -> None:
    config = tiny(world)
    whole = learned(config, tmp_path / "whole")
    done = {}
    for stage in ("warm-up", "selector"):
        log = tmp_path / "whole" / "checkpoints" / stage / "metrics.jsonl"
        done[stage] = json.loads(log.read_text().splitlines()[-1])["step"]
    broken = tmp_path / "broken"
    # In the warm-up, in the full loss, and in the ranker; each launch begins in its own stage.
    for stop_after, stage in (
        (2, "warm-up"),
        (done["warm-up"] - 2 + 3, "selector"),
        (done["selector"] - 3 + 2, "."),
    ):
        with pytest.raises(InterruptedRunError, match="checkpoints"):
            learned(config, broken, stop_after)
        assert list((broken / "checkpoints" / stage).glob("step-*"))
    assert learned(config, broken) == whole
    kept = (broken / "checkpoints" / "selector" / "metrics.jsonl").read_bytes()
    assert learned(config, broken) == whole
    assert (broken / "checkpoints" / "selector" / "metrics.jsonl").read_bytes() == kept


@pytest.mark.slow
def test_micro_batches_change_no_weight(world: Path, tmp_path: Path) -> None:
    """Noise and pairs belong to requests, so that all stages see them however a batch is cut."""
    # Behind a softmax the last bias has no gradient, and Adam makes steps of its rounding.
    plain = "model.attention_softmax=false"
    learned(tiny(world, plain), tmp_path / "whole")
    parts = ("selector.warm_up", "selector.train", "train")
    learned(tiny(world, plain, *(f"{part}.accumulation=3" for part in parts)), tmp_path / "cut")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    for name, values in one.items():
        torch.testing.assert_close(other[name], values, rtol=0, atol=1e-5)


def scores(predictor: Predictor, requests: list[Request]) -> np.ndarray:
    return predictor.score(requests)["score"].to_numpy()


def test_a_run_scores_without_its_data_set_as_evaluation_does(
    world: Path, trained: Path, tmp_path: Path
) -> None:
    data = prepare(Dataset(world))
    requests = valid_requests(world)
    wanted = SplitScorer.of(str(trained), data, "valid", lambda _: None)
    asked = {(request.request_id, item) for request in requests for item in request.candidates}
    by_evaluation = {
        pair: score
        for pair, score in zip(
            (
                (name, item)
                for name, items in zip(
                    wanted.requests.ids,
                    np.split(
                        np.array(wanted.requests.candidates),
                        np.cumsum(wanted.requests.counts)[:-1],
                    ),
                    strict=True,
                )
                for item in items
            ),
            wanted.rows.score,
            strict=True,
        )
        if pair in asked
    }
    copy = tmp_path / "elsewhere"
    shutil.copytree(trained, copy)
    table = Predictor.load(copy).score(requests)
    assert len(table) == len(asked)
    for name, item, score in zip(
        *(table[column].to_pylist() for column in ("request_id", "item_id", "score")), strict=True
    ):
        assert score == pytest.approx(by_evaluation[name, item], abs=1e-6)


def test_a_history_sent_along_counts_like_the_stored_one(world: Path, trained: Path) -> None:
    requests = valid_requests(world)
    predictor = Predictor.load(trained)
    stored = scores(predictor, requests)
    sent = scores(predictor, inline(world, requests))
    np.testing.assert_allclose(sent, stored, atol=1e-6)
    own = predictor.model.user_rows(predictor.histories)
    assert (own >= 0).sum() == predictor.model.chooser.encoder.users.num_embeddings
    columns = Requests.of(inline(world, requests), predictor.codec)
    histories = columns.inline_histories(predictor.run.catalogue, predictor.codec)
    found = predictor.model.user_rows(histories)
    row_of = dict(zip(predictor.histories.users.to_pylist(), own.tolist(), strict=True))
    assert found.tolist() == [row_of[request.user_id] for request in requests]


def test_users_are_found_by_name_in_any_histories(trained: Path) -> None:
    loaded = load_run(trained)
    model, stored = loaded.model, loaded.histories
    assert isinstance(model, CofarsDIN)
    assert stored is not None
    rows = model.user_rows(stored)
    names = np.array(stored.users.to_pylist(), object)
    known = [n for n, row in zip(names, rows, strict=True) if row >= 0]
    assert sorted(rows[rows >= 0]) == list(range(len(known)))
    backwards = replace(stored, users=stored.users.take(np.arange(len(names))[::-1].copy()))
    assert model.user_rows(backwards).tolist() == rows[::-1].tolist()
    numbered = pa.array([str(i) for i in range(len(names))], pa.string())
    numbers = replace(stored, users=numbered, owners=stored.users)
    assert hash_users(numbers).tolist() == hash_users(stored).tolist()
    assert len(hash_users(Histories.empty(stored.codec))) == 0


def test_odd_requests_score(world: Path, trained: Path) -> None:
    predictor = Predictor.load(trained)
    some = valid_requests(world, 5)
    context = dict(some[0].context)
    odd = [
        some[0].model_copy(update={"context": {**context, "weather": "meteors"}}),
        some[1].model_copy(update={"context": {"place": "home"}}),
        some[2].model_copy(update={"context": {}}),
        some[3].model_copy(update={"user_id": "nobody"}),
        *inline(world, some[:2], 0),
        *inline(world, some[2:4], 3),
    ]
    renamed = [r.model_copy(update={"request_id": f"r{i}"}) for i, r in enumerate(odd)]
    assert np.isfinite(scores(predictor, renamed)).all()
    # The first three: a value or a feature that the model does not have.
    assert predictor.unknown["contexts"] == 3
    found = [reasons for reasons in predictor.explain_retrieval(renamed) if reasons is not None]
    assert len(found) == len(odd)
    names = ("mealtime", "place", "weather", "day")
    assert [reasons.missing for reasons in found[:4]] == [
        (),
        ("mealtime", "weather", "day"),
        names,
        (),
    ]
    assert found[0].target == {**context, "weather": "(unseen)"}
    assert found[1].target == {**dict.fromkeys(names, "(missing)"), "place": "home"}
    assert not any(reasons.known_context for reasons in found[:3])
    past = [len(r.history or ()) for r in inline(world, some)]
    assert [reasons.events for reasons in found] == [
        *(min(12, n) for n in past[:3]), 0, 0, 0, *(min(3, n) for n in past[2:4])
    ]  # fmt: skip
    for reasons in found:
        assert sum(step.events for step in reasons.back_off) == reasons.events
        assert reasons.prototypes
    assert all(reasons.back_off == () for reasons in found[3:6])
    # An unseen weather equals none: `day` alone is never enough to give up.
    paths = [[(step.dropped, step.recent) for step in reasons.back_off] for reasons in found]
    assert set(paths[0]) <= {((), False), (("day", "weather"), False), ((), True)}
    # A missing mealtime equals none either, and is never given up.
    assert set(paths[1]) | set(paths[2]) <= {((), False), ((), True)}


def test_a_missing_feature_is_its_zero_vector(trained: Path) -> None:
    model = load_run(trained).model
    assert isinstance(model, CofarsDIN)
    encoder = model.chooser.encoder
    sizes = torch.tensor(model.table.cardinalities)
    codes = 1 + torch.arange(40).unsqueeze(1) % (sizes - 1)
    unseen = torch.zeros(40, dtype=torch.int64)
    whole, own = encoder.contexts(codes, unseen), sizes.cumsum(0) - sizes
    assert encoder.values is not None
    for feature in range(len(sizes)):
        value = encoder.values.weight[own[feature] + codes[:, feature]]
        less = codes.index_fill(1, torch.tensor([feature]), 0)
        torch.testing.assert_close(encoder.contexts(less, unseen), whole - value)
        assert value.abs().sum(1).min() > 0
        asked = model.contexts(less).view(40, len(sizes), -1)
        assert not asked[:, feature].any()
        rest = [other for other in range(len(sizes)) if other != feature]
        assert torch.equal(asked[:, rest], model.contexts(codes).view(40, len(sizes), -1)[:, rest])


def test_a_frozen_model_names_its_selector_once(
    world: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, made = CofarsDIN._named, []

    def counting(self: CofarsDIN) -> str:
        made.append(named(self))
        return made[-1]

    predictor = Predictor.load(trained)
    wanted = scores(predictor, valid_requests(world, 4))
    model = predictor.model
    assert isinstance(model, CofarsDIN)
    monkeypatch.setattr(CofarsDIN, "_named", counting)

    def refuse(*_: object) -> None:
        raise AssertionError("stored lists asked for")

    # No stored lists are looked at for histories that come with their requests.
    monkeypatch.setattr("raysys.cofars.ranker.made_of", refuse)
    monkeypatch.setattr("raysys.cofars.ranker.load_lists", refuse)
    got = [scores(predictor, [r]) for r in inline(world, valid_requests(world, 4))]
    np.testing.assert_allclose(np.concatenate(got), wanted, atol=1e-6)
    assert made == []
    model.freeze()
    assert made == [model.selector_id()] == [named(model)]
    model.train()
    with torch.no_grad():
        model.chooser.encoder.prototypes.add_(1)
    assert model.selector_id() != made[0]


def test_draws_follow_the_seed_of_training_and_are_stored(world: Path, tmp_path: Path) -> None:
    over = ["cofars.lists.placebo=random", "train.seed=3", "selector.train=null"]
    config = tiny(world, *over, "train.max_steps=1")
    assert config.cofars.lists.placebo_seed is None
    assert config.cofars.seeded(3).lists.placebo_seed == 3
    fixed = tiny(world, *over, "cofars.lists.placebo_seed=5").cofars
    assert fixed.seeded(3) == fixed
    learned(config, tmp_path / "run")
    stored = read_config(tmp_path / "run").model_options["cofars"]["options"]["lists"]
    assert stored["placebo_seed"] == 3
    model = load_run(tmp_path / "run").model
    assert isinstance(model, CofarsDIN)
    assert (model.placebo, model.placebo_seed) == ("random", 3)
    with pytest.raises(ConfigError, match="placebo are drawn as a whole; build without --append"):
        build_lists(tmp_path / "run", world, append=True)
    # The same for the retrievers of `ctr/din`.
    for kind in ("random", "permuted", "eta", "sdim"):
        asked = [f"model.retriever.kind={kind}", "train.seed=7"]
        din = resolve(recipe_of("ctr/din"), None, asked, {"data": str(world)})
        settled = ranker._settled(din, prepare(Dataset(world)))
        assert settled.model_dump()["retriever"]["seed"] == 7


def test_stored_lists_are_used_and_equal_fresh_ones(
    world: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = valid_requests(world)
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare)
    shutil.rmtree(bare / "indexes")
    fresh = scores(Predictor.load(bare), requests)
    # Left by a writer that was killed: never looked at.
    half = bare / "indexes" / ".cofars.half"
    half.mkdir(parents=True)
    (half / "lists.json").write_text('{"model": "other"')
    assert (scores(Predictor.load(bare), requests) == fresh).all()

    def refuse(self: CofarsDIN, histories: Histories) -> None:
        raise AssertionError("built although there are lists")

    monkeypatch.setattr(CofarsDIN, "lists", refuse)
    assert (scores(Predictor.load(trained), requests) == fresh).all()
    with pytest.raises(AssertionError, match="built although"):
        scores(Predictor.load(bare), requests)
    # Lists of other histories are not taken for those of these.
    loaded = load_run(trained)
    assert loaded.histories is not None
    moved = replace(loaded.histories, users=loaded.histories.users.take(
        np.roll(np.arange(len(loaded.histories.users)), 1)
    ))  # fmt: skip
    with pytest.raises(AssertionError, match="built although"):
        scores(Predictor(loaded, histories=moved), requests)


def test_lists_of_another_version_are_refused_by_name(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    version = copy / "indexes" / "cofars" / "lists.json"
    made = json.loads(version.read_text())["model"]
    version.write_text(version.read_text().replace(made, "0123456789ab"))
    with pytest.raises(ArtifactError, match=rf"0123456789ab.*{made}"):
        Predictor.load(copy)


def test_only_training_events_are_fitted_on(world: Path) -> None:
    data = prepare(Dataset(world))
    stop = training_stop(data)
    rows = data.impressions
    later = rows.ts[rows.split != 0].min()
    for user in range(len(data.histories.users)):
        first, last = data.histories.start[user : user + 2]
        wanted = first + (data.histories.ts[first:last] < later).sum()
        assert stop[user] == wanted
    # Without times, what a user's last training request could see.
    timeless = replace(data, impressions=replace(rows, ts=np.full_like(rows.ts, -(2**63))))
    ends = training_stop(timeless)
    train = rows.of("train")
    for user in range(len(data.histories.users)):
        mine = rows.end[train[rows.user[train] == user]]
        assert ends[user] == max([data.histories.start[user], *mine])


@pytest.mark.slow
def test_the_ranker_begins_as_without_a_selector_and_leaves_it_alone(
    world: Path, tmp_path: Path
) -> None:
    learned(tiny(world, "train.max_steps=1", "train.lr=1e-12", "train.weight_decay=0"), tmp_path)
    model = load_file(tmp_path / "model.safetensors")
    steps = sorted((tmp_path / "checkpoints" / "selector").glob("step-*"))
    chosen = [load_file(path / "model.safetensors") for path in steps]
    own = {k.removeprefix("chooser."): v for k, v in model.items() if k.startswith("chooser.")}
    assert any(all(torch.equal(own[k], one[k]) for k in own) for one in chosen)
    din = [line for line in TINY if not line.startswith(("cofars", "selector"))]
    over = [*din, "features.min_count=2", "model.attention_softmax=true", "train.max_steps=1"]
    over += ["train.lr=1e-12", "train.weight_decay=0"]
    plain = resolve(recipe_of("ctr/din"), None, over, {"data": str(world)})
    run(plain, tmp_path / "din", show_progress=False)
    for name, values in load_file(tmp_path / "din" / "model.safetensors").items():
        torch.testing.assert_close(model[name], values, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_without_the_full_loss_similarity_alone_selects(world: Path, tmp_path: Path) -> None:
    learned(tiny(world, "selector.train=null", "train.max_steps=1"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert not any(v.any() for k, v in weights.items() if k.startswith("chooser.state"))
    assert not (tmp_path / "checkpoints" / "selector").exists()


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ("cofars.phases=joint", r"unknown key cofars\.phases"),
        ("model.retriever.kind=recent", r"CoFARS is the retriever"),
        ("selector.train.workers=2", r"give it as train\.workers"),
    ],
)
def test_impossible_options_are_named(world: Path, over: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(world, over)


def test_a_context_that_the_ranker_lacks_is_named(world: Path, tmp_path: Path) -> None:
    config = tiny(world, "features.contexts=[mealtime]")
    with pytest.raises(ConfigError, match=r"cofars\.contexts\.features: day, place, weather"):
        run(config, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_training_the_ranker_makes_no_noise_in_the_selector(trained: Path) -> None:
    model = load_run(trained).model.train()
    assert model.training
    assert not any(part.training for part in model.chooser.modules())
    assert model.chooser.items.table is not None
