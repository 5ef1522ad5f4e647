"""Explanations of retrieval against plain scans of the histories; figures of the selector."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from cofars_planted import FIELDS, ITEMS, SIZES, WIDTHS, Planted, histories
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.artifacts.retrieval import RetrievalExplanation
from raysys.cofars.explain import Explainer, back_off_step, top_values
from raysys.cofars.lists import Lists
from raysys.cofars.pictures import MAX_CONTEXTS, MAX_NODES, example_user, pictures
from raysys.cofars.retriever import CofarsRetriever
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import MISSING, OOV, ContextFeature, bands
from raysys.data.schema import BEHAVIOURS
from raysys.tracking.figures import GraphFigure, HeatmapFigure

LENGTHS = [40, 0, 7, 60]
PRICES = ["< 10", "10 – 20", "20 – 30", "≥ 30"]
CATALOGUE = Catalogue(
    pa.array([f"item{n}" for n in range(ITEMS)]), np.zeros((2 + ITEMS, 0), np.int32)
)


def planted(seed: int) -> Planted:
    rng = np.random.default_rng(seed)
    contexts = rng.integers(2, 4, (sum(LENGTHS), len(SIZES)))
    return Planted.of(histories(LENGTHS, seed, contexts))


def chosen_by(seed: int, **options: object) -> tuple[Planted, CofarsRetriever]:
    """A random selector whose gates are half open."""
    data = planted(seed)
    selector = data.selector(seed, init_std=1.0, **options).eval()
    pointers = data.pointers([0, 3], [40, 60])
    with torch.no_grad():
        selector.calibrate(data.reader(pointers), 60.0, 60.0)
        selector.eval()
    lists = Lists.build(selector, data.table, data.index, np.arange(4), "m")
    return data, CofarsRetriever(selector, data.reader, lists, events=12)


def words(codes: np.ndarray) -> dict[str, str]:
    """Of a code row of the planted contexts."""
    other = {MISSING: "(missing)", OOV: "(unseen)"}
    named = zip(SIZES, codes.tolist(), strict=True)
    return {name: other.get(code, f"{name}{code - 2}") for name, code in named}


@settings(max_examples=8)
@given(seed=st.integers(0, 200))
def test_an_explanation_is_what_a_scan_of_the_choice_says(seed: int) -> None:
    data, retriever = chosen_by(seed)
    pointers = data.pointers([0, 1, 2, 3, -1, 3], [40, 0, 7, 31, 0, 1], seed)
    found = Explainer(retriever, FIELDS, CATALOGUE, contexts=99, events=2)(pointers)
    choice = retriever.choose(pointers)
    selection = choice.selection
    for row, said in enumerate(found):
        assert said.target == words(pointers.context[row])
        active = np.flatnonzero(selection.z[row] > 0.5).tolist()
        assert [p.prototype for p in said.prototypes] == active
        assert len(active) >= 1
        for prototype in said.prototypes:
            beta = float(selection.beta[row, prototype.prototype])
            assert prototype.beta == beta
            assert prototype.forced == (beta <= said.threshold)
            assert prototype.similarity == float(selection.target[row, prototype.prototype])
            assert 0 <= prototype.similarity <= 1
            # β is the similarity times a number below 1.
            assert 0 <= beta < prototype.similarity
        begin = pointers.start[row]
        positions = [p for p in choice.events.positions[row].tolist() if p >= 0]
        assert said.events == len(positions)
        by_context: dict[str, list[int]] = {}
        for position in positions:  # newest first
            name = json.dumps(words(data.past.context[begin + position]))
            by_context.setdefault(name, []).append(begin + position)
        assert {json.dumps(part.context): part.events for part in said.contexts} == {
            name: len(rows) for name, rows in by_context.items()
        }
        totals = [0] * len(said.back_off)
        for part in said.contexts:
            totals[part.step] += part.events
            mine = by_context[json.dumps(part.context)]
            assert [event.item_id for event in part.newest] == [
                f"item{data.past.item[r] - 2}" for r in mine[:2]
            ]
            assert [event.ts for event in part.newest] == data.past.ts[mine[:2]].tolist()
            assert {event.behaviour for event in part.newest} == {BEHAVIOURS[0]}
            assert [link.prototype for link in part.links] == active
            step = said.back_off[part.step]
            brought = any(link.belongs for link in part.links)
            same = part.context == said.target
            assert (brought or same) == (step.dropped == () and not step.recent)
            if step.dropped:
                assert all(part.context[n] == said.target[n] for n in ("meal", "place"))
        assert [step.events for step in said.back_off] == totals
        order = [(part.step, -part.events) for part in said.contexts]
        assert order == sorted(order)


def test_long_explanations_are_cut_and_say_so() -> None:
    data, retriever = chosen_by(5)
    pointers = data.pointers([3], [60])
    (whole,) = Explainer(retriever, FIELDS, CATALOGUE, contexts=99)(pointers)
    (short,) = Explainer(retriever, FIELDS, CATALOGUE, contexts=1)(pointers)
    assert len(whole.contexts) > 1 and whole.contexts_left_out == 0
    assert short.contexts == whole.contexts[:1]
    assert short.contexts_left_out == len(whole.contexts) - 1
    assert short.back_off == whole.back_off and short.events == whole.events


def test_likes_are_the_largest_predicted_shares_of_the_user() -> None:
    data, retriever = chosen_by(6)
    encoder = retriever.selector.encoder
    pointers = data.pointers([0, -1], [40, 0])
    for said, user in zip(
        Explainer(retriever, FIELDS, CATALOGUE)(pointers), (0, None), strict=True
    ):
        assert said.known_user == (user is not None)
        for prototype in said.prototypes:
            vector = encoder.prototypes[prototype.prototype]
            if user is not None:
                vector = vector + encoder.users.weight[user]
            logits = encoder.head(vector).detach().double().numpy()
            for name, part, labels in (
                ("brand", logits[: WIDTHS[0]], FIELDS.features[0].values),
                ("price", logits[WIDTHS[0] :], PRICES),
            ):
                share = np.exp(part) / np.exp(part).sum()
                best = sorted(range(len(share)), key=lambda i: -share[i])[:3]
                got = prototype.likes[name]
                assert [value.value for value in got] == [labels[i] for i in best]
                assert [value.share for value in got] == pytest.approx(share[best], abs=1e-6)


def test_a_stranger_in_an_unseen_context_is_explained_too() -> None:
    data, retriever = chosen_by(7)
    pointers = data.pointers([-1, 0], [0, 40])
    pointers.context[:] = OOV, MISSING, 2
    nobody, user = Explainer(retriever, FIELDS, CATALOGUE)(pointers)
    assert nobody.target == {"meal": "(unseen)", "place": "(missing)", "weather": "weather0"}
    assert not nobody.known_user and not nobody.known_context
    assert nobody.missing == user.missing == ("place",)
    assert nobody.contexts == nobody.back_off == () and nobody.events == 0
    assert user.known_user and user.events == 12
    assert RetrievalExplanation.model_validate_json(user.model_dump_json()) == user
    met = data.pointers([0], [40])
    met.context[:] = data.past.context[0]
    (known,) = Explainer(retriever, FIELDS, CATALOGUE)(met)
    assert known.known_context and known.missing == ()


def test_candidates_have_no_part_in_it() -> None:
    data, retriever = chosen_by(8)
    pointers = data.pointers([0, 3], [30, 60])
    other = data.pointers([0, 3], [30, 60], candidates=9)
    other.context[:] = pointers.context
    explain = Explainer(retriever, FIELDS, CATALOGUE)
    assert explain(pointers) == explain(other)


def test_steps_of_back_off_in_words() -> None:
    drop = ("day", "weather")
    steps = [back_off_step(drop, tier, 1) for tier in range(4)]
    assert [(s.dropped, s.recent) for s in steps] == [
        ((), False),
        (("day",), False),
        (("day", "weather"), False),
        ((), True),
    ]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6, unique=True), st.floats(-2e6, 2e6))
def test_a_number_has_the_name_of_its_band(values: list[float], number: float) -> None:
    edges = tuple(sorted(values))
    feature = ContextFeature(name="price", kind="numeric", edges=edges)
    assert len(set(feature.labels)) == feature.cardinality
    label = feature.labels[feature.encode(pa.array([number]))[0]]
    assert label in feature.labels[2:]
    if label[0] == "<":
        assert number < edges[0]
    elif label[0] == "≥":
        assert number >= edges[-1]
    else:
        assert edges[0] <= number < edges[-1]


def test_bands_by_hand() -> None:
    assert bands((9.95000001, 20)) == ("< 9.95", "9.95 – 20", "≥ 20")
    assert bands((1700000000000.0, 1700000000001.0))[1] == "1700000000000 – 1700000000001"
    assert bands(()) == ("any",)


def test_joint_fields_name_pairs() -> None:
    joint = FIELDS.model_copy(update={"joint": True})
    (labels,) = joint.labels
    assert len(labels) == joint.widths[0]
    items = pa.table(dict(brand=["brand3"], price=[25.0], item_id=["a"]))
    assert labels[joint.encode(items)[2, 0]] == "brand3 × 20 – 30"
    shares = np.zeros(len(labels), np.float32)
    shares[9] = 1
    assert top_values(joint, shares, 1)[joint.names[0]][0].value == labels[9]


def test_maps_show_what_the_encoder_predicts() -> None:
    data, retriever = chosen_by(9)
    selector, table = retriever.selector, data.table
    found = pictures(selector, table, FIELDS, retriever.lists, np.arange(4))
    map_, close = found["cofars-contexts"], found["cofars-prototypes"]
    assert isinstance(map_, HeatmapFigure) and isinstance(close, HeatmapFigure)
    assert map_.x == map_.y == close.y
    assert len(map_.x) == min(MAX_CONTEXTS, len(np.unique(retriever.lists.index.key)))
    encoder = selector.encoder

    def shares(vector: torch.Tensor) -> list[np.ndarray]:
        logits = encoder.head(vector).detach().double().numpy()
        parts = [logits[: WIDTHS[0]], logits[WIDTHS[0] :]]
        return [np.exp(part) / np.exp(part).sum() for part in parts]

    def alike(one: list[np.ndarray], two: list[np.ndarray]) -> float:
        lost = []
        for p, q in zip(one, two, strict=True):
            m = (p + q) / 2
            lost.append(0.5 * (p * np.log2(p / m)).sum() + 0.5 * (q * np.log2(q / m)).sum())
        return 1 - float(np.mean(lost))

    by_name = {}
    for key in np.unique(retriever.lists.index.key).tolist():
        codes = table.codes(np.array([key]))
        vector = encoder.contexts(torch.from_numpy(codes), torch.from_numpy(table.rows(
            np.array([key]))))[0]  # fmt: skip
        by_name[" · ".join(words(codes[0]).values())] = shares(vector)
    prototypes = [shares(vector) for vector in encoder.prototypes]
    best = []
    for row, name in enumerate(map_.y):
        bar, _, own = name.partition(" | ")
        near = [alike(by_name[own], prototype) for prototype in prototypes]
        assert close.values[row] == pytest.approx(near, abs=2e-4)
        assert near[int(bar)] == pytest.approx(max(near), abs=1e-6)
        best.append(int(bar))
        others = [alike(by_name[own], by_name[n.partition(" | ")[2]]) for n in map_.x]
        assert map_.values[row] == pytest.approx(others, abs=2e-4)
    assert best == sorted(best)


def test_the_graph_holds_the_lists_of_one_user() -> None:
    data, retriever = chosen_by(10)
    lists = retriever.lists
    found = pictures(retriever.selector, data.table, FIELDS, lists, np.arange(4))["cofars-graph"]
    assert isinstance(found, GraphFigure)
    sizes = [len({tuple(c) for c in data.past.context[a:b].tolist()}) for a, b in
             zip(data.past.start[:-1], data.past.start[1:], strict=True)]  # fmt: skip
    fitting = [n if n <= MAX_NODES else 0 for n in sizes]
    user = fitting.index(max(fitting))
    own = data.past.context[data.past.start[user] : data.past.start[user + 1]]
    names = [" · ".join(words(codes).values()) for codes in own]
    contexts = {n.id: n for n in found.nodes if n.group == "context"}
    assert {n.label: n.weight for n in contexts.values()} == {n: names.count(n) for n in names}
    label = {key: node.label for key, node in contexts.items()}
    steps = {(label[e.source], label[e.target]) for e in found.edges if e.group == "followed by"}
    assert steps == {(a, b) for a, b in pairwise(names) if a != b}
    brings = {(e.source, label[e.target]) for e in found.edges if e.group == "brings"}
    seen = lists.index.contexts(np.array([user]), np.array([len(own)]))
    member = lists.membership(seen)
    table_names = [" · ".join(words(c).values()) for c in data.table.codes(seen.key)]
    assert brings == {(f"prototype {p}", table_names[s]) for s, p in np.argwhere(member)}


def test_the_example_is_the_largest_that_fits() -> None:
    assert example_user(np.array([0, 3, MAX_NODES, MAX_NODES + 1, MAX_NODES])) == 2
    assert example_user(np.array([0, 90, 80, 99])) == 2


def test_pictures_of_nobody() -> None:
    data = Planted.of(histories([0]), known=planted(0).past.context)
    selector = planted(0).selector()
    lists = Lists.build(selector, data.table, data.index, np.arange(1), "m")
    assert pictures(selector, data.table, FIELDS, lists, np.arange(1)) == {}
