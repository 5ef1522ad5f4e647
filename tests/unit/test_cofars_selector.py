"""The selector's parts put together: activations, losses, pairs of contexts, options."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cofars_planted import ITEMS, SIZES, VALUES, WIDTHS, Planted, cluster, histories, train
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from raysys.cofars.build import build_selector
from raysys.cofars.config import CofarsConfig
from raysys.cofars.encoder import ContextEncoder
from raysys.cofars.graph import edges
from raysys.cofars.losses import draw_pairs, recommendation_loss
from raysys.data.attribute_counts import user_shares
from raysys.data.attributes import AttributeField, Attributes
from raysys.data.contexts import ContextFeature
from raysys.errors import DataError

LEAST = dict(
    contexts={"features": tuple(SIZES)},
    preferences={"attributes": {"fields": [{"source": "brand"}]}},
)


@pytest.fixture
def data() -> Planted:
    return Planted.of(histories([40, 0, 25], seed=6), add_target=False)


@pytest.mark.parametrize("raw", [False, True])
def test_activation_of_a_prototype_by_hand(data: Planted, raw: bool) -> None:
    selector = data.selector(init_std=1.0, raw=raw).eval()
    encoder = selector.encoder
    pointers = data.pointers([0, 1, 2], [40, 0, 25])
    pointers.context[0] = data.past.context[7]  # a context of the first user's graph
    requests = data.reader(pointers)
    assert requests.target[0] >= 0 and requests.target[1] == -1
    with torch.no_grad():
        chosen = selector(requests)
        users = encoder.users(torch.arange(3))
        users[1] = 0  # who has no event yet is nobody
        contexts = encoder.contexts(requests.node_codes, requests.node_row)
        contexts = contexts + users[requests.node_request]
        gates = chosen.membership.float()
        graph = edges(gates, requests.node_request, 3, requests.steps, self_loops=True, every=False)
        nodes = torch.cat([(users[:, None] + encoder.prototypes).flatten(0, 1), contexts])
        after = selector.graph(nodes, graph, encoder)
        state = selector.short_term(requests.recent, requests.recent_mask)
        for request in range(3):
            node = int(requests.target[request])
            alone = encoder.contexts(requests.target_codes, requests.target_row)[request]
            target = after[3 * 8 + node] if node >= 0 else alone + users[request]
            for i in range(8):
                own = after[request * 8 + i]
                sim = encoder.similarity(encoder.profile(own), encoder.profile(target))
                liking = own @ state[request]
                expected = sim * (liking if raw else torch.sigmoid(liking / math.sqrt(16)))
                torch.testing.assert_close(chosen.beta[request, i], expected)
                torch.testing.assert_close(chosen.prototypes[request, i], own)


def test_only_a_request_without_any_prototype_gets_the_best(data: Planted) -> None:
    selector = data.selector().train()
    beta = torch.full((500, 4), 0.3) + 0.01 * torch.arange(4)
    selector.choice_gate.threshold.data.fill_(0.0)
    torch.manual_seed(1)
    drawn = selector.choice_gate(beta)
    torch.manual_seed(1)
    z = selector._choose(beta)
    none = ~(drawn > 0.5).any(1)
    assert 50 < none.sum() < 450
    assert torch.equal(z[~none], drawn[~none])
    assert torch.equal(z[none], torch.tensor([[0.0, 0, 0, 1]]).expand(int(none.sum()), 4))


@pytest.mark.parametrize("literal", [False, True])
def test_the_loss_adds_its_parts(data: Planted, literal: bool) -> None:
    selector = data.selector(init_std=1.0, mse=0.5, ind=0.25, literal=literal).eval()
    requests = data.reader(data.pointers([0, 1, 2], [40, 0, 25]))
    candidates = torch.tensor([[5, 9, 11], [7, 3, 0], [4, 0, 0]])
    labels, mask = (candidates == 5).float(), candidates > 0
    torch.manual_seed(3)
    got = selector.loss(requests, candidates, labels, mask)
    chosen = selector(requests)
    vectors = selector.project(selector.items(candidates))
    scores = torch.einsum("rpd,rcd->rpc", chosen.prototypes, vectors)
    scores = scores if literal else scores / 4  # √16
    rec = recommendation_loss(scores, chosen.z, labels, mask, literal=literal).sum()
    torch.manual_seed(3)
    count = torch.tensor([3.0, 2.0, 1.0])
    mse = (selector.pair_loss(requests, chosen.users) * count).sum()
    ind = (selector.encoder.independence_loss(chosen.profiles) * count).sum()
    torch.testing.assert_close(got.rec, rec)
    torch.testing.assert_close(got.total, rec + 0.5 * mse + 0.25 * ind)
    assert got.weight == 6
    assert mse > 0 and ind < 0


def test_pairs_are_compared_with_the_logs_as_their_user_sees_them(data: Planted) -> None:
    selector = data.selector(init_std=1.0, pairs=400).eval()
    encoder = selector.encoder
    with torch.no_grad():
        users = encoder.users(torch.tensor([0, 2]))
        requests = data.reader(data.pointers([0, 2], [40, 25]))
        torch.manual_seed(2)
        got = selector.pair_loss(requests, users)
        torch.manual_seed(2)
        every = torch.full((2,), len(selector.seen_rows))
        drawn = torch.rand(2, 2, 400)
        left, right = draw_pairs(torch.zeros(2, dtype=torch.int64), every, drawn)
        base = encoder.contexts(selector.seen_codes, selector.seen_rows)
        logged = encoder.divergence.pairwise(selector.seen_shares, selector.seen_shares)
        for request in range(2):
            profile = encoder.profile(base + users[request])
            errors = (logged - encoder.divergence.pairwise(profile, profile)) ** 2
            drawn = errors[left[request], right[request]]
            torch.testing.assert_close(got[request], drawn.mean())
    one = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(DataError, match="1 contexts have enough events"):
        selector.bind_shares(one, torch.ones(1, dtype=torch.int64), torch.ones(1, 12))


def test_user_shares_compare_a_user_with_himself_only(data: Planted) -> None:
    selector = data.selector(init_std=1.0, pairs=400).eval()
    encoder = selector.encoder
    pointers = data.pointers([0, 1, 2, 2], [30, 0, 25, 1])
    contexts = data.reader.contexts(pointers)
    parent = data.shares[data.table.rows(contexts.key)]
    shares = user_shares(data.index, data.past, contexts, VALUES, WIDTHS, parent, 5.0)
    requests = data.reader(pointers, contexts)
    requests = dataclasses.replace(requests, node_shares=torch.from_numpy(shares))
    with torch.no_grad():
        users = encoder.users(torch.tensor([0, 1, 2, 2]))
        got = selector.pair_loss(requests, users)
        for request in (0, 2):
            mine = requests.node_request == request
            codes, row = requests.node_codes[mine], requests.node_row[mine]
            profile = encoder.profile(encoder.contexts(codes, row) + users[request])
            own = requests.node_shares[mine]
            logged = encoder.divergence.pairwise(own, own)
            errors = (logged - encoder.divergence.pairwise(profile, profile)) ** 2
            assert got[request] == pytest.approx(errors.mean().item(), rel=0.3)
    # No context, and one context: nothing to compare.
    assert got[1] == 0 and got[3] == 0


@given(seed=st.integers(0, 200))
def test_drawn_pairs_stay_in_their_part(seed: int) -> None:
    torch.manual_seed(seed)
    count = torch.tensor([3, 0, 1, 5])
    first = torch.tensor([0, 3, 3, 4])
    left, right = draw_pairs(first, count, torch.rand(2, 4, 50))
    for row, (low, size) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
        for side in (left, right):
            assert set(side[row].tolist()) == set(range(low, low + max(size, 1)))
    assert not torch.equal(left, right)


@pytest.mark.parametrize("loss", ["full", "warm-up"])
def test_the_noise_of_a_request_is_its_own(loss: str) -> None:
    """Cut into parts, in another order, a batch has the same gradient: noise included."""
    data = Planted.of(histories([30, 20, 40, 9], seed=2))
    selector = data.selector(user_dropout=0.5).train()
    pointers = data.pointers([0, 1, 2, 3, 2], [12, 20, 33, 9, 7])
    draw = np.array([5, 2**62, 77, 5, 1234], np.int64)

    def gradient(parts: list[list[int]], draw: np.ndarray = draw) -> torch.Tensor:
        selector.zero_grad()
        for rows in parts:
            cut = {
                name: values[rows]
                for name, values in vars(pointers).items()
                if isinstance(values, np.ndarray)
            }
            requests = data.reader(dataclasses.replace(pointers, **cut, draw=draw[rows]))
            candidates = torch.from_numpy(pointers.candidates[rows])
            mask = torch.ones_like(candidates, dtype=torch.bool)
            weight = torch.full((len(rows),), 4.0)
            if loss == "full":
                labels = torch.from_numpy(pointers.clicks[rows])
                losses = selector.loss(requests, candidates, labels, mask)
            else:
                losses = selector.warm_up_loss(requests, weight, spread=True)
            losses.total.backward()
        grads = [p.grad for p in selector.parameters() if p.grad is not None]
        return torch.cat([g.flatten() for g in grads])

    whole = gradient([[0, 1, 2, 3, 4]])
    assert whole.abs().max() > 1e-6
    for parts in ([[0, 2, 4], [1, 3]], [[4, 3, 2, 1, 0]], [[1], [0], [3], [4], [2]]):
        torch.testing.assert_close(gradient(parts), whole, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gradient([[0, 1, 2, 3, 4]], draw + 1), whole, rtol=1e-2, atol=0)


def test_options_reach_the_modules() -> None:
    data = Planted.of(histories([30, 20], seed=2))
    feature = ContextFeature(name="brand", kind="categorical", values=("a", "b", "c"))
    attributes = Attributes(fields=(AttributeField(source="brand"),), features=(feature,))

    def build(**options: object) -> torch.nn.Module:
        config = CofarsConfig.model_validate({**LEAST, **options})
        return build_selector(
            config, data.table, attributes, users=2, item_cardinalities=(2 + ITEMS,)
        )

    plain = build()
    assert plain.encoder.prototypes.shape == (16, 32)
    assert plain.encoder.widths == (3,)
    assert (plain.mse, plain.ind, plain.pairs) == (0.05, 0.001, 32)
    assert plain.encoder.users.weight.std().item() < 0.05
    assert plain.edge_gate.threshold is not None and len(plain.graph.layers) == 1
    other = build(
        encoder=dict(joint_only=True, cold_user="mean", divergence="half_jeffreys", prototypes=3),
        gates=dict(calibrated=False, soft=True, fallback=False, temperature=0.1),
        graph=dict(layers=0, attention="dot", self_loops=False),
        loss=dict(literal=True, raw=True, mse=0.0),
    )
    assert other.encoder.values is None and other.encoder.mean_user
    assert other.encoder.divergence.kind == "half_jeffreys"
    assert other.edge_gate.threshold is None and other.choice_gate.soft
    assert other.choice_gate.temperature == 0.1 and not other.fallback
    assert len(other.graph.layers) == 0 and other.graph.attention == "dot"
    assert other.literal and other.raw and not other.self_loops and other.mse == 0
    with pytest.raises(ValidationError):
        build(encoder=dict(prototype=3))


@pytest.mark.parametrize(
    "options",
    [
        dict(divergence="half_jeffreys"),
        dict(activation="sigmoid"),
        dict(activation="sigmoid", divergence="half_jeffreys", calibrated=False, raw=True),
        dict(similarity="inner"),
        dict(soft=True),
        dict(layers=0),
        dict(layers=2, attention="dot", self_loops=False),
        dict(literal=True, joint_only=True, mean_user=True),
        dict(prototypes=1),
    ],
)
def test_every_switch_trains_and_answers(options: dict[str, object]) -> None:
    data = Planted.of(histories([40, 0, 25], seed=6))
    selector = data.selector(init_std=1.0, **options).train()
    pointers = data.pointers([0, 1, 2, -1], [40, 0, 25, 0])
    requests = data.reader(pointers)
    candidates, clicks = torch.from_numpy(pointers.candidates), torch.from_numpy(pointers.clicks)
    selector.loss(requests, candidates, clicks, candidates > 0).total.backward()
    for name, parameter in selector.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    learning = ["encoder.prototypes", "encoder.joint.table.weight", "project.weight"]
    for name in learning:
        assert selector.get_parameter(name).grad.abs().sum() > 0, name
    with torch.no_grad():
        chosen = selector.eval()(requests)
    assert np.isfinite(chosen.beta.numpy()).all()
    assert (chosen.z > 0.5).any(1).all()


def test_prototypes_are_placed_on_medoids_of_contexts() -> None:
    data = Planted.of(histories([60, 60], 1))
    encoder = data.selector(init_std=1.0, prototypes=4).encoder
    keys = data.table.known_keys
    codes, rows = (torch.from_numpy(x) for x in (data.table.codes(keys), data.table.rows(keys)))
    weight = torch.from_numpy(np.random.default_rng(0).integers(1, 9, len(keys))).float()
    encoder.place_prototypes(codes, rows, weight)
    with torch.no_grad():
        vectors = encoder.contexts(codes, rows)
        shares = encoder.shares(vectors)
        apart = encoder.divergence(shares[:, None], shares[None]).numpy()
    chosen = [(vectors == o).all(1).nonzero()[0].item() for o in encoder.prototypes]
    assert len(set(chosen)) == 4
    cell = apart[:, chosen].argmin(1)
    for number, medoid in enumerate(chosen):
        mine = np.flatnonzero(cell == number)
        cost = {m: sum(float(weight[i]) * apart[m, i] for i in mine) for m in mine.tolist()}
        assert cost[medoid] == pytest.approx(min(cost.values()), abs=1e-5)


def test_forgotten_combinations_are_forgotten_only_while_training() -> None:
    torch.manual_seed(0)
    options = dict(cardinalities=(4, 4), contexts=9, users=5, widths=(3, 2), dim=8)
    encoder = ContextEncoder(**options, joint_dropout=0.5)
    rows, drawn = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0.1, 0.6], [0.5, 0.4]])
    assert encoder.train().forget(rows, drawn).tolist() == [[0, 2], [3, 0]]
    assert encoder.eval().forget(rows, drawn).tolist() == rows.tolist()
    # A context that is one vector has nothing else to be told by.
    alone = ContextEncoder(**options, joint_dropout=0.5, joint_only=True).train()
    assert alone.forget(rows, drawn).tolist() == rows.tolist()


@pytest.mark.slow
def test_unseen_combinations_find_their_cluster_if_values_learn_alone() -> None:
    rng = np.random.default_rng(5)
    every = np.stack(np.meshgrid(*(np.arange(2, 2 + n) for n in SIZES.values())), -1)
    every = rng.permutation(every.reshape(-1, 3))
    held, seen = every[:10], every[10:]
    lengths = [400] * 5
    past = histories(lengths, seed=1, contexts=seen[rng.integers(0, len(seen), sum(lengths))])
    data = Planted.of(past)
    same = cluster(held)[:, None] == cluster(seen)[None]

    def told(joint_dropout: float) -> float:
        selector = data.selector(hidden=(64,), init_std=0.1, joint_dropout=joint_dropout)
        train(selector, data, warm=400, steps=0)
        model = selector.encoder
        with torch.no_grad():
            profiles = [
                model.profile(model.contexts(codes, torch.from_numpy(data.table.rows(keys))))
                for codes, keys in (
                    (torch.from_numpy(c), data.table.keys(c.astype(np.int32))) for c in (held, seen)
                )
            ]
            sim = 1 - model.divergence.pairwise(*profiles)
        return float(roc_auc_score(same.ravel(), sim.numpy().ravel()))

    forgetful, remembering = told(0.8), told(0.0)
    assert forgetful >= 0.9
    assert forgetful >= remembering + 0.03, (forgetful, remembering)
