"""The property tests of LARR by number (larr.md §6)."""

import asyncio
import hashlib
import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import larr_planted as planted
import larr_runs
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cofars_runs import valid_requests
from larr_city import TRAIN_TO, City, open_city
from torch import Tensor

from raysys.data.batch import Batch
from raysys.data.contexts import FIRST, MISSING, OOV
from raysys.errors import MetricError
from raysys.larr.batches import PairLoader
from raysys.larr.cached import encode_cached
from raysys.larr.contrast import ContrastTask, Weights
from raysys.larr.corpus import documents, held_out, training_texts
from raysys.larr.embedding import EmbeddingHead, EmbeddingModel
from raysys.larr.encoder import SceneEncoder
from raysys.larr.fit import scene_keys
from raysys.larr.online import Sentence
from raysys.larr.pairs import KINDS, PairConfig, PairSets
from raysys.larr.pretrain import PretrainTask
from raysys.larr.recall import Retrieval, recalls, retrieval
from raysys.larr.texts import SPECIAL_TOKENS
from raysys.layers.infonce import info_nce
from raysys.llm.backbones import Backbone, open_backbone
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.llm.keys import VectorIdentity
from raysys.llm.packing import Packed, PackedLoader, pack
from raysys.llm.parts import TableHeader
from raysys.llm.tokens import TextTokens, append_end_token
from raysys.llm.tuning import LoraOptions, TuningConfig, load_for_tuning, tunable
from raysys.llm.vectors import VectorTable
from raysys.llm.writer import TableWriter
from raysys.recipes.registry import run
from raysys.training import CheckpointStore, InProcessReporter, Session, TrainConfig, World, fit
from raysys.training.sharding import whole
from serve_apps.config import Model
from serve_apps.ctr import CTRRanking
from serve_apps.schemas import RankRequest

# Workers of the group tests are forked from a process that has imported torch already.
multiprocessing.set_forkserver_preload(["raysys.training"])
ROW = 96


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a city (data) and a small language model (model)."""
    folder = tmp_path_factory.mktemp("larr")
    log = open_city(City().write(folder / "data"))
    sizes = FreshModel(layers=2, width=32, heads=2, vocab=400)
    write_fresh_model(folder / "model", sizes, training_texts(log))
    return folder


def backbone(made: Path) -> Backbone:
    return open_backbone(f"dir:{made / 'model'}")


# --- 1: special tokens and what pretraining does to them ---------------------------------------


@pytest.mark.parametrize("method", ["full", "lora"])
def test_01_special_tokens_have_one_id_come_back_and_learn(made: Path, method: str) -> None:
    model, tokenizer, new = load_for_tuning(backbone(made), "causal", SPECIAL_TOKENS)
    text = "<poi><name> Red thai house 0<cat> food, thai</poi>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert sorted(set(ids) & set(new)) == sorted(
        tokenizer.convert_tokens_to_ids(["<poi>", "<name>", "<cat>", "</poi>"])
    )
    log = open_city(made / "data")
    tokens = TextTokens(tokenizer, ROW)
    docs = documents(training_texts(log), tokens, log.config.told)
    loader = PackedLoader(docs.ids, docs.weights("full"), ROW, 4, tokens.pad, seed=0)
    options = TuningConfig(method=method, lora=LoraOptions(rank=4))
    tuned = tunable(model, new, options)
    task = PretrainTask(tuned, documents([], tokens, ()), ROW, tokens.pad, 4)
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    for step in range(min(3, loader.steps_per_epoch)):
        loss, weight = task.loss(loader.batch(0, step, 0, 1))
        (loss / weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(tuned.named_parameters())
    # LoRA trains the new rows alone, as a table of their own.
    mark = "embed_tokens.weight" if method == "full" else "trainable_tokens_delta"
    table = next(name for name in after if mark in name)
    used = sorted(set(ids) & set(new))
    rows = used if method == "full" else [new.index(token) for token in used]
    assert ((after[table] - before[table])[rows].abs().sum(1) > 0).all()
    assert all(torch.equal(p, before[n]) for n, p in after.items() if not p.requires_grad)


def test_01_completion_counts_the_told_tokens_and_no_others(made: Path) -> None:
    log = open_city(made / "data")
    _, tokenizer, _ = load_for_tuning(backbone(made), "causal", SPECIAL_TOKENS)
    tokens = TextTokens(tokenizer, ROW)
    texts = training_texts(log)
    docs = documents(texts, tokens, log.config.told)
    told = full = 0
    for text in texts:
        # The told half begins at the first of its fields: brand, category, price, ...
        first = min(text.index(f"<{n}>") for n in log.config.told if f"<{n}>" in text)
        told += len(tokenizer(text[first:])["input_ids"]) + 1  # and the end token
        full += len(tokenizer(text)["input_ids"])  # and the end token, less the first token
    for loss, count in (("completion", told), ("full", full)):
        loader = PackedLoader(docs.ids, docs.weights(loss), ROW, 3, tokens.pad, seed=1)
        batches = [loader.batch(2, s, p, 2) for s in range(loader.steps_per_epoch) for p in (0, 1)]
        assert sum(float(b.weights[:, 1:].sum()) for b in batches if b.weights is not None) == count


# --- 2: pooling --------------------------------------------------------------------------------


def embedding(made: Path, seed: int = 0) -> tuple[EmbeddingModel, TextTokens]:
    body, tokenizer, _ = load_for_tuning(backbone(made), "body", SPECIAL_TOKENS)
    torch.manual_seed(seed)
    return EmbeddingModel(body, EmbeddingHead(32, 32, 16)), TextTokens(tokenizer, ROW)


def test_02_a_vector_does_not_depend_on_padding_side_pad_length_or_company(made: Path) -> None:
    model, tokens = embedding(made)
    texts = training_texts(open_city(made / "data"))[:7]
    ids = tokens(texts)
    with torch.no_grad():
        alone = torch.cat([model(Packed.of([row], [[0]], tokens.pad)) for row in ids])
        rows = pack([len(row) for row in ids], 2 * ROW)
        together = torch.empty_like(alone)
        together[[i for row in rows for i in row]] = model(Packed.of(ids, rows, tokens.pad))
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        for side in ("left", "right"):
            for width in (max(map(len, ids)), ROW + 9):
                table = torch.full((len(ids), width), tokens.pad)
                mask = torch.zeros_like(table)
                for row, values in enumerate(ids):
                    begin = width - len(values) if side == "left" else 0
                    table[row, begin : begin + len(values)] = torch.tensor(values)
                    mask[row, begin : begin + len(values)] = 1
                padded = model(Packed.padded(table, mask))
                torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


def test_02_over_long_input_still_ends_in_the_end_token(made: Path) -> None:
    _, tokens = embedding(made)
    short, long = tokens(["<poi> rice</poi>", "<poi>" + " green curry" * 200])
    assert short[-1] == long[-1] == tokens.end and len(long) == ROW and tokens.cut == 1
    tokens.tokenizer.chat_template = "system: {{ messages[0].content }}"
    append_end_token(tokens.tokenizer)
    assert tokens.tokenizer.chat_template is None
    again = tokens.tokenizer(
        ["<poi> rice</poi>", "<poi>" + " green curry" * 200], truncation=True, max_length=ROW
    )["input_ids"]
    assert again == [short, long]


# --- 3: InfoNCE --------------------------------------------------------------------------------


def unit(rows: int, width: int, seed: int) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def loss_of(a: Tensor, b: Tensor, temperature: float) -> float:
    own = torch.arange(len(a))
    every = torch.ones(len(a), len(b), dtype=torch.bool)
    return float(info_nce(a @ b.T, own, every, temperature).mean())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_03_random_vectors_cost_log_n(temperature: float) -> None:
    count, width = 2000, 256
    expected = math.log(count) + 1 / (2 * width * temperature**2)
    found = loss_of(unit(count, width, 0), unit(count, width, 1), temperature)
    assert found == pytest.approx(expected, abs=0.005)


def test_03_separated_vectors_cost_nothing() -> None:
    assert loss_of(torch.eye(32), torch.eye(32), 0.05) < 1e-6


def test_03_a_masked_negative_has_no_gradient_and_no_share() -> None:
    a, b = unit(5, 8, 0), unit(9, 8, 1).requires_grad_()
    own = torch.tensor([0, 1, 2, 3, 4])
    negative = torch.rand(5, 9, generator=torch.Generator().manual_seed(2)) < 0.6
    negative[:, 7] = False
    losses = info_nce(a @ b.T, own, negative, 0.1)
    scores = (a @ b.T / 0.1).tolist()
    for row in range(5):
        kept = [scores[row][j] for j in range(9) if negative[row, j] or j == row]
        whole = math.log(sum(math.exp(s) for s in kept))
        assert losses[row].item() == pytest.approx(whole - scores[row][row], abs=1e-4)
    losses.sum().backward()
    assert b.grad is not None and b.grad[7].abs().sum() == 0 and b.grad[0].abs().sum() > 0


def test_03_fewer_than_two_pairs_are_an_error() -> None:
    one = torch.ones(1, 1)
    with pytest.raises(MetricError, match="two pairs"):
        info_nce(one, torch.tensor([0]), one.bool(), 0.1)


def contrast(made: Path, world: World, chunk: int, even: bool) -> tuple[ContrastTask, PairLoader]:
    log = open_city(made / "data")
    model, tokens = embedding(made)
    sets = PairSets(log, PairConfig(hard=2), 0)
    pairs = {kind: sets.train(kind) for kind in KINDS}
    loader = PairLoader(
        log, pairs, tokens, batch_size=11, hard=2, row_tokens=ROW, chunk_tokens=chunk, seed=0
    )
    asked = {kind: retrieval(sets, kind, "valid", 20, 40) for kind in KINDS}
    task = ContrastTask(
        model,
        weights=Weights(uu=0.5, pp=1.0, up=2.0),
        temperature=0.1,
        world=world,
        even_passes=even,
        retrievals={kind: found for kind, found in asked.items() if found},
        cutoffs=(1, 5),
        tokens=tokens,
        row_tokens=ROW,
        rows_per_chunk=loader.rows_per_chunk,
    )
    return task, loader


def two_steps(made: Path, out: Path, parallel: str, chunk: int) -> dict[str, Any]:
    # Plain SGD: Adam would hide a gradient of the wrong size.
    settings = TrainConfig(optimizer="sgd", lr=0.1, max_steps=2, parallel=parallel, prefetch=0)
    world = World.current("cpu")
    task, loader = contrast(made, world, chunk, parallel == "fsdp")
    session = Session(out, InProcessReporter(show=False), CheckpointStore(out / "c"), None)
    result = fit(task, loader, settings, session)
    return {"weights": whole(task.model.state_dict()), "metrics": result.metrics}


def _in_group(rank: int, made: str, out: str, parallel: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{out}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = two_steps(Path(made), Path(out), parallel, 2 * ROW)
    if rank == 0:
        torch.save(found, f"{out}/found.pt")
    dist.destroy_process_group()


def same(found: dict[str, Any], wanted: dict[str, Any], start: dict[str, Tensor]) -> None:
    """Equal to rounding, measured against how far each weight went."""
    for name, tensor in wanted["weights"].items():
        way = (tensor - start[name]).norm()
        assert (found["weights"][name] - tensor).norm() <= 1e-3 * way + 1e-7, name
    assert max((t - start[n]).abs().max() for n, t in wanted["weights"].items()) > 1e-3
    assert found["metrics"] == pytest.approx(wanted["metrics"], abs=0.02)


@pytest.mark.slow
def test_03_chunks_of_any_size_give_the_gradient_of_the_whole_batch(
    made: Path, tmp_path: Path
) -> None:
    plain = two_steps(made, tmp_path / "plain", "replicate", 10**6)
    start = embedding(made)[0].state_dict()
    same(two_steps(made, tmp_path / "chunks", "replicate", ROW), plain, start)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicate", "fsdp"])
def test_03_two_workers_equal_one_with_the_whole_batch(
    made: Path, tmp_path: Path, parallel: str
) -> None:
    plain = two_steps(made, tmp_path / "plain", "replicate", 10**6)
    out = tmp_path / "two"
    out.mkdir()
    mp.start_processes(
        _in_group, (str(made), str(out), parallel), nprocs=2, start_method="forkserver"
    )
    same(torch.load(out / "found.pt", weights_only=True), plain, embedding(made)[0].state_dict())


def test_03_the_second_pass_drops_what_the_first_one_dropped() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    chunks = [torch.randn(4, 6), torch.randn(2, 6)]
    grads, states = [], []
    for cached in (True, False):
        torch.manual_seed(3)
        net.zero_grad()
        cpu = torch.device("cpu")
        whole = encode_cached(net, chunks, cpu) if cached else torch.cat([net(c) for c in chunks])
        (whole.T @ whole).square().sum().backward()
        grads.append(net[0].weight.grad.clone())
        states.append(torch.get_rng_state())
    torch.testing.assert_close(grads[0], grads[1])
    assert torch.equal(states[0], states[1])


def test_03_recall_of_vectors_that_are_not_finite_is_an_error() -> None:
    asked = Retrieval(["q"], ["a", "b"], np.array([0]), np.array([-1]), np.array([False]))
    with pytest.raises(MetricError, match="not finite"):
        recalls(np.full((1, 2), np.nan, np.float32), np.eye(2, dtype=np.float32), asked, (1,))


# --- 4: nothing from the future ----------------------------------------------------------------


def test_04_a_users_text_holds_no_event_at_or_after_the_request(made: Path) -> None:
    log = open_city(made / "data")
    city = City()
    # The click on the place that is asked for is itself an event of the moment of the request.
    for pairs in (
        PairSets(log, PairConfig(), 0).train("up"),
        PairSets(log, PairConfig(), 0).later("up", "valid"),
        PairSets(log, PairConfig(), 0).later("up", "test"),
    ):
        users = log.data.histories.users.to_pylist()
        by_user: dict[str, list[dict[str, Any]]] = {}
        for event in city.events:
            by_user.setdefault(event["user_id"], []).append(event)
        asked = {(i["user_id"], i["clicks"][0], i["ts"]): i for i in city.impressions}
        assert len(pairs)
        names = {item["item_id"]: item["name"] for item in city.items}
        for pair in range(len(pairs)):
            user = users[pairs.anchor_id[pair]]
            place = f"p{pairs.positive_id[pair] - 2}"
            text = pairs.anchor.text(log, pair, training=False)
            told = text.partition("<visits> ")[2].removesuffix("</user>").split("; ")
            moments = [ts for u, p, ts in asked if (u, p) == (user, place)]
            past = [
                [names[e["item_id"]] for e in by_user[user] if e["ts"] < ts][::-1][:12]
                for ts in moments
            ]
            assert (told if told != [""] else []) in past


def test_04_statistics_of_training_pairs_ignore_later_days(made: Path, tmp_path: Path) -> None:
    changed = City()
    rng = np.random.default_rng(5)
    for event in changed.events:
        if event["ts"] >= TRAIN_TO:
            event |= dict(item_id=f"p{rng.integers(32)}", behaviour="order")
    for shown in changed.impressions:
        if shown["split"] != "train":
            shown |= dict(clicks=shown["candidates"][-1:], orders=[])
    logs = open_city(made / "data"), open_city(changed.write(tmp_path / "d"))
    for config in (PairConfig(), PairConfig(uu="overlap", pp="brand", up="orders")):
        for kind in KINDS:
            one, other = (PairSets(log, config, 0).train(kind) for log in logs)
            assert len(one) == len(other) > 0
            assert (one.anchor_id == other.anchor_id).all()
            assert (one.positive_id == other.positive_id).all()
            assert (one.related != other.related).nnz == 0
            texts = [
                [side.text(log, i, training=True) for side in (p.anchor, p.positive)]
                for p, log in ((one, logs[0]), (other, logs[1]))
                for i in range(len(p))
            ]
            assert texts[: len(one)] == texts[len(one) :]


def test_04_documents_of_stage_1_hold_no_held_out_place(made: Path) -> None:
    log = open_city(made / "data")
    names = {log.places.label[row] for row in np.flatnonzero(log.held)}
    told = {text.split("<")[2].partition("> ")[2] for text in training_texts(log)}
    assert names and not names & told
    parts = [held_out(log, part) for part in ("valid", "test")]
    valid, test = ({text.split("<")[2].partition("> ")[2] for text in texts} for texts in parts)
    assert valid and test and not valid & test and valid | test == names


# --- 5 to 10: the scene vector -----------------------------------------------------------------


def fingerprint(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def some_batch(size: int = 32, seed: int = 1) -> Batch:
    return planted.batch(size, np.random.default_rng(seed))


def alignment_gradient(model, batch: Batch) -> tuple[float, float]:
    """Of L_ali alone: its gradient into the ID tower and into the scene encoder."""
    model.zero_grad()
    model.alignment(batch, model.scene_vector(batch), batch.candidate_mask.float().sum()).backward()
    sums = []
    for part in (model.items, model.scene_encoder):
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        sums.append(float(sum(g.abs().sum() for g in grads)))
    return sums[0], sums[1]


def test_05_the_llm_stays_as_it_is_and_the_id_tower_is_left_alone_in_the_stop_phase() -> None:
    llm = planted.encoder()
    before = fingerprint(llm.model)
    model = planted.model(stop_steps=3)
    names = {name for name, _ in model.named_parameters()}
    vectors = model.scene.vectors.clone()
    batch = some_batch()
    model.train()
    tower = []
    for _ in range(5):
        into_tower, into_encoder = alignment_gradient(model, batch)
        tower.append(into_tower)
        assert into_encoder > 0
    assert tower[:3] == [0.0, 0.0, 0.0]
    assert min(tower[3:]) > 0
    planted.train(model, steps=3)
    # The frozen vectors are no parameters, and nothing of the language model is in the ranker.
    assert not any("vectors" in name for name in names)
    assert torch.equal(model.scene.vectors, vectors)
    assert fingerprint(llm.model) == before
    assert all(p.grad is None for p in llm.model.parameters())


@pytest.mark.parametrize(("stop_steps", "moves"), [(0, True), (-1, False)])
def test_05_open_and_always_stop(stop_steps: int, moves: bool) -> None:
    model = planted.model(stop_steps=stop_steps).train()
    for _ in range(3):
        into_tower, _ = alignment_gradient(model, some_batch())
        assert (into_tower > 0) == moves


def test_05_the_step_count_is_part_of_the_weights() -> None:
    model = planted.model(stop_steps=2).train()
    for _ in range(2):
        model.loss(some_batch())
    resumed = planted.model(stop_steps=2)
    resumed.load_state_dict(model.state_dict())
    assert alignment_gradient(resumed.train(), some_batch())[0] > 0


def filled(requests: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(requests, features, 8, generator=generator)
    present = torch.rand(requests, features, generator=generator) < 0.7
    return vectors, present


def scene_encoder(**over) -> SceneEncoder:
    torch.manual_seed(0)
    return SceneEncoder(
        5, 8, 6, **{"hidden": 16, "heads": 2, "layers": 2, "head": 8, **over}
    ).eval()


def test_06_the_order_of_features_says_nothing() -> None:
    encoder, other = scene_encoder(), scene_encoder()
    vectors, present = filled(20, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    other.types.data = encoder.types.data[order]
    torch.testing.assert_close(
        other(vectors[:, order], present[:, order]), encoder(vectors, present), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("aggregate", ["agg", "mean", "concat"])
def test_06_what_is_missing_says_nothing(aggregate) -> None:
    encoder = scene_encoder(aggregate=aggregate)
    vectors, present = filled(20, 5)
    other = torch.where(present.unsqueeze(-1), vectors, torch.full_like(vectors, float("inf")))
    assert torch.equal(encoder(vectors, present), encoder(other, present))


@pytest.mark.parametrize("aggregate", ["agg", "mean", "concat"])
def test_06_without_any_feature_all_requests_have_the_learned_default(aggregate) -> None:
    encoder = scene_encoder(aggregate=aggregate)
    vectors, present = filled(4, 5)
    none = torch.zeros_like(present)
    default = encoder(vectors, none)
    assert torch.equal(default, default[:1].expand_as(default))
    with torch.no_grad():
        encoder.agg += 1.0
    assert not torch.allclose(encoder(vectors, none), default)  # it is learned


@pytest.mark.parametrize("aggregate", ["agg", "mean", "concat"])
def test_06_every_feature_matters(aggregate) -> None:
    encoder = scene_encoder(aggregate=aggregate)
    vectors, _ = filled(20, 5)
    everything = torch.ones(20, 5, dtype=torch.bool)
    z = encoder.aggregated(vectors, everything)
    for feature in range(5):
        without = everything.clone()
        without[:, feature] = False
        assert (encoder.aggregated(vectors, without) - z).abs().amax(1).min() > 1e-3


def test_06_in_the_ranker_a_missing_value_is_the_default_and_zero_is_a_switch() -> None:
    batch = some_batch(8)
    nothing = replace(
        batch,
        context=torch.zeros_like(batch.context) + MISSING,
        history_mask=torch.zeros_like(batch.history_mask),
    )
    for missing, alike in (("mask", True), ("zero", False)):
        over = planted.options().encoder.model_dump() | {"missing": missing}
        model = planted.model(planted.options(encoder=over)).eval()
        m = model.scene_vector(nothing)
        assert torch.equal(m, m[:1].expand_as(m))
        # What is unseen and has no text is missing too.
        unseen = replace(nothing, context=torch.zeros_like(batch.context) + OOV)
        torch.testing.assert_close(model.scene_vector(unseen), m)
        none = torch.zeros(8, 4, dtype=torch.bool)
        masked = model.scene_encoder(torch.zeros(8, 4, 384), none)
        assert torch.equal(m, masked)
        encoder = model.scene_encoder
        encoder.attend_missing = False
        assert torch.allclose(encoder(torch.zeros(8, 4, 384), none), m) == alike


def test_07_a_cached_vector_is_the_fresh_one_and_keys_tell_versions_apart(tmp_path: Path) -> None:
    spec = EncoderSpec()
    texts = ["It is lunch time.", "It is raining.", "雨が降っています"]
    identity = spec.identity()
    for dtype, tolerance in (("float32", 0.0), ("float16", 2e-4)):
        keys = scene_keys(identity, ["scene.weather@1"] * 3, texts)
        with TableWriter(tmp_path / dtype, TableHeader(width=384, dtype=dtype)) as writer:
            writer.append(keys, TextEncoder(spec)(texts))
        cached = VectorTable(tmp_path / dtype).get(keys)
        # One by one, so in other batches than when they were cached.
        fresh = np.concatenate([TextEncoder(spec)([text]) for text in texts])
        np.testing.assert_allclose(cached, fresh, atol=tolerance + 1e-6)
    table = VectorTable(tmp_path / "float32")
    others: list[tuple[VectorIdentity, str, str]] = [
        (identity.model_copy(update={"weights": "0" * 64}), "scene.weather@1", texts[0]),
        (identity.model_copy(update={"adapter": "0" * 64}), "scene.weather@1", texts[0]),
        (identity, "scene.weather@2", texts[0]),
        (identity, "scene.meal@1", texts[0]),
        (identity, "scene.weather@1", texts[0] + " "),
    ]
    for changed, template, text in others:
        assert (table.rows(scene_keys(changed, [template], [text])) < 0).all()


@pytest.mark.slow
def test_08_the_online_path_makes_no_llm_call_and_a_miss_is_default_counted_and_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    larr_runs.small_city(tmp_path / "city")
    run(larr_runs.tiny("ctr/larr", tmp_path / "city"), tmp_path / "run", show_progress=False)
    asked = valid_requests(tmp_path / "city", 3)
    made = TextEncoder(EncoderSpec())(["It is a strange new meal."])
    queued: list[list[Sentence]] = []

    class Handle:
        """Of an encoder deployment that answers when it is let."""

        def __init__(self) -> None:
            self.open = asyncio.Event()
            self.encode = SimpleNamespace(remote=self.answer)

        async def answer(self, sentences: list[Sentence]) -> np.ndarray:
            queued.append(sentences)
            await self.open.wait()
            return np.repeat(made, len(sentences), 0)

    def no_llm(*_: object) -> None:
        raise AssertionError("a text was encoded")

    monkeypatch.setattr(TextEncoder, "__call__", no_llm)

    def asking(meal: str | None) -> list[RankRequest]:
        return [
            RankRequest(**{**dict(request), "context": {**request.context, "mealtime": meal}})
            for request in asked
        ]

    async def scores(ranking: CTRRanking, meal: str | None) -> list[float]:
        bodies = [(await ranking.rank(request))[1] for request in asking(meal)]
        return [item["score"] for body in bodies for item in json.loads(body)["items"]]

    async def talk() -> None:
        handle = Handle()
        ranking = CTRRanking(Model(run=tmp_path / "run"), handle, most=2)
        known = await scores(ranking, "lunch")
        before = (await ranking.stats()).scene
        assert before is not None and (before.misses, before.queued) == (0, 0)
        default = ranking.predictor.score(asking("a strange new meal"))["score"].to_pylist()
        missed = await scores(ranking, "a strange new meal")
        assert sorted(missed) == pytest.approx(sorted(default), abs=1e-6)
        counted = (await ranking.stats()).scene
        assert counted is not None
        assert (counted.misses, counted.queued, counted.filled) == (3, 1, 0)
        assert counted.lookups == 2 * 3 * 4
        handle.open.set()
        while (await ranking.stats()).scene.filled == 0:
            await asyncio.sleep(0.01)
        found = await scores(ranking, "a strange new meal")
        assert sorted(found) != pytest.approx(sorted(missed), abs=1e-6)
        assert await scores(ranking, "lunch") == pytest.approx(known, abs=1e-6)
        assert (await scores(ranking, None)) != found
        for other in ("one more", "too many"):
            await scores(ranking, other)
        last = (await ranking.stats()).scene
        assert (last.missing, last.queued, last.dropped) == (3, 2, 3)
        assert last.llm_calls == before.llm_calls
        assert [s.text for batch in queued for s in batch][:1] == ["It is a strange new meal."]

    asyncio.run(talk())


def test_09_candidates_are_ranked_alike_in_any_order_and_padding_never_first() -> None:
    model = planted.train(planted.model(), steps=5)
    batch = some_batch(16)
    with torch.no_grad():
        score = model(batch).score
        order = torch.randperm(batch.candidates.shape[1])
        moved = replace(
            batch, candidates=batch.candidates[:, order], candidate_mask=batch.candidate_mask
        )
        torch.testing.assert_close(model(moved).score, score[:, order], atol=1e-6, rtol=1e-5)
        # Of the request, not of its candidates: one vector serves all of them.
        torch.testing.assert_close(model.scene_vector(moved), model.scene_vector(batch))
        wider = replace(
            batch,
            candidates=torch.nn.functional.pad(batch.candidates, (0, 3)),
            candidate_mask=torch.nn.functional.pad(batch.candidate_mask, (0, 3)),
        )
        padded = model(wider).score
    torch.testing.assert_close(padded[:, : score.shape[1]], score, atol=1e-6, rtol=1e-5)
    ranked = padded.masked_fill(~wider.candidate_mask, float("-inf")).argsort(descending=True)
    assert (ranked[:, : score.shape[1]] < score.shape[1]).all()


@pytest.mark.slow
def test_10_a_planted_rule_from_words_to_cuisine_is_found_by_alignment_alone() -> None:
    chance = 1 / len(planted.CUISINES)
    # Without the product of candidate and m, by which the click loss would align them itself.
    aligned = planted.train(planted.model(match=False))
    assert planted.hits(aligned) > 0.9
    without = planted.train(planted.model(planted.options(alignment={"weight": 0.0}), match=False))
    assert planted.hits(without) < 2 * chance
    rng = np.random.default_rng(0)
    requests = some_batch(500, seed=7)
    table = planted.table(planted.options())
    items = requests.history_items.numpy()
    shuffled = planted.model(scene=False, match=False)
    shuffled.scene.bind(
        replace(table, drawn_context=rng.permutation(requests.context.numpy()), drawn_items=items)
    )
    assert planted.hits(planted.train(shuffled)) < 2 * chance


@pytest.mark.slow
def test_10_a_value_that_training_never_met_is_where_its_words_belong() -> None:
    model = planted.train(planted.model())
    batch = some_batch(100)

    def told(value: str) -> torch.Tensor:
        code = FIRST + planted.VALUES.index(value)
        context = torch.stack([torch.full((100,), code), batch.context[:, 1]], 1)
        with torch.no_grad():
            m = model.scene_vector(replace(batch, context=context))
        return torch.nn.functional.normalize(m, dim=-1)

    for value, kin in planted.HELD_OUT.items():
        near = {seen: float((told(value) * told(seen)).sum(1).mean()) for seen in planted.SEEN}
        assert max(near, key=lambda seen: near[seen]) == kin
        others = [cosine for seen, cosine in near.items() if seen != kin]
        assert near[kin] > max(others) + 0.2
        # The ID embedding knows nothing of it: to the ranker's tables it is unseen.
        unknown = model.contexts(torch.tensor([[FIRST + planted.VALUES.index(value), FIRST]]))
        assert torch.equal(unknown, model.contexts(torch.tensor([[OOV, FIRST]])))


# --- 11: collapse ------------------------------------------------------------------------------


def test_11_spread_is_logged_and_a_collapse_is_called_one(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = two_steps(made, tmp_path / "run", "replicate", 10**6)
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"val/effective_rank"' in line and '"val/mean_cosine"' in line
    assert found["metrics"]["effective_rank"] >= 1
    caplog.clear()
    task, _ = contrast(made, World.current("cpu"), 10**6, False)
    with torch.no_grad():
        task.model.head.second.weight.zero_()
        values = task.validate(World.current("cpu"))
    assert values["mean_cosine"] == pytest.approx(1.0) and values["effective_rank"] < 1.01
    assert "collapsed" in caplog.text
    # Vectors that are all alike find nothing, not everything.
    assert values["up/recall@5"] == 0
