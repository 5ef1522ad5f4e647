"""The placebos of the lists: what they keep, and that nothing else is left."""

from dataclasses import replace

import numpy as np
from cofars_planted import FIELDS, ITEMS, Planted, histories
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.cofars.lists import Lists
from raysys.cofars.ranker import CofarsDIN
from raysys.data.context_index import ContextIndex
from raysys.data.histories import Histories

SEEDS = st.integers(0, 500)


def drawn_lists(seed: int, users: int = 6, prototypes: int = 5, longest: int = 300) -> Lists:
    """Random members; a few contexts hold most of a user's events, as in real logs."""
    rng = np.random.default_rng(seed)
    start = np.cumsum([0, *rng.integers(0, longest, users)])
    share = 1 / np.arange(1, 61) ** 1.1
    keys = np.concatenate(
        [rng.permutation(60)[rng.choice(60, n, p=share / share.sum())] for n in np.diff(start)]
    )
    index = ContextIndex.build(start, keys)
    member = rng.random((len(index.key), prototypes)) < 0.15
    return Lists(index, np.packbits(member, axis=1), prototypes, "m")


def lengths(lists: Lists) -> np.ndarray:
    """Events of each prototype of each user [U, P]."""
    index = lists.index
    events, out = np.diff(index.entry_begin), np.zeros((index.users, lists.prototypes), np.int64)
    for user in range(index.users):
        pairs = np.arange(*index.pair_begin[user : user + 2])
        out[user] = events[pairs] @ lists.members(pairs)
    return out


@given(seed=SEEDS, draw=st.integers(0, 5))
@settings(max_examples=30)
def test_dealt_lists_are_as_long_within_half_a_context(seed: int, draw: int) -> None:
    lists = drawn_lists(seed)
    dealt = lists.dealt(draw)
    index = lists.index
    events = np.diff(index.entry_begin)
    assert dealt.index is index and dealt.prototypes == lists.prototypes
    old, new = lengths(lists), lengths(dealt)
    for user in range(index.users):
        largest = events[slice(*index.pair_begin[user : user + 2])].max(initial=0)
        assert (2 * np.abs(new[user] - old[user]) <= largest).all()
    assert (new[old == 0] == 0).all()
    assert np.array_equal(dealt.bits, lists.dealt(draw).bits)


def test_most_dealt_lists_are_about_as_long_as_before() -> None:
    lists = drawn_lists(0, users=150, prototypes=16, longest=600)
    old, new = (lengths(x).ravel() for x in (lists, lists.dealt(1)))
    ratio = (new / np.maximum(old, 1))[old > 0]
    low, high = np.quantile(ratio, [0.1, 0.9])
    assert 0.95 <= low <= high <= 1.05
    assert abs(ratio.mean() - 1) < 0.02


@given(seed=SEEDS)
@settings(max_examples=20)
def test_nothing_but_the_lengths_decides_what_is_dealt(seed: int) -> None:
    """Members change places with contexts of as many events: the draw is the same."""
    lists = drawn_lists(seed)
    events = np.diff(lists.index.entry_begin)
    owner = np.repeat(np.arange(lists.index.users), np.diff(lists.index.pair_begin))
    shuffled = np.random.default_rng(seed).permutation(len(owner))
    order = np.lexsort((events, owner))
    mixed = shuffled[np.lexsort((events[shuffled], owner[shuffled]))]
    member = lists.members(np.arange(len(owner)))
    other = np.empty_like(member)
    other[order] = member[mixed]
    moved = replace(lists, bits=np.packbits(other, axis=1))
    assert np.array_equal(lengths(moved), lengths(lists))
    assert np.array_equal(moved.dealt(3).bits, lists.dealt(3).bits)


def test_what_a_prototype_had_is_forgotten() -> None:
    """300 users with 40 contexts of one event each: a draw hits an old member by chance only."""
    rng = np.random.default_rng(0)
    keys = np.concatenate([rng.choice(200, 40, replace=False) for _ in range(300)])
    index = ContextIndex.build(np.arange(301) * 40, keys)
    member = rng.random((300 * 40, 4)) < 0.2
    lists = Lists(index, np.packbits(member, axis=1), 4, "m")
    one, two = (lists.dealt(seed).members(np.arange(300 * 40)) for seed in (0, 1))
    assert np.array_equal(lengths(lists.dealt(0)), lengths(lists))
    for left, right in ((member, one), (member, two), (one, two)):
        assert abs((left & right).sum() / left.sum() - 0.2) < 0.03
    # Prototypes of one user are drawn apart from each other.
    assert abs((one[:, 0] & one[:, 1]).mean() - 0.04) < 0.01


def ranker(data: Planted, **placebo: object) -> CofarsDIN:
    """An untrained one without users of its own."""
    return CofarsDIN(
        (2 + ITEMS,),
        data.table.cardinalities,
        {},
        chooser=data.selector,
        table=data.table,
        attributes=FIELDS,
        users=0,
        recent=5,
        add_target=True,
        strict=False,
        embedding_dim=4,
        hidden=(4,),
        attention_hidden=(4,),
        history_length=10,
        orders=False,
        **placebo,
    )


def keys_of(model: CofarsDIN, past: Histories) -> list[list[int]]:
    """Which context each event of each user counts with in the lists."""
    user, key, position = model.lists(past).index.everything()
    order = np.lexsort((position, user))
    cuts = np.cumsum(np.bincount(user, minlength=len(past.users)))[:-1]
    return [part.tolist() for part in np.split(key[order], cuts)]


@given(seed=SEEDS, cut=st.integers(1, 30))
@settings(max_examples=10)
def test_permuted_contexts_come_from_the_past_of_the_user(seed: int, cut: int) -> None:
    data = Planted.of(histories([30, 0, 45], seed % 7))
    model = ranker(data, placebo="permuted", placebo_seed=seed)
    plain, found = keys_of(ranker(data), data.past), keys_of(model, data.past)
    assert [len(keys) for keys in found] == [30, 0, 45]
    for own, drawn in zip(plain, found, strict=True):
        assert all(key in own[: place + 1] for place, key in enumerate(drawn))
    # Other contexts from the cut on leave what comes before it alone.
    context = data.past.context.copy()
    for user in (0, 2):
        context[data.past.start[user] + cut : data.past.start[user + 1]] = 2
    later = keys_of(model, replace(data.past, context=context))
    assert [keys[:cut] for keys in later] == [keys[:cut] for keys in found]


def test_permuted_contexts_are_others_and_as_frequent_on_average() -> None:
    size = 4000
    data = Planted.of(histories([size], 1))
    (plain,), (found,) = (
        keys_of(ranker(data, placebo=name), data.past) for name in (None, "permuted")
    )
    contexts, counts = np.unique(plain, return_counts=True)
    drawn = np.array([found.count(key) for key in contexts])
    assert np.abs(drawn - counts).max() < 6 * np.sqrt(2 * counts.max())
    agree = np.mean(np.array(plain) == np.array(found))
    assert abs(agree - 1 / len(contexts)) < 0.02


def test_placebos_have_names_of_their_own() -> None:
    data = Planted.of(histories([9, 5], 2))
    names = [
        ranker(data, placebo=kind, placebo_seed=seed).selector_id()
        for kind, seed in ((None, 0), ("random", 0), ("random", 1), ("permuted", 1))
    ]
    assert len(set(names)) == 4
    assert ranker(data, placebo=None, placebo_seed=7).selector_id() == names[0]
