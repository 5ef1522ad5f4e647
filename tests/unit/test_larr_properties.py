"""The property tests of LARR by number (larr.md §6)."""

import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from larr_city import TEST_FROM, City, open_city
from torch import Tensor

from raysys.errors import MetricError
from raysys.larr.batches import PairLoader
from raysys.larr.cached import encode_cached
from raysys.larr.contrast import ContrastTask, Weights
from raysys.larr.corpus import CorpusLoader, documents, held_out, training_texts
from raysys.larr.embedding import EmbeddingHead, EmbeddingModel
from raysys.larr.packing import Packed, pack
from raysys.larr.pairs import KINDS, PairConfig, PairSets
from raysys.larr.pretrain import PretrainTask
from raysys.larr.recall import retrieval
from raysys.larr.texts import SPECIAL_TOKENS
from raysys.larr.tokens import TextTokens, append_end_token
from raysys.layers.infonce import info_nce
from raysys.llm.backbones import Backbone, open_backbone
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.llm.tuning import LoraOptions, TuningConfig, load_for_tuning, tunable
from raysys.training import CheckpointStore, InProcessReporter, Session, TrainConfig, World, fit
from raysys.training.sharding import whole

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
    loader = CorpusLoader(docs, "full", ROW, 4, tokens.pad, seed=0)
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
        loader = CorpusLoader(docs, loss, ROW, 3, tokens.pad, seed=1)
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
    append_end_token(tokens.tokenizer)
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
    asked = {kind: retrieval(sets, kind, 20, 40) for kind in KINDS}
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


# --- 4: nothing from the future ----------------------------------------------------------------


def test_04_a_users_text_holds_no_event_at_or_after_the_request(made: Path) -> None:
    log = open_city(made / "data")
    city = City()
    # The click on the place that is asked for is itself an event of the moment of the request.
    for pairs in (
        PairSets(log, PairConfig(), 0).train("up"),
        PairSets(log, PairConfig(), 0).later("up"),
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
        if event["ts"] >= TEST_FROM:
            event |= dict(item_id=f"p{rng.integers(32)}", behaviour="order")
    for shown in changed.impressions:
        if shown["split"] == "test":
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
    assert {text.split("<")[2].partition("> ")[2] for text in held_out(log)} == names


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
