"""The fourteen properties that CoFARS has to have, whatever it is trained on."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cofars_planted import CLUSTERS, VALUES, WIDTHS, Planted, cluster, histories, train
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import normalized_mutual_info_score

from raysys.artifacts.ranker import Scores
from raysys.cofars.encoder import ContextEncoder
from raysys.cofars.graph import GraphAggregator, edge_softmax, edges
from raysys.cofars.lists import Lists, assign
from raysys.cofars.losses import recommendation_loss
from raysys.cofars.requests import Requests
from raysys.cofars.retriever import CofarsRetriever
from raysys.cofars.selector import CofarsSelector
from raysys.ctr.ranker import CTRRanker
from raysys.data.attribute_counts import count_contexts
from raysys.data.batch import Batch, Pointers
from raysys.layers import divergence as divergence_module
from raysys.layers.divergence import Divergence
from raysys.layers.gates import Gate

SEEDS = st.integers(0, 1000)


def rows(count: int, seed: int, zeros: bool = False) -> torch.Tensor:
    """Random shares [count, W] of the fields of WIDTHS."""
    rng = np.random.default_rng(seed)
    parts = [rng.dirichlet(np.full(width, 0.3), count) for width in WIDTHS]
    if zeros:
        parts = [np.where(part < 0.1, 0, part) for part in parts]
        parts = [part / part.sum(1, keepdims=True) for part in parts]
    return torch.tensor(np.concatenate(parts, 1), dtype=torch.float32)


def retriever(data: Planted, selector: CofarsSelector, events: int = 20) -> CofarsRetriever:
    users = np.arange(len(data.past.users))
    lists = Lists.build(selector, data.table, data.index, users, "m")
    return CofarsRetriever(selector, data.reader, lists, events=events)


def encoder(**options: object) -> ContextEncoder:
    torch.manual_seed(0)
    base = dict(cardinalities=(4, 4), contexts=9, users=5, widths=WIDTHS, dim=8, init_std=1.0)
    return ContextEncoder(**{**base, **options}).eval()


@given(seed=SEEDS, zeros=st.booleans())
def test_01_js_is_a_bounded_distance_and_half_jeffreys_is_as_printed(
    seed: int, zeros: bool
) -> None:
    p, q = rows(5, seed, zeros), rows(5, seed + 1, zeros)
    p[0] = q[0]
    js = Divergence(WIDTHS)
    got = js(p, q)
    assert torch.equal(got, js(q, p))
    assert got[0] == 0
    assert (got[1:] > 0).all() and (got <= 1).all()
    expected = []
    for a, b in zip(p.double().numpy(), q.double().numpy(), strict=True):
        fields = []
        for part in (slice(0, WIDTHS[0]), slice(WIDTHS[0], None)):
            x, y = a[part], b[part]
            m = (x + y) / 2
            fields.append(
                sum(
                    0.5 * u * math.log2(u / w)
                    for s in (x, y)
                    for u, w in zip(s, m, strict=True)
                    if u
                )
            )
        expected.append(fields)
    np.testing.assert_allclose(js.by_field(p, q).numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(got.numpy(), np.mean(expected, 1), atol=2e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence_module, "_CELLS", 100)  # several blocks
        pairs = js.pairwise(p, q[:3])
        left, right = torch.tensor([0, 1, 4, 2] * 5), torch.tensor([1, 1, 0, 3] * 5)
        along = js.between(p, left, right)
        wide = p.clone().requires_grad_()
        js.pairwise(wide, q[:3]).sum().backward()
    whole = p.clone().requires_grad_()
    js(whole[:, None], q[None, :3]).sum().backward()
    torch.testing.assert_close(pairs, js(p[:, None], q[None, :3]))
    torch.testing.assert_close(along, js(p[left], p[right]))
    torch.testing.assert_close(wide.grad, whole.grad)
    assert torch.isfinite(whole.grad).all()
    # Far ends: nothing in common is 1.
    apart = torch.eye(2), torch.eye(2).flip(0)
    assert Divergence((2,))(*apart).tolist() == [1.0, 1.0]


def test_01_half_jeffreys_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    exact = Divergence((2,), "half_jeffreys", smoothing=0.0)(p, q)
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    back = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert exact.item() == pytest.approx((kl + back) / 2, rel=1e-5)
    smooth = Divergence((2,), "half_jeffreys", smoothing=0.1)
    a, b = 1.1 / 1.2, 0.1 / 1.2
    got = smooth(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert got.item() == pytest.approx((a - b) * math.log(a / b), rel=1e-5)  # unbounded: > 1
    assert got > 1
    assert smooth(p, p) == 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid_shares"])
@given(seed=SEEDS)
@settings(max_examples=15)
def test_02_predicted_shares_add_up_and_similarities_lie_in_01(activation: str, seed: int) -> None:
    model = encoder(activation=activation)
    torch.manual_seed(seed)
    x = 3 * torch.randn(6, 8)
    shares = model.shares(x)
    for field in shares.split(WIDTHS, -1):
        torch.testing.assert_close(field.sum(-1), torch.ones(6))
        assert (field > 0).all()
    sim = model.similarities(shares, shares[None], torch.zeros(6, dtype=torch.int64))
    assert ((sim >= 0) & (sim <= 1)).all()
    assert (sim.diagonal() == 1).all()
    assert sim.min() < 1
    raw = encoder(activation="sigmoid").shares(x)
    assert not torch.allclose(raw.split(WIDTHS, -1)[0].sum(-1), torch.ones(6))
    inner = encoder(similarity="inner")
    expected = 1 / (1 + math.exp(-float(x[0] @ x[1]) / math.sqrt(8)))
    assert inner.similarity(x[0], x[1]).item() == pytest.approx(expected, rel=1e-5)


def test_03_gate_is_on_as_often_as_beta_says() -> None:
    gate = Gate(calibrated=False)
    torch.manual_seed(0)
    for beta in (0.05, 0.3, 0.5, 0.9):
        drawn = gate(torch.full((20_000,), beta))
        assert set(drawn.tolist()) <= {0.0, 1.0}
        assert drawn.mean().item() == pytest.approx(beta, abs=4 * math.sqrt(0.25 / 20_000))
    for temperature in (0.1, 1.0, 2.0):
        gate = Gate(temperature=temperature, calibrated=False)
        for value in (0.01, 0.5, 0.99, 1.0, 0.0):
            beta = torch.full((2000,), value, requires_grad=True)
            gate(beta).sum().backward()
            assert torch.isfinite(beta.grad).all()
            assert (beta.grad >= 0).all()
            if 0 < value < 1:
                assert beta.grad.sum() > 0


def test_03_gate_without_noise_follows_its_threshold() -> None:
    gate = Gate().eval()
    beta = torch.linspace(0.01, 0.99, 99)
    gate.calibrate(beta, 70.0)
    first = gate(beta)
    assert torch.equal(first, gate(beta))
    assert torch.equal(first > 0.5, torch.arange(99) > round(0.7 * 98))
    assert torch.equal(gate.on(beta), first > 0.5)
    scale = torch.tensor(2.0)
    with torch.no_grad():
        gate.log_scale.copy_(scale.log())
    odds = torch.log(beta / (1 - beta))
    threshold = odds.sort().values[round(0.7 * 98)]
    torch.testing.assert_close(gate.logits(beta), 2 * (odds - threshold), rtol=1e-3, atol=1e-4)
    literal = Gate(calibrated=False).eval()
    literal.calibrate(beta, 70.0)
    assert torch.equal(literal.on(beta[beta != beta[49]]), beta[beta != beta[49]] > 0.5)
    soft = Gate(soft=True, calibrated=False, temperature=2.0).eval()
    torch.testing.assert_close(soft(beta), torch.sigmoid(odds / 2))


@pytest.fixture(scope="module")
def world() -> Planted:
    return Planted.of(histories([400] * 12, seed=7))


@pytest.fixture(scope="module")
def trained(world: Planted) -> CofarsSelector:
    selector = world.selector(hidden=(64,), init_std=0.1, ind=1e-2, mse=5.0)
    train(selector, world)
    return selector


@pytest.mark.slow
def test_04_gates_stay_between_all_and_none_after_training(
    world: Planted, trained: CofarsSelector
) -> None:
    with torch.no_grad():
        chosen = trained(world.reader(world.pointers(list(range(12)), [400] * 12)))
    assert 0.02 < chosen.density < 0.8
    assert chosen.density == pytest.approx(chosen.membership.float().mean().item())


@given(seed=SEEDS, scale=st.sampled_from([0.01, 1.0, 100.0]))
@settings(max_examples=15)
def test_05_prototypes_can_gain_one_at_most_by_spreading(seed: int, scale: float) -> None:
    model = encoder(prototypes=5)
    torch.manual_seed(seed)
    profiles = model.profile(scale * torch.randn(3, 5, 8))
    loss = model.independence_loss(profiles)
    assert ((loss >= -1) & (loss <= 0)).all()
    expected = -torch.stack(
        [
            torch.stack([model.divergence(a, b) for a in request for b in request]).mean()
            for request in profiles
        ]
    )
    torch.testing.assert_close(loss, expected)


def test_06_aggregation_by_hand() -> None:
    torch.manual_seed(0)
    model = encoder(prototypes=1)
    layer = GraphAggregator(8, 1)
    # Prototype 0, contexts 1, 2, 3; step 1 → 2; gate to context 1 only.
    gates = torch.tensor([[1.0], [0.0], [0.0]])
    steps = torch.tensor([[0, 1], [1, 1]])
    nodes = torch.randn(4, 8)
    graph = edges(gates, torch.zeros(3, dtype=torch.int64), 1, steps, self_loops=True, every=True)
    message = layer.layers[0](nodes)
    before = {0: [0, 1], 1: [0, 1], 2: [1, 2], 3: [3]}
    expected = []
    for node, own in before.items():
        sims = torch.stack(
            [model.similarity(model.profile(message[node]), model.profile(message[j])) for j in own]
        )
        expected.append(torch.relu(sims.softmax(0) @ message[own]))
    torch.testing.assert_close(layer(nodes, graph, model), torch.stack(expected))
    fewer = edges(gates, torch.zeros(3, dtype=torch.int64), 1, steps, self_loops=True, every=False)
    assert len(fewer.source) < len(graph.source)
    torch.testing.assert_close(layer(nodes, fewer, model), torch.stack(expected))


def test_06_edges_follow_time_and_the_isolated_stand_alone() -> None:
    torch.manual_seed(0)
    model, layer = encoder(prototypes=2), GraphAggregator(8, 1)
    gates, request = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    steps = torch.tensor([[0], [1]])  # context 0 then context 1; context 2 stands alone
    nodes = torch.randn(5, 8, requires_grad=True)

    def influences(self_loops: bool) -> list[list[bool]]:
        graph = edges(gates, request, 1, steps, self_loops=self_loops, every=True)
        out = layer(nodes, graph, model)
        if self_loops:
            assert (out != 0).any(1).all()
        found = []
        for node in range(5):
            (gradient,) = torch.autograd.grad(out[node].sum(), nodes, retain_graph=True)
            found.append((gradient != 0).any(1).tolist())
        return found

    alone = np.eye(5, dtype=bool)
    alone[3, 2] = True  # nodes 2, 3, 4 are the contexts; the later one hears of the earlier one
    assert influences(True) == alone.tolist()
    only_steps = np.zeros((5, 5), bool)
    only_steps[3, 2] = True
    assert influences(False) == only_steps.tolist()


@pytest.mark.parametrize("attention", ["similarity", "dot"])
def test_06_nobody_hears_of_other_users(attention: str) -> None:
    data = Planted.of(histories([40, 30, 50], seed=1))
    selector = data.selector(init_std=1.0, layers=2, attention=attention).eval()
    pointers = data.pointers([0, 1, 2, 1], [40, 30, 17, 12])
    with torch.no_grad():
        together = selector(data.reader(pointers))
        for request in range(4):
            one = one_of(pointers, request)
            alone = selector(data.reader(one))
            torch.testing.assert_close(together.prototypes[request], alone.prototypes[0])
            torch.testing.assert_close(together.beta[request], alone.beta[0])


def one_of(pointers: Pointers, request: int) -> Pointers:
    own = slice(request, request + 1)
    changes = {
        name: getattr(pointers, name)[own]
        for name in ("start", "end", "ts", "context", "candidates", "clicks")
    }
    return dataclasses.replace(pointers, **changes)


def test_06_gates_learn_from_edges_that_are_off() -> None:
    graph = edges(
        torch.tensor([[0.0, 1.0]], requires_grad=True),
        torch.zeros(1, dtype=torch.int64),
        1,
        torch.zeros(2, 0, dtype=torch.int64),
        self_loops=True,
        every=True,
    )
    score = torch.tensor([500.0, 1.0, 500.0, 1.0, 0.0, 0.0, 0.0])
    alpha = edge_softmax(score, graph, 3)
    # An absent edge of a huge score takes nothing away from the others.
    sums = torch.zeros(3).index_add(0, graph.target, alpha)
    torch.testing.assert_close(sums, torch.ones(3))
    assert alpha[0] == 0 and alpha[2] == 0


@given(seed=SEEDS)
@settings(max_examples=10)
def test_07_every_request_has_a_prototype(seed: int) -> None:
    data = Planted.of(histories([20, 0, 35], seed=seed % 7))
    for soft in (False, True):
        selector = data.selector(seed, init_std=1.0, soft=soft)
        with torch.no_grad():
            selector.choice_gate.threshold.fill_(50.0)  # nothing passes
        pointers = data.pointers([0, 1, 2, -1], [20, 0, 35, 0])
        for mode in (False, True):
            chosen = selector.train(mode)(data.reader(pointers))
            on = chosen.z > 0.5
            assert (on.sum(1) == 1).all()
            assert torch.equal(on.float().argmax(1), chosen.beta.argmax(1))


@pytest.mark.parametrize("options", [{}, {"literal": True}, {"raw": True}, {"soft": True}])
def test_07_no_prototype_at_all_gives_finite_losses_and_gradients(
    options: dict[str, bool],
) -> None:
    data = Planted.of(histories([20, 0, 35]))
    selector = data.selector(init_std=1.0, fallback=False, **options).train()
    with torch.no_grad():
        selector.choice_gate.threshold.fill_(200.0)
    pointers = data.pointers([0, 1, 2, -1], [20, 0, 35, 0])
    candidates, clicks = torch.from_numpy(pointers.candidates), torch.from_numpy(pointers.clicks)
    requests = data.reader(pointers)
    assert not (selector(requests).z > 0.5).any()
    losses = selector.loss(requests, candidates, clicks, candidates > 0)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    for name, parameter in selector.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name


def test_07_recommendation_loss_by_hand() -> None:
    scores = torch.tensor([[[0.3, -1.0, 9.0], [2.0, 0.5, 9.0]]])
    z, labels = torch.tensor([[0.25, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, False]])

    def bce(p: float, y: float) -> float:
        return -math.log(p) if y else -math.log(1 - p)

    def said(i: int, v: int) -> float:
        return 1 / (1 + math.exp(-scores[0, i, v].item()))

    expected = sum(
        (0.25 * bce(said(0, v), y) + 1.0 * bce(said(1, v), y)) / 1.25 for v, y in ((0, 1), (1, 0))
    )
    got = recommendation_loss(scores, z, labels, mask)
    assert got.tolist() == pytest.approx([expected], rel=1e-5)
    low, high = 1e-6, 1 - 1e-6
    printed = sum(
        bce(min(max(z[0, i].item() * scores[0, i, v].item(), low), high), y)
        for i in (0, 1)
        for v, y in ((0, 1), (1, 0))
    )
    got = recommendation_loss(scores, z, labels, mask, literal=True)
    assert got.tolist() == pytest.approx([printed], rel=1e-3)


@given(seed=SEEDS)
@settings(max_examples=10)
def test_08_candidates_have_no_part_in_retrieval(seed: int) -> None:
    data = Planted.of(histories([60, 25], seed=2))
    selector = data.selector(init_std=1.0)
    find = retriever(data, selector)
    pointers = data.pointers([0, 1, 0], [60, 25, 44], candidates=6)
    order = np.random.default_rng(seed).permutation(6)
    expected = find.rows(pointers, data.past)
    for candidates in (
        pointers.candidates[:, order],
        pointers.candidates[:, :1],
        np.concatenate([pointers.candidates, 2 + pointers.candidates[:, ::-1] % 7], 1),
    ):
        changed = dataclasses.replace(pointers, candidates=candidates)
        assert find.rows(changed, data.past).tolist() == expected.tolist()
    requests = data.reader(pointers)
    candidates, clicks = torch.from_numpy(pointers.candidates), torch.from_numpy(pointers.clicks)
    rec = [
        selector.loss(requests, candidates[:, o], clicks[:, o], candidates > 0).rec.item()
        for o in (np.arange(6), order)
    ]
    assert rec[0] == pytest.approx(rec[1], rel=1e-5)


def test_09_padding_carries_nothing() -> None:
    data = Planted.of(histories([40, 3, 0], seed=4))
    selector = data.selector(init_std=1.0).eval()
    pointers = data.pointers([0, 1, 2, -1], [40, 3, 0, 0])
    requests = data.reader(pointers)
    assert requests.recent_mask.sum(1).tolist() == [20, 3, 0, 0]
    dirty = requests.recent.masked_fill(~requests.recent_mask, 17)
    with torch.no_grad():
        state = selector.short_term(requests.recent, requests.recent_mask)
        torch.testing.assert_close(selector.short_term(dirty, requests.recent_mask), state)
        three = requests.recent[1:2, :3]
        short = selector.short_term(three, torch.ones(1, 3, dtype=torch.bool))
        torch.testing.assert_close(state[1:2], short)
        turned = selector.short_term(three.flip(1), torch.ones(1, 3, dtype=torch.bool))
        assert not torch.allclose(turned, short)
        assert not state[2:].any()
        oldest_first = selector.project(selector.items(three.flip(1)))
        torch.testing.assert_close(selector.state(oldest_first)[1][0], short)
        candidates = torch.tensor([[5, 9, 0]] * 4)
        labels, mask = torch.tensor([[1.0, 0.0, 0.0]] * 4), candidates > 0
        loss = selector.loss(requests, candidates, labels, mask).rec
        other = torch.where(mask, candidates, 11)
        torch.testing.assert_close(selector.loss(requests, other, labels + (~mask), mask).rec, loss)
    rows_ = retriever(data, selector).rows(pointers, data.past)
    assert ((rows_ >= 0).sum(1) == np.array([20, 3, 0, 0])).all()
    assert (np.diff((rows_ < 0).astype(int), axis=1) >= 0).all()


@given(seed=SEEDS)
@settings(max_examples=8)
def test_10_what_comes_at_or_after_the_request_changes_nothing(seed: int) -> None:
    lengths, ends = [30, 44], [17, 31]
    past = histories(lengths, seed=5)
    rng = np.random.default_rng(seed)
    later = np.concatenate(
        [np.arange(past.start[u] + end, past.start[u + 1]) for u, end in enumerate(ends)]
    )
    context, item = past.context.copy(), past.item.copy()
    context[later] = rng.permutation(context[later])
    context[later[::2], 0] = 1
    item[later] = rng.permutation(item[later])
    edited = dataclasses.replace(past, context=context, item=item)
    data = Planted.of(past, known=past.context)
    changed = Planted.of(edited, known=past.context)
    pointers = data.pointers([0, 1], ends)
    assert pointers.ts.tolist() == [past.ts[17], past.ts[30 + 31]]  # events at the request's time
    selector = data.selector(init_std=1.0).eval()
    before, after = data.reader(pointers), changed.reader(pointers)
    for field in dataclasses.fields(Requests):
        left, right = getattr(before, field.name), getattr(after, field.name)
        assert left is right or torch.equal(left, right), field.name
    rows_ = retriever(data, selector).rows(pointers, past)
    assert rows_.tolist() == retriever(changed, selector).rows(pointers, edited).tolist()
    counts = [
        count_contexts(p, data.table, VALUES, WIDTHS, p.end_before(np.arange(2), pointers.ts))
        for p in (past, edited)
    ]
    assert counts[0].events.sum() == sum(ends)
    assert counts[0].values.tolist() == counts[1].values.tolist()


def learned(data: Planted, selector: CofarsSelector) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of all contexts to a cold user, by the model [M, M] and by the logs."""
    keys = data.table.known_keys
    codes, rows_ = torch.from_numpy(data.table.codes(keys)), torch.from_numpy(data.table.rows(keys))
    model = selector.encoder
    with torch.no_grad():
        profile = model.profile(model.contexts(codes, rows_))
        sim = 1 - model.divergence.pairwise(profile, profile)
        logged = torch.from_numpy(data.shares[1:])
        return sim.numpy(), 1 - model.divergence.pairwise(logged, logged).numpy()


@pytest.mark.slow
def test_11_planted_clusters_come_back(world: Planted, trained: CofarsSelector) -> None:
    sim, logged = learned(world, trained)
    truth = cluster(world.table.codes(world.table.known_keys))
    found = AgglomerativeClustering(
        n_clusters=CLUSTERS, metric="precomputed", linkage="average"
    ).fit_predict(1 - sim)
    assert normalized_mutual_info_score(truth, found) >= 0.8
    upper = np.triu_indices(len(sim), 1)
    with_logs = spearmanr(sim[upper], logged[upper]).statistic
    assert with_logs >= 0.8
    blind = world.selector(hidden=(64,), init_std=0.1, ind=1e-2, mse=0.0)
    train(blind, world)
    without = spearmanr(learned(world, blind)[0][upper], logged[upper]).statistic
    assert without <= with_logs - 0.4


@pytest.mark.parametrize("options", [{}, {"joint_only": True}, {"mean_user": True}])
def test_12_strangers_in_new_places_are_served(options: dict[str, bool]) -> None:
    known = histories([30], seed=8).context
    known = known[known[:, 2] != 2]  # weather 0 is in no known combination
    past = histories([50, 20], seed=9)
    own = past.context[50:]
    own[(own == 2).all(1)] = [2, 2, 3]  # the second user never was where he asks from
    for add_target in (False, True):
        data = Planted.of(past, known=known, add_target=add_target)
        selector = data.selector(init_std=1.0, **options)
        data.reader.users[1] = -1  # has a history but no vector
        pointers = data.pointers([-1, 1, 0, 0], [0, 20, 50, 50])
        pointers.context[:] = [2, 2, 2]
        pointers.context[3] = [1, 1, 1]  # nothing is in any vocabulary
        requests = data.reader(pointers)
        assert requests.target_row.tolist() == [0] * 4
        candidates = torch.from_numpy(pointers.candidates)
        losses = selector.train().loss(
            requests, candidates, torch.from_numpy(pointers.clicks), candidates > 0
        )
        assert torch.isfinite(losses.total)
        assert torch.isfinite(selector.eval()(requests).beta).all()
        lists = Lists.build(selector, data.table, data.index, data.reader.users, "m")
        none = Lists(lists.index, np.zeros_like(lists.bits), lists.prototypes, "m")
        found = CofarsRetriever(selector, data.reader, none, events=50).retrieve(pointers)
        own = data.table.codes(data.index.contexts(np.array([1]), np.array([20])).key).tolist()
        assert [2, 2, 2] not in own
        # Nobody has no events; the others come to the last step of back-off.
        assert found.path().tolist() == [-1, 2, 2, 2]
        assert (1 in found.tier[1]) == any(code[:2] == [2, 2] for code in own)


def test_12_a_cold_user_is_nobody_or_everybody() -> None:
    for mean_user in (False, True):
        model = encoder(mean_user=mean_user)
        cold = model.user_vectors(torch.tensor([-1, 3]))
        expected = model.users.weight.mean(0) if mean_user else torch.zeros(8)
        torch.testing.assert_close(cold, torch.stack([expected, model.users.weight[3]]))
        forgetful = encoder(mean_user=mean_user, user_dropout=0.3).train()
        seen = forgetful.user_vectors(torch.full((4000,), 3))
        forgotten = (seen == expected).all(1).float().mean().item()
        assert forgotten == pytest.approx(0.3, abs=0.05)
    codes, row = torch.tensor([[2, 3]]), torch.tensor([0])
    model = encoder()
    values = model.values.weight
    torch.testing.assert_close(model.contexts(codes, row)[0], values[2] + values[4 + 3])
    joint = model.contexts(codes, torch.tensor([5]))[0]
    torch.testing.assert_close(joint, values[2] + values[4 + 3] + model.joint.weight[5])
    assert not encoder(joint_only=True).contexts(codes, row).any()


@given(seed=SEEDS)
@settings(max_examples=8)
def test_13_stored_lists_are_what_the_selector_finds_online(seed: int) -> None:
    data = Planted.of(histories([50, 0, 35, 60], seed=seed % 5))
    selector = data.selector(seed, init_std=1.0).eval()
    users = np.arange(4)
    with torch.no_grad():
        requests = data.reader(data.pointers([0, 2, 3], [50, 35, 60]))
        selector.edge_gate.calibrate(selector(requests).similarity, 70.0)
    # Neither noise nor forgotten users get into the lists of a selector that is being trained.
    lists = Lists.build(selector.train(), data.table, data.index, users, "m")
    assert selector.training
    selector.eval()
    for asked, ends in (([0, 3, 2], [31, 60, 9]), ([2], [35])):
        pointers = data.pointers(asked, ends)
        contexts = data.reader.contexts(pointers)
        stored = lists.membership(contexts)
        with torch.no_grad():
            online = selector(data.reader(pointers, contexts)).membership.numpy()
        assert stored.tolist() == online[: len(stored)].tolist()
        owner = contexts.user[contexts.request]
        again = assign(selector, data.table, owner, contexts.key)
        assert stored.tolist() == again.tolist()
        assert 0 < stored.mean() < 1


class Fixed(CTRRanker):
    """A ranker whose logits are given."""

    def __init__(self, click: torch.Tensor, order: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.given = click, order

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.given


@given(seed=SEEDS, scale=st.sampled_from([1.0, 30.0]))
def test_14_an_order_is_never_likelier_than_its_click(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    scores: Scores = Fixed(scale * torch.randn(4, 7), scale * torch.randn(4, 7))(None)
    assert scores.p_order is not None
    assert (scores.p_order <= scores.p_click).all()
    assert (scores.p_order >= 0).all()
