"""Property tests of HKFR, numbered as in its specification (§6)."""

import math

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

from raysys.hkfr.scoring import Decoding, Scorer, ranked, scores_by_cache
from raysys.hkfr.trie import Trie, tries

# --- 7: scoring --------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("nodes", [1, 7, 512])
def test_07_all_scores_equal_a_pass_per_token(attention: str, nodes: int) -> None:
    model = tiny_model(attention=attention)
    prompts, names = random_texts(3, 9, 1), random_texts(12, 4, 2, shared=3)
    found = Scorer(model, END, PAD, nodes=nodes).score_all(prompts, names)
    plain = [[plain_score(model, prompt, name) for name in names] for prompt in prompts]
    torch.testing.assert_close(found, torch.tensor(plain), rtol=1e-4, atol=1e-3)


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
