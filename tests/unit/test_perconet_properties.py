"""The property tests of PerCoNet by number (perconet.md §6)."""

import math
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import newspaper as paper
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from bench.fair.leaks import write_labels
from raysys.artifacts.export import export_run
from raysys.artifacts.predictor import Predictor
from raysys.data.batch import Batch
from raysys.data.contexts import FIRST
from raysys.data.dataset import Dataset
from raysys.data.prepared import prepare
from raysys.layers.losses import sampled_softmax
from raysys.metrics import leaks
from raysys.news.entities import fit_entities
from raysys.perconet.cards import PersonaTally
from raysys.perconet.config import PersonaOptions
from raysys.perconet.faithful import deletion
from raysys.perconet.persona import Prominence
from raysys.perconet.placebo import Placebo
from raysys.perconet.views import cross_view, text_groups
from raysys.recipes.split_scorer import SplitScorer
from raysys.training import World
from serve_apps.config import Model
from serve_apps.news import NewsRanking
from serve_apps.schemas import RankAnswer, RankRequest

# Workers of the group test are forked from a process that has imported torch already.
multiprocessing.set_forkserver_preload(["raysys.training"])
CLOSE = {"rtol": 0, "atol": 1e-5}
USERS = ("gated", "persona", "latent", "sum")
PLAIN = {"contrast": {"weight": 0.0}}


def frozen(**given: Any) -> paper.Perconet:
    made = paper.model(**given)
    made.freeze()
    return made


def scores(model: paper.Perconet, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch).score


def chosen(batch: Batch, rows: Tensor) -> Batch:
    return batch._map(lambda tensor: tensor[rows])


# --- 1: nobody else --------------------------------------------------------------------------


@pytest.mark.parametrize("placebo", [None, "shuffled", "popular"])
@pytest.mark.parametrize("user", USERS)
def test_01_scores_do_not_change_with_the_other_users_of_the_batch(user: str, placebo) -> None:
    drawn = paper.batch(5, 30).history_items.numpy()
    dealt = Placebo(
        drawn=drawn[np.argsort((drawn != 0).sum(1), kind="stable")],
        owner=np.arange(30),
        popular=np.array([3, 1]),
        popular_weight=np.array([0.75, 0.25], np.float32),
    )
    model = frozen(user=user, placebo=dealt, persona={"placebo": placebo})
    batch, other = paper.batch(0), paper.batch(1)
    mixed = Batch(
        **{
            name: torch.cat([values[:2], getattr(other, name)[2:]])
            for name, values in vars(batch).items()
            if values is not None
        },
        orders=None,
    )
    together, alone = scores(model, mixed), scores(model, chosen(batch, torch.tensor([1])))
    torch.testing.assert_close(together[:2], scores(model, batch)[:2], **CLOSE)
    torch.testing.assert_close(together[1:2], alone, **CLOSE)


# --- 2: padding ------------------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
def test_02_padding_changes_nothing_and_empty_users_and_news_have_scores(user: str) -> None:
    table = paper.entity_table()
    model, batch = frozen(user=user, table=table), paper.batch(0)
    before = scores(model, batch)
    assert torch.isfinite(before).all()
    wide = {"history_items", "history_mask", "history_behaviour", "history_age_s"}
    listed = {"candidates", "candidate_mask", "clicks"}
    more = {
        name: values if values is None else pad(values, (0, 4)) if name in wide else
        pad(values, (0, 3)) if name in listed else
        pad(values, (0, 0, 0, 4)) if name == "history_context" else values
        for name, values in vars(batch).items()
    }  # fmt: skip
    torch.testing.assert_close(scores(model, Batch(**more))[:, : before.shape[1]], before, **CLOSE)
    wider = replace(
        table, news=np.pad(table.news, ((0, 0), (0, 3))),
        confidence=np.pad(table.confidence, ((0, 0), (0, 3))),
    )  # fmt: skip
    torch.testing.assert_close(scores(frozen(user=user, table=wider), batch), before, **CLOSE)


@pytest.mark.parametrize("user", USERS)
def test_02_gradients_are_finite_without_clicks_entities_abstracts_or_candidates(user: str) -> None:
    model = paper.model(user=user).train()
    nameless = FIRST + 2  # a row divisible by four
    assert not paper.entity_table().news[nameless].any()
    batch = paper.make_batch(
        [[0, 0], [nameless, 0], [FIRST, FIRST + 7]],
        [[FIRST + 7, FIRST], [nameless, 0], [FIRST + 3, FIRST + 4]],
    )
    batch = replace(
        batch, candidate_mask=batch.candidate_mask & torch.tensor([[0], [1], [1]]).bool()
    )
    total, weight = model.loss(batch)
    assert float(weight) == 2
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- 3: order --------------------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
def test_03_permuted_candidates_have_permuted_scores(user: str) -> None:
    model, batch = frozen(user=user), paper.batch(3)
    order = torch.randperm(batch.candidates.shape[1], generator=torch.Generator().manual_seed(1))
    turned = replace(
        batch, candidates=batch.candidates[:, order], candidate_mask=batch.candidate_mask[:, order]
    )
    torch.testing.assert_close(scores(model, turned), scores(model, batch)[:, order], **CLOSE)


def prominence(table: paper.EntityTable, **given: Any) -> Prominence:
    made = Prominence(PersonaOptions(**{"clicks": 10, "size": 5, **given}))
    made.bind(table)
    return made


def as_dict(persona: Any, row: int = 0) -> dict[int, float]:
    pairs = zip(persona.entities[row].tolist(), persona.weight[row].tolist(), strict=True)
    return {entity: weight for entity, weight in pairs if entity}


def test_03_without_decay_the_order_of_the_history_says_nothing() -> None:
    table = paper.entity_table()
    history = np.array([[5, 6, 7, 9, 11, 13]])
    turned = history[:, ::-1].copy()
    for half_life, alike in ((1e12, True), (2.0, False)):
        made = prominence(table, half_life=half_life, size=20)
        one, other = (
            as_dict(made(torch.from_numpy(x), torch.ones(x.shape, dtype=torch.bool)))
            for x in (history, turned)
        )
        assert (one == pytest.approx(other)) == alike


# --- 4: prominence ---------------------------------------------------------------------------


def three_clicks() -> tuple[paper.EntityTable, Tensor]:
    """Newest first: n2 names A; n3 names A and B; n4 names B and C."""
    table = replace(
        paper.entity_table(),
        idf=np.array([0, 1.0, 2.0, 4.0] + [1.0] * 9, np.float32),
    )
    news, sure = table.news.copy(), table.confidence.copy()
    news[FIRST : FIRST + 3] = [[1, 0, 0], [1, 2, 0], [2, 3, 0]]
    sure[FIRST : FIRST + 3] = [[1.0, 0, 0], [0.5, 1.0, 0], [1.0, 0.8, 0]]
    return replace(table, news=news, confidence=sure), torch.tensor([[FIRST, FIRST + 1, FIRST + 2]])


def test_04_prominence_of_three_clicks_by_hand() -> None:
    table, clicks = three_clicks()
    mask = torch.ones(1, 3, dtype=torch.bool)
    half = 2 ** (-1 / 25)
    by_hand = {
        "all": {1: 1 + half * 0.5, 2: 2 * (half + half**2), 3: 4 * half**2 * 0.8},
        "count": {1: 2, 2: 2, 3: 1},
        "recency": {1: 1 + half, 2: half + half**2, 3: half**2},
        "idf": {1: 2, 2: 4, 3: 4},
        "confidence": {1: 1.5, 2: 2, 3: 0.8},
        "learned": {1: 1 + half * 0.5, 2: 2 * (half + half**2), 3: 4 * half**2 * 0.8},
        "even": {1: 1, 2: 1, 3: 1},
    }
    for kind, f in by_hand.items():
        found = prominence(table, prominence=kind)(clicks, mask)
        wanted = {e: value / sum(f.values()) for e, value in f.items()}
        assert as_dict(found) == pytest.approx(wanted, abs=1e-6), kind
        # Most prominent first, ties by row.
        order = [e for e in found.entities[0].tolist() if e]
        assert order == sorted(f, key=lambda e: (-f[e], e)), kind
    best = prominence(table, size=2)(clicks, mask)
    assert best.entities.tolist() == [[2, 3]]
    assert float(best.weight.sum()) == pytest.approx(1)


def test_04_learned_prominence_has_a_gradient() -> None:
    table, clicks = three_clicks()
    made = prominence(table, prominence="learned")
    made(clicks, torch.ones(1, 3, dtype=torch.bool)).weight[0, 0].backward()
    assert made.exponents is not None
    assert (made.exponents.grad.abs() > 0).all()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(FIRST, FIRST + paper.NEWS - 1), min_size=1, max_size=40),
    st.integers(1, 15),
    st.sampled_from(["all", "count", "recency", "idf", "confidence"]),
)
def test_04_click_by_click_equals_anew(rows: list[int], clicks: int, kind: str) -> None:
    table = paper.entity_table()
    options = PersonaOptions(clicks=clicks, size=8, half_life=3.0, prominence=kind)
    tally = PersonaTally(options, table)
    for count, row in enumerate(rows, 1):
        tally.click(row)
        newest = torch.tensor([rows[:count][::-1]])
        made = Prominence(options)
        made.bind(table)
        anew = as_dict(made(newest, torch.ones(newest.shape, dtype=torch.bool)))
        assert tally.weights() == pytest.approx(anew, abs=1e-6)


# --- 5: time ---------------------------------------------------------------------------------


def test_05_no_later_click_enters_persona_or_document_frequency(tmp_path: Path) -> None:
    data = prepare(Dataset(paper.write(tmp_path / "d")))
    cut = 8 * paper.DAY  # training ends
    table = fit_entities(data, PersonaOptions())
    items = data.dataset.table("items").to_pylist()
    shown = data.dataset.table("impressions").to_pylist()
    clicked = data.dataset.table("events").to_pylist()
    last: dict[str, int] = {}
    seen: set[str] = set()
    for row in shown:
        if row["split"] == "train":
            seen |= set(row["candidates"])
            last[row["user_id"]] = max(last.get(row["user_id"], 0), row["ts"])
    seen |= {e["item_id"] for e in clicked if e["ts"] < last.get(e["user_id"], 0)}
    assert max(last.values()) < cut
    assert (
        len(seen) <= paper.NEWS - paper.LATE < len({i for row in shown for i in row["candidates"]})
    )
    named = [{e["id"] for e in item["entities"]} for item in items if item["item_id"] in seen]
    for row, entity in enumerate(table.ids, 1):
        df = sum(entity in some for some in named)
        assert table.idf[row] == pytest.approx(
            max(1e-6, math.log((1 + len(seen)) / (1 + df))), abs=1e-6
        )
    # A request's clicks end before it.
    rows = data.impressions
    for index in range(0, len(rows.ids), 37):
        events = data.histories.ts[rows.start[index] : rows.end[index]]
        assert (events < rows.ts[index]).all()


# --- 6: the cross-view loss ------------------------------------------------------------------


def unit(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)


def contrast(first: Tensor, second: Tensor, group: Tensor) -> float:
    total, count = cross_view(World(0, 1, torch.device("cpu")), first, second, group, 0.1)
    return float(total) / max(1, count)


def test_06_the_loss_is_the_mean_of_rows_and_columns() -> None:
    first, second = unit(5), unit(5, 1)
    s = first @ second.T / 0.1
    diagonal = s.diagonal()
    wanted = -(diagonal - s.logsumexp(1) + diagonal - s.logsumexp(0)).sum() / 10
    assert contrast(first, second, torch.arange(5)) == pytest.approx(float(wanted), abs=1e-5)


def test_06_copies_leave_it_unchanged_and_one_news_costs_nothing() -> None:
    first, second, group = unit(5), unit(5, 1), torch.tensor([4, 2, 9, 7, 3])
    twice = torch.tensor([0, 1, 2, 3, 4, 1, 1, 3])
    assert contrast(first[twice], second[twice], group[twice]) == pytest.approx(
        contrast(first, second, group), abs=1e-6
    )
    assert contrast(first[:1], second[:1], group[:1]) == 0
    assert contrast(first[:0], second[:0], group[:0]) == 0


def test_06_equal_texts_are_one_news_and_missing_views_contribute_nothing() -> None:
    import pyarrow as pa

    items = pa.table(
        {
            "title": ["A  new day", "a new DAY", "A new day", None],
            "abstract": ["It dawned.", "it  dawned.", "Another.", None],
        }
    )
    assert text_groups(items).tolist() == [0, 1, 2, 2, 4, 5]
    model, batch = paper.model().train(), paper.batch(0)
    bare = int(FIRST + 7)  # has no abstract
    assert not paper.catalogue().vectors["abstract"][bare].any()
    views, present = model.items.views(torch.tensor([bare, FIRST + 1, FIRST + 2]))
    with_bare = model._contrast(torch.tensor([bare, FIRST + 1, FIRST + 2]), views, present)
    without = model._contrast(torch.tensor([FIRST + 1, FIRST + 2]), views[1:], present[1:])
    assert torch.equal(with_bare[0], without[0])
    assert with_bare[1] == without[1] == 2
    rows = torch.unique(batch.candidates[batch.candidate_mask])
    views, present = model.items.views(rows)
    model._contrast(rows, views, present)[0].backward()
    for name in ("title", "abstract"):
        assert float(model.items.projections[name].weight.grad.abs().sum()) > 0


def test_06_padding_is_no_negative() -> None:
    model, batch = paper.model(dropout=0.0).train(), paper.batch(0)
    total = model.loss(batch)[0]
    # What stands behind a mask is not looked at.
    dirty = replace(
        batch,
        history_items=torch.where(batch.history_mask, batch.history_items, FIRST + 39),
        candidates=torch.where(batch.candidate_mask, batch.candidates, FIRST + 38),
    )
    torch.testing.assert_close(model.loss(dirty)[0], total, **CLOSE)


# --- 7: two workers --------------------------------------------------------------------------


def global_batch() -> Batch:
    return paper.batch(7, 8, empty=False)


def loss_and_gradients(batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    model = paper.model().train()
    total, weight = model.loss(batch)
    total.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return total.detach(), weight, grads


def _in_group(rank: int, out: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{out}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    batch = global_batch()
    total, weight, grads = loss_and_gradients(batch.slice(0, 3) if rank == 0 else batch.slice(3, 8))
    for tensor in (total, weight, *grads.values()):
        dist.all_reduce(tensor)
    if rank == 0:
        torch.save({"total": total, "weight": weight, "grads": grads}, f"{out}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_07_two_workers_equal_one_on_the_global_batch(tmp_path: Path) -> None:
    batch = global_batch()
    halves = [
        set(torch.cat([b.history_items.flatten(), b.candidates.flatten()]).tolist()) - {0}
        for b in (batch.slice(0, 3), batch.slice(3, 8))
    ]
    assert halves[0] & halves[1]  # some news are on both
    total, weight, grads = loss_and_gradients(batch)
    mp.start_processes(_in_group, (str(tmp_path),), nprocs=2, start_method="forkserver")
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert float(found["weight"]) == float(weight)
    torch.testing.assert_close(found["total"], total, rtol=1e-5, atol=1e-5)
    assert set(found["grads"]) == set(grads)
    for name, grad in grads.items():
        torch.testing.assert_close(found["grads"][name], grad, rtol=1e-5, atol=1e-5, msg=name)


# --- 8: switches -----------------------------------------------------------------------------


def test_08_without_weight_the_loss_is_bitwise_the_plain_models() -> None:
    batches = [paper.batch(n, empty=False) for n in range(3)]
    plain, zero = paper.model(**PLAIN), paper.model(contrast={"weight": 0.0, "temperature": 0.7})
    batch = batches[0]
    bare, weight = sampled_softmax(plain.scores(batch), batch.candidate_mask)
    loss, told = plain.eval().loss(batch)
    assert torch.equal(loss, bare) and torch.equal(told, weight)
    assert not torch.equal(paper.model().loss(batch)[0], bare)
    contrasted = paper.model()
    for name, value in plain.state_dict().items():
        assert torch.equal(contrasted.state_dict()[name], value), name
    for model in (plain, zero):
        paper.train(model, batches, epochs=2)
    for name, value in plain.state_dict().items():
        assert torch.equal(zero.state_dict()[name], value), name
    assert torch.equal(scores(plain, batches[0]), scores(zero, batches[0]))


def test_08_a_latent_user_ignores_entities() -> None:
    table = paper.entity_table()
    other = replace(table, news=np.roll(table.news, 5, axis=0), idf=table.idf + 1)
    batch = paper.batch(2)
    for user, alike in (("latent", True), ("gated", False)):
        one, two = frozen(user=user, table=table), frozen(user=user, table=other)
        assert torch.equal(scores(one, batch), scores(two, batch)) == alike


# --- 9: explanations -------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["linear", "tanh"])
@pytest.mark.parametrize("user", USERS)
def test_09_contributions_add_up_to_the_score(user: str, act: str) -> None:
    model, batch = frozen(user=user, persona={"act": act}), paper.batch(4, 8)
    found, told = model.explain_persona(batch, paper.catalogue()), scores(model, batch)
    weights = model.event_weights(batch)
    some = batch.history_mask.any(1)
    if user == "latent":
        assert found is None
        torch.testing.assert_close(weights.sum(-1)[some], told[some], **CLOSE)
        return
    assert [len(row) for row in found] == batch.candidate_mask.sum(1).tolist()
    for row in range(len(batch)):
        for column in range(int(batch.candidate_mask[row].sum())):
            one = found[row][column]
            total = sum(part.contribution for part in one.entities) + one.latent + one.default
            assert total == pytest.approx(float(told[row, column]), abs=1e-5)
            if some[row]:
                whole = float(weights[row, column].sum()) + one.default
                assert whole == pytest.approx(float(told[row, column]), abs=1e-5)
            for part in one.entities:
                entity = model.table.ids.index(part.id) + 1
                names = {
                    click
                    for click, item in (
                        (f"n{item - FIRST}", item)
                        for item in batch.history_items[row].tolist()
                        if item
                    )
                    if entity in model.table.news[item]
                }
                assert set(part.clicks) == names
                assert part.match == (
                    entity in model.table.news[int(batch.candidates[row, column])]
                )
    assert any(part for row in found for one in row for part in one.entities)
    assert found[0][0].entities == ()


@pytest.mark.parametrize("match", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_09_the_score_is_the_formula_of_the_paper(match: bool, residual: bool) -> None:
    """s = uᵀr_c/√d with u = g·p + (1 − g)·h, computed plainly; beside it what a match adds."""
    model = frozen(residual=residual, persona={"match": match})
    batch = paper.batch(6, 4, empty=False)
    parts = model.parts(batch)
    r, c = model.items(batch.history_items), model.items(batch.candidates)
    plain = frozen(residual=False).latent["attention"](r, batch.history_mask)
    own = r * batch.history_mask.unsqueeze(-1) if residual else 0.0
    h = model.latent["pool"](plain + own, batch.history_mask)
    matched = 0
    persona = model.prominence(batch.history_items, batch.history_mask)
    e = model.vectors(persona.entities)
    for row in range(len(batch)):
        for column in range(int(batch.candidate_mask[row].sum())):
            real = persona.entities[row] != 0
            if not real.any():
                continue
            phi = (model.explicit["key"](e[row]) @ model.explicit["query"](c[row, column])) / 8**0.5
            a = torch.softmax((persona.weight[row].log() + phi)[real], 0)
            p = (a[:, None] * model.explicit["value"](e[row])[real]).sum(0)
            g = torch.sigmoid(model.explicit["gate"](torch.cat([p, h[row]])))
            u = g * p + (1 - g) * h[row]
            wanted = float(u @ c[row, column]) / 8**0.5
            if match:
                named = model.table.news[int(batch.candidates[row, column])]
                both = torch.from_numpy(np.isin(persona.entities[row][real], named))
                wanted += float(g * model.match * a[both].sum())
                matched += int(both.sum())
            assert float(parts.score[row, column]) == pytest.approx(wanted, abs=1e-5)
    assert bool(matched) == match


# --- 10: faithfulness ------------------------------------------------------------------------


def planted(count: int = 60) -> list[Batch]:
    """The first candidate names an entity that the history is full of; the others do not."""
    table, rng, out = paper.entity_table(), np.random.default_rng(3), []
    naming = [[r for r in range(FIRST, FIRST + paper.NEWS) if e in table.news[r]] for e in
              range(1 + paper.ENTITIES)]  # fmt: skip
    bare = [r for r in range(FIRST, FIRST + paper.NEWS) if not table.news[r].any()]
    for _ in range(count):
        history, shown = [], []
        for _ in range(8):
            liked = int(rng.choice([e for e in range(1, 13) if len(naming[e]) > 3]))
            others = [r for r in range(FIRST, FIRST + paper.NEWS) if liked not in table.news[r]]
            past = [*rng.choice(naming[liked], 3), *rng.choice(bare, 4)]
            rng.shuffle(past)
            history.append(past)
            shown.append([rng.choice(naming[liked]), *rng.choice(others, 4)])
        clicks = np.zeros((8, 5))
        clicks[:, 0] = 1
        out.append(paper.make_batch(history, shown, clicks))
    return out


@pytest.mark.slow
def test_10_dropping_what_supports_the_top_entity_lowers_the_score_more_than_chance() -> None:
    batches = planted()
    model = paper.model(**PLAIN)
    paper.train(model, batches[:40], epochs=5)
    model.freeze()
    found = [deletion(model, batch, seed=0) for batch in batches[40:]]
    effects = np.concatenate([one.effect for one in found])
    assert len(effects) >= 100
    assert effects.mean() - 1.96 * effects.std(ddof=1) / len(effects) ** 0.5 > 0.01


def test_10_a_certain_case() -> None:
    """One entity, one click behind it: without the click the entity adds nothing."""
    table = paper.entity_table()
    news = np.zeros_like(table.news)
    news[FIRST] = news[FIRST + 9] = [1, 0, 0]
    table = replace(table, news=news, confidence=(news > 0).astype(np.float32))
    model = frozen(user="persona", table=table)
    with torch.no_grad():
        model.default.zero_()
        # W maps the entity onto the candidate it is looked for in.
        c = model.items(torch.tensor([FIRST + 9]))[0]
        e = model.vectors(torch.tensor([1]))[0]
        model.explicit["value"].weight.copy_(torch.outer(c, e) / e.dot(e))
    batch = paper.make_batch([[FIRST, FIRST + 3, FIRST + 5, FIRST + 6]], [[FIRST + 9]], [[1.0]])
    found = deletion(model, batch, seed=0)
    wanted = float(c @ c) * model.scale + float(model.match)
    assert found.effect.tolist() == pytest.approx([wanted], rel=1e-4)


# --- 11: one model everywhere ----------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and a run of news/perconet on it, with small text vectors."""
    folder = tmp_path_factory.mktemp("perconet")
    paper.write(folder / "data")
    paper.train_run(folder / "data", folder / "run")
    return folder / "data", folder / "run"


@pytest.mark.parametrize("user", USERS)
def test_11_encoded_once_or_anew_the_scores_are_the_same(user: str) -> None:
    model, batch = paper.model(user=user).eval(), paper.batch(0)
    anew = scores(model, batch)
    model.freeze()
    torch.testing.assert_close(scores(model, batch), anew, **CLOSE)


@pytest.mark.slow
def test_11_exported_equals_eager(trained: tuple[Path, Path], tmp_path: Path) -> None:
    exported = export_run(trained[1], tmp_path / "m.pt2")
    assert exported.max_difference <= 1e-5


@pytest.mark.slow
def test_11_resumed_equals_uninterrupted(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = trained
    paper.train_run(data, tmp_path / "r", "train.max_steps=25", stop_at=12)
    resumed = paper.train_run(data, tmp_path / "r", "train.max_steps=25")
    whole = paper.train_run(data, tmp_path / "w", "train.max_steps=25")
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert whole["step"] == 25


@pytest.mark.slow
def test_11_evaluation_batch_scoring_and_serving_give_the_same_scores(
    trained: tuple[Path, Path],
) -> None:
    data, run = trained
    prepared = prepare(Dataset(data))
    scorer = SplitScorer.of(str(run), prepared, "test", lambda n: None)
    asked = [
        RankRequest(
            request_id=row["impression_id"],
            user_id=row["user_id"],
            ts=row["ts"],
            candidates=tuple(row["candidates"]),
            explain=True,
        )
        for row in Dataset(data).table("impressions").to_pylist()
        if row["split"] == "test"
    ]
    table = Predictor.load(run).score(asked)
    assert table["score"].to_numpy().tolist() == scorer.rows.score.tolist()
    served = NewsRanking(Model(run=str(run)))
    by_request: dict[str, dict[str, float]] = {}
    for row in table.to_pylist():
        by_request.setdefault(row["request_id"], {})[row["item_id"]] = row["score"]
    explained = 0
    for body in served.answer(asked):
        answer = RankAnswer.model_validate_json(body)
        assert answer.fallback is None
        assert len(answer.items) == len(by_request[answer.request_id])
        for item in answer.items:
            told = by_request[answer.request_id][item.item_id]
            assert item.score == pytest.approx(told, abs=1e-6)
            parts = item.persona
            assert parts is not None
            total = sum(e.contribution for e in parts.entities) + parts.latent + parts.default
            assert total == pytest.approx(item.score, abs=1e-5)
            explained += bool(parts.entities)
    assert explained > 20


# --- 12: leaks -------------------------------------------------------------------------------


@pytest.mark.slow
def test_12_shuffled_labels_teach_nothing_and_shuffled_histories_hurt(
    trained: tuple[Path, Path],
) -> None:
    data, run = trained
    prepared = prepare(Dataset(data))
    scorer = SplitScorer.of(str(run), prepared, "test", lambda n: None)

    def retrained(labels: Any) -> np.ndarray:
        folder = run.parent / f"shuffled-{abs(hash(np.asarray(labels).tobytes()))}"
        write_labels(prepared.dataset, folder / "data", np.asarray(labels))
        paper.train_run(folder / "data", folder / "run")
        again = prepare(Dataset(folder / "data"))
        return SplitScorer.of(str(folder / "run"), again, "test", lambda n: None).rows.score

    log = prepared.impressions
    rows = log.rows(np.sort(np.concatenate([log.of("train"), log.of("valid")])))
    labels = log.click[rows].astype(np.int64)
    groups = np.arange(len(labels))
    shuffled = leaks.shuffled_labels(
        scorer.rows, "impression", retrained, labels, groups, None, 0, 3, False
    )
    assert shuffled.passed, shuffled
    history = leaks.shuffled_history(
        scorer.rows, "impression", scorer, scorer.history_lengths(), 0, 500
    )
    assert history.passed, history
