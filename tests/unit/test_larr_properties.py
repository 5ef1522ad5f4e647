"""The property tests of LARR by number (larr.md §6)."""

import asyncio
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import larr_planted as planted
import larr_runs
import numpy as np
import pytest
import torch
from cofars_runs import valid_requests

from raysys.data.batch import Batch
from raysys.data.contexts import FIRST, MISSING, OOV
from raysys.larr.encoder import SceneEncoder
from raysys.larr.fit import scene_keys
from raysys.larr.online import Sentence
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.llm.keys import VectorIdentity
from raysys.llm.parts import TableHeader
from raysys.llm.vectors import VectorTable
from raysys.llm.writer import TableWriter
from raysys.recipes.registry import run
from serve_apps.config import Model
from serve_apps.ctr import CTRRanking
from serve_apps.schemas import RankRequest

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
