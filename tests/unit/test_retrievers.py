"""Retrievers against the equations of their papers, written out event by event."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raysys.ctr.retrievers.base import Pairs, Retriever, TopK, Widths, sort_keys
from raysys.ctr.retrievers.hashing import BucketSums, HammingSearch, SimHash
from raysys.ctr.retrievers.sim import HardSearch, SoftSearch
from raysys.ctr.retrievers.twin import SplitSearch
from raysys.layers.attention import TargetAttention

WIDTHS = Widths(item=5, cross=2, field=3)
ITEMS = 9
CODES = torch.tensor([[0, 0], [1, 1], *([7, 1 + i % 4] for i in range(ITEMS))])
SEEDS = st.integers(0, 10_000)

MAKE: dict[str, Callable[[int], Retriever]] = {
    "sim-hard": lambda k: HardSearch(k, 1),
    "sim-soft": lambda k: SoftSearch(k, WIDTHS.item, 4),
    "eta": lambda k: HammingSearch(k, WIDTHS.item, 8, 0),
    "sdim": lambda k: BucketSums(WIDTHS.item, 8, 2, 0),
    "twin": lambda k: SplitSearch(k, WIDTHS, 4),
    "twin-shared": lambda k: SplitSearch(k, WIDTHS, 4, own=False),
}
every = pytest.mark.parametrize("kind", list(MAKE))
searching = pytest.mark.parametrize("kind", [kind for kind in MAKE if kind != "sdim"])


def made(kind: str, count: int = 3) -> Retriever:
    torch.manual_seed(1)
    retriever = MAKE[kind](count)
    retriever.bind(CODES)
    for parameter in retriever.parameters():
        torch.nn.init.normal_(parameter)
    return retriever


def kernel(*, softmax: bool = False) -> TargetAttention:
    torch.manual_seed(2)
    return TargetAttention(WIDTHS.event, (6, 4), softmax=softmax)


def pairs(seed: int, size: int = 3, shown: int = 2, length: int = 7) -> Pairs:
    """Ragged histories, the first one empty; the vector of an event follows from its item, but
    for its cross part, so that items occur again and scores are tied."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 + ITEMS, WIDTHS.item, generator=generator)
    rows[0] = 0
    past = torch.randint(0, length + 1, (size,), generator=generator)
    past[0] = 0
    mask = torch.arange(length) < past[:, None]
    events = torch.randint(1, 2 + ITEMS, (size, length), generator=generator) * mask
    candidates = torch.randint(1, 2 + ITEMS, (size, shown), generator=generator)
    rest = WIDTHS.event - WIDTHS.item

    def vectors(items: Tensor) -> Tensor:
        cross = torch.randn(*items.shape, rest, generator=generator)
        return torch.cat([rows[items], cross], -1)

    return Pairs(vectors(candidates), vectors(events) * mask[..., None], mask, candidates, events)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def scores_by_hand(kind: str, retriever: Retriever, given_: Pairs, b: int, c: int) -> list[float]:
    """The relevance of every event of request b for candidate c, from the paper's equation."""
    item = WIDTHS.item
    q = given_.query[b, c].numpy().astype(np.float64)
    keys = given_.keys[b].numpy().astype(np.float64)
    state = {
        n.removeprefix("attention."): v.double().numpy() for n, v in retriever.state_dict().items()
    }
    out = []
    for place, k in enumerate(keys):
        if kind == "sim-hard":
            mine = int(CODES[given_.candidates[b, c], 1])
            same = mine >= 2 and mine == int(CODES[given_.events[b, place], 1])
            score = 0.0 if same else -math.inf
        elif kind == "sim-soft":
            score = (state["behaviour.weight"] @ k[:item]) @ (state["candidate.weight"] @ q[:item])
        elif kind == "eta":
            bits = [(x[:item] @ state["hash.planes"]) >= 0 for x in (q, k)]
            score = -float((bits[0] != bits[1]).sum())
        else:
            inherent = (state["key.weight"] @ k[:item]) @ (state["query.weight"] @ q)
            score = inherent / math.sqrt(len(state["query.weight"]))
            for j in range(WIDTHS.cross):
                field = k[item + j * WIDTHS.field : item + (j + 1) * WIDTHS.field]
                score += (field @ state["cross"][j]) * state["beta"][j]
        out.append(float(score))
    return out


def found_by_hand(
    kind: str, retriever: Retriever, given_: Pairs, b: int, c: int, count: int
) -> list[int]:
    """Places of the K best; of nearly equal ones the newest."""
    scores = scores_by_hand(kind, retriever, given_, b, c)
    real = [p for p in range(len(scores)) if given_.mask[b, p] and scores[p] > -math.inf]
    return sorted(real, key=lambda p: (-round(scores[p], 5), p))[:count]


def twin_by_hand(
    retriever: Retriever, given_: Pairs, b: int, c: int, found: list[int]
) -> tuple[Tensor, Tensor]:
    """Weights [K] of the events found, and W^v of their weighted sum."""
    scores = np.array(scores_by_hand("twin", retriever, given_, b, c))[found]
    mass = np.exp(scores - scores.max())
    weights = mass / mass.sum()
    matrix = retriever.state_dict()["attention.value.weight"].double().numpy()
    value = matrix @ (weights @ given_.keys[b, found].double().numpy())
    return torch.from_numpy(weights).float(), torch.from_numpy(value).float()


@searching
@pytest.mark.parametrize("softmax", [False, True])
@given(seed=SEEDS, count=st.integers(1, 8))
@settings(max_examples=25)
def test_a_candidate_attends_to_the_events_its_paper_says(
    kind: str, softmax: bool, seed: int, count: int
) -> None:
    retriever, attention, given_ = made(kind, count), kernel(softmax=softmax), pairs(seed)
    with torch.no_grad():
        interest = retriever(given_, attention)
        weights = retriever.weights(given_, attention)
    for b, c in np.ndindex(3, 2):
        found = found_by_hand(kind, retriever, given_, b, c, count)
        events = given_.keys[b : b + 1, found]
        real = torch.ones(1, len(found), dtype=torch.bool)
        query = given_.query[b : b + 1, c : c + 1]
        expected = torch.zeros(weights.shape[2])
        if found:
            with torch.no_grad():
                if kind == "twin":
                    own, value = twin_by_hand(retriever, given_, b, c, found)
                else:
                    value = attention(query, events, real)[0, 0]
                    own = attention.weights(query, events, real)[0, 0]
            close(interest[b, c], value)
            expected[found] = own
        else:
            assert not interest[b, c].any()
        close(weights[b, c], expected)


@given(seed=SEEDS)
@settings(max_examples=25)
def test_sdim_is_the_mean_of_unit_sums_over_buckets(seed: int) -> None:
    retriever, given_ = made("sdim"), pairs(seed)
    got = retriever(given_, None)
    planes = retriever.hash.planes.numpy()
    item = WIDTHS.item
    for b, c in np.ndindex(3, 2):
        expected = np.zeros(WIDTHS.event)
        q = given_.query[b, c].numpy()
        for group in range(4):
            own = planes[:, 2 * group : 2 * group + 2]
            total = np.zeros(WIDTHS.event)
            for place in range(7):
                k = given_.keys[b, place].numpy()
                same = ((q[:item] @ own >= 0) == (k[:item] @ own >= 0)).all()
                if given_.mask[b, place] and same:
                    total += k
            if total.any():
                expected += total / np.sqrt((total**2).sum()) / 4
        close(got[b, c], torch.from_numpy(expected).float())


@pytest.mark.parametrize("kind", ["sim-soft", "twin-shared"])
@given(seed=SEEDS)
@settings(max_examples=15)
def test_the_first_stage_pools_all_events_by_its_own_scores(kind: str, seed: int) -> None:
    retriever, given_ = made(kind), pairs(seed)
    got = retriever.first_stage(given_).detach()
    for b, c in np.ndindex(3, 2):
        real = int(given_.mask[b].sum())
        scores = np.array(scores_by_hand(kind, retriever, given_, b, c)[:real])
        items = given_.keys[b, :real, : WIDTHS.item].numpy()
        if kind == "sim-soft":
            expected = scores @ items / max(1, real)
        else:
            mass = np.exp(scores - scores.max(initial=-math.inf))
            value = retriever.attention.value.weight.detach().numpy()
            events = given_.keys[b, :real].numpy()
            expected = mass @ (events @ value.T) / max(mass.sum(), 1e-9)
        close(got[b, c], torch.from_numpy(expected).float())


@every
@given(seed=SEEDS)
@settings(max_examples=15)
def test_interest_is_the_weighted_sum_of_events(kind: str, seed: int) -> None:
    retriever, attention, given_ = made(kind), kernel(), pairs(seed)
    expected = torch.bmm(retriever.weights(given_, attention), given_.keys)
    if kind == "twin":
        expected = expected @ retriever.attention.value.weight.T
    close(retriever(given_, attention), expected)


@every
@given(seed=SEEDS, more=st.integers(0, 4))
@settings(max_examples=15)
def test_padding_is_never_chosen_and_changes_nothing(kind: str, seed: int, more: int) -> None:
    """However well its content would match: here it is the candidate itself, times ten."""
    retriever, attention, given_ = made(kind), kernel(), pairs(seed)
    loud = 10 * given_.query[:, :1].expand(-1, given_.keys.shape[1] + more, -1)
    mask = torch.nn.functional.pad(given_.mask, (0, more))
    keys = torch.nn.functional.pad(given_.keys, (0, 0, 0, more))
    events = torch.nn.functional.pad(given_.events, (0, more))
    dirty = given_._replace(
        keys=torch.where(mask[..., None], keys, loud),
        mask=mask,
        events=torch.where(mask, events, given_.candidates[:, :1]),
    )
    close(retriever(dirty, attention), retriever(given_, attention))
    weights = retriever.weights(dirty, attention)
    assert not weights.transpose(1, 2)[~mask].any()
    if retriever.first_stage_width:
        close(retriever.first_stage(dirty), retriever.first_stage(given_))


@every
@given(seed=SEEDS)
@settings(max_examples=15)
def test_requests_and_candidates_do_not_see_each_other(kind: str, seed: int) -> None:
    retriever, attention, given_ = made(kind), kernel(), pairs(seed, shown=4)
    together = retriever(given_, attention)
    for b in range(3):
        alone = Pairs(*(values[b : b + 1] for values in given_))
        close(retriever(alone, attention), together[b : b + 1])
    order = torch.tensor([2, 0, 3, 1])
    turned = given_._replace(query=given_.query[:, order], candidates=given_.candidates[:, order])
    close(retriever(turned, attention), together[:, order])
    fewer = given_._replace(query=given_.query[:, :1], candidates=given_.candidates[:, :1])
    close(retriever(fewer, attention), together[:, :1])


@searching
@pytest.mark.parametrize("count", [7, 30])
@given(seed=SEEDS)
@settings(max_examples=10)
def test_with_room_for_all_events_it_is_attention_over_the_full_history(
    kind: str, count: int, seed: int
) -> None:
    retriever, attention, given_ = made(kind, count), kernel(), pairs(seed)
    if kind == "sim-hard":  # all of one category
        retriever.bind(torch.full_like(CODES, 5))
    own = retriever.attention if kind == "twin" else attention
    close(retriever(given_, attention), own(given_.query, given_.keys, given_.mask))


@given(seed=SEEDS, count=st.integers(1, 7))
@settings(max_examples=25)
def test_twin_finds_the_events_its_own_attention_weighs_most(seed: int, count: int) -> None:
    """Over the full history; of equal weights the newest."""
    few, all_ = made("twin", count), made("twin", 7)
    few.load_state_dict(all_.state_dict())
    given_ = pairs(seed)
    with torch.no_grad():
        whole, chosen = all_.weights(given_, None), few.weights(given_, None)
    for b, c in np.ndindex(3, 2):
        real = int(given_.mask[b].sum())
        order = sorted(range(real), key=lambda p: (-round(float(whole[b, c, p]), 6), p))[:count]
        mass = sum(float(whole[b, c, p]) for p in order)
        for place in range(7):
            expected = float(whole[b, c, place]) / mass if place in order else 0.0
            assert float(chosen[b, c, place]) == pytest.approx(expected, abs=1e-4)


def test_twin_begins_as_a_plain_sum_of_events() -> None:
    retriever, given_ = SplitSearch(3, WIDTHS, 4), pairs(0)
    close(retriever(given_, None), torch.bmm(retriever.weights(given_, None), given_.keys))


@searching
@given(seed=SEEDS)
@settings(max_examples=10)
def test_gathering_gives_what_masking_gives(kind: str, seed: int) -> None:
    """Where all events fit, nothing is gathered; one slot less makes the other way be taken."""
    attention, given_ = kernel(), pairs(seed, length=6)
    given_.mask[:, 5] = False
    five, six = (made(kind, count) for count in (5, 6))
    close(five(given_, attention), six(given_, attention))
    close(five.weights(given_, attention), six.weights(given_, attention))


@every
@pytest.mark.parametrize("count", [2, 9])
def test_gradients_are_finite_also_for_empty_histories(kind: str, count: int) -> None:
    retriever, attention, given_ = made(kind, count), kernel(), pairs(4)
    retriever.bind(torch.full_like(CODES, 5))
    keys = given_.keys.clone().requires_grad_()
    query = given_.query.clone().requires_grad_()
    given_ = given_._replace(keys=keys, query=query)
    total = retriever(given_, attention).square().sum()
    if retriever.first_stage_width:
        total = total + retriever.first_stage(given_).square().sum()
    total.backward()
    # What searches is learned too, in TWIN's own form by what the second stage is trained on.
    assert all(p.grad is not None and p.grad.any() for p in retriever.parameters())
    learned = [keys, query, *retriever.parameters(), *attention.parameters()]
    assert all(v.grad is None or torch.isfinite(v.grad).all() for v in learned)
    assert keys.grad is not None
    assert keys.grad.any()
    assert not keys.grad[~given_.mask].any()


@given(values=st.lists(st.sampled_from([-math.inf, -2.5, -1e-30, -0.0, 0.0, 3e-9, 1.0, 1e30])))
def test_sort_keys_order_floats_and_of_equals_the_first(values: list[float]) -> None:
    keys = sort_keys(torch.tensor(values)).tolist()
    expected = sorted(range(len(values)), key=lambda place: (-values[place], place))
    assert sorted(range(len(values)), key=lambda place: -keys[place]) == expected
    assert len(set(keys)) == len(keys)


def test_hamming_order_nears_cosine_order_as_bits_grow() -> None:
    torch.manual_seed(0)
    query, keys = torch.randn(20, 1, 16), torch.randn(20, 60, 16)
    cosine = torch.nn.functional.cosine_similarity(query, keys, dim=-1)
    found = []
    for bits in (4, 32, 256, 1024):
        mask = torch.ones(20, 60, dtype=torch.bool)
        rows = torch.ones(20, 60, dtype=torch.int64)
        hamming = HammingSearch(5, 16, bits, 0).relevance(
            Pairs(query, keys, mask, rows[:, :1], rows)
        )[:, 0]
        ranks = [x.argsort(-1).argsort(-1).double() for x in (cosine, hamming + 1e-9 * cosine)]
        ranks = [x - x.mean(-1, keepdim=True) for x in ranks]
        norm = ranks[0].norm(dim=-1) * ranks[1].norm(dim=-1)
        found.append(float(((ranks[0] * ranks[1]).sum(-1) / norm).mean()))
    assert found == sorted(found)
    assert found[0] < 0.8
    assert found[-1] > 0.97


@pytest.mark.parametrize("group", [1, 2, 3])
def test_buckets_are_shared_as_often_as_the_angle_says(group: int) -> None:
    """(1 − θ/π)^τ, within five standard errors of 4,000 groups."""
    groups = 4000
    retriever = BucketSums(2, groups * group, group, seed=1)
    for angle in (0.3, 1.0, 2.5):
        vectors = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
        one, other = retriever.buckets(vectors)
        expected = (1 - angle / math.pi) ** group
        error = math.sqrt(expected * (1 - expected) / groups)
        assert abs(float((one == other).float().mean()) - expected) < 5 * error


def test_hyperplanes_are_a_matter_of_the_seed_and_are_saved() -> None:
    one, same, other = (SimHash(4, 8, seed) for seed in (0, 0, 1))
    assert one.planes.equal(same.planes)
    assert not one.planes.equal(other.planes)
    assert "planes" in one.state_dict()


def test_nothing_of_the_size_of_all_pairs_times_width_is_laid_out() -> None:
    """The largest tensor of a step over B·C·L pairs holds no D numbers for each of them."""
    wide = Widths(item=24, cross=2, field=4)
    size, shown, length, count = 4, 6, 300, 5
    torch.manual_seed(0)
    mask = torch.ones(size, length, dtype=torch.bool)
    rows = torch.randint(2, 2 + ITEMS, (size, length))
    keys = torch.randn(size, length, wide.event, requires_grad=True)
    given_ = Pairs(torch.randn(size, shown, wide.event), keys, mask, rows[:, :shown], rows)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple) else (out,):
                if isinstance(value, Tensor):
                    # What an expanded view shows is not there.
                    largest = max(largest, value.untyped_storage().nbytes() // value.itemsize)
            return out

    attention = TargetAttention(wide.event, (8,))
    retrievers: list[TopK] = [
        SoftSearch(count, wide.item, 8),
        HammingSearch(count, wide.item, 16, 0),
        SplitSearch(count, wide, 8),
        SplitSearch(count, wide, 8, own=False),
    ]
    for retriever in retrievers:
        with Sizes():
            out = retriever(given_, attention).sum()
            if retriever.first_stage_width:
                out = out + retriever.first_stage(given_).sum()
            out.backward()
    pairs_ = size * shown * length
    assert pairs_ <= largest < 8 * pairs_
