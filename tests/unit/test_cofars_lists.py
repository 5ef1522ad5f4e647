"""Contexts and lists of users against plain scans of their histories."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from cofars_planted import SIZES, Planted, histories
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.cofars.lists import Lists, tiers
from raysys.cofars.retriever import CofarsRetriever
from raysys.cofars.stored import load_lists, save_lists
from raysys.data.attribute_counts import event_keys
from raysys.data.context_index import ContextIndex, locate
from raysys.errors import ArtifactError, ConfigError

LENGTHS = st.lists(st.integers(0, 25), min_size=1, max_size=4)
SEEDS = st.integers(0, 500)


def planted(lengths: list[int], seed: int) -> Planted:
    """Contexts take two values of each feature, so that they come again."""
    rng = np.random.default_rng(seed)
    contexts = rng.integers(2, 4, (sum(lengths), len(SIZES)))
    return Planted.of(histories(lengths, seed, contexts))


def scan(data: Planted, user: int, end: int) -> list[int]:
    """Context key of each of the user's first `end` events."""
    begin = int(data.past.start[user])
    return data.table.keys(data.past.context[begin : begin + end]).tolist()


def asked(data: Planted, seed: int, requests: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    user = rng.integers(0, len(data.past.users), requests)
    return user, rng.integers(0, np.diff(data.past.start)[user] + 1)


@given(lengths=LENGTHS, seed=SEEDS)
def test_contexts_and_steps_are_those_of_a_scan(lengths: list[int], seed: int) -> None:
    data = planted(lengths, seed)
    user, end = asked(data, seed)
    pointer_start = data.past.start[user]
    place = locate(data.past, pointer_start, pointer_start + end)
    seen = data.index.contexts(*place)
    source, target = data.index.steps(seen)
    number, position = data.index.events(seen)
    for request in range(len(user)):
        keys = scan(data, int(user[request]), int(end[request]))
        mine = np.flatnonzero(seen.request == request)
        assert seen.key[mine].tolist() == sorted(set(keys))
        for node in mine:
            own = [p for p, key in enumerate(keys) if key == seen.key[node]]
            assert position[number == node].tolist() == own
            assert seen.count[node] == len(own)
        steps = {
            (int(seen.key[a]), int(seen.key[b]))
            for a, b in zip(source, target, strict=True)
            if seen.request[a] == request
        }
        assert (seen.request[source] == seen.request[target]).all()
        assert steps == set(pairwise(keys))
    assert len(source) == len(set(zip(source.tolist(), target.tolist(), strict=True)))


@given(lengths=LENGTHS, seed=SEEDS, limit=st.integers(1, 12))
def test_the_newest_of_the_lowest_tiers(lengths: list[int], seed: int, limit: int) -> None:
    data = planted(lengths, seed)
    user, end = asked(data, seed)
    seen = data.index.contexts(user, end)
    tier = np.random.default_rng(seed).integers(-1, 4, len(seen.key))
    positions, found = data.index.newest(seen, tier, limit)
    for request in range(len(user)):
        rank = {int(seen.key[n]): int(tier[n]) for n in np.flatnonzero(seen.request == request)}
        keys = scan(data, int(user[request]), int(end[request]))
        events = [(rank[key], -p) for p, key in enumerate(keys) if rank[key] >= 0]
        best = sorted(sorted(events)[:limit], key=lambda event: event[1])
        fill = [-1] * (limit - len(best))
        assert positions[request].tolist() == [-p for _, p in best] + fill
        assert found[request].tolist() == [rank for rank, _ in best] + fill


@given(lengths=LENGTHS, seed=SEEDS, later=st.integers(1, 8))
def test_appending_is_building_anew(lengths: list[int], seed: int, later: int) -> None:
    data = planted(lengths, seed)
    keys = event_keys(data.past, data.table, slice(None))
    # The last events of each user are the later ones.
    size = np.diff(data.past.start)
    user = np.repeat(np.arange(len(lengths)), size)
    position = np.arange(len(keys)) - data.past.start[user]
    old = position < (size - later)[user]
    kept = np.concatenate([[0], np.cumsum(np.bincount(user[old], minlength=len(lengths)))])
    before = ContextIndex.build(kept, keys[old])
    after, moved = before.append(user[~old], keys[~old], position[~old])
    for name in ("pair_begin", "key", "entry_begin", "entry"):
        assert getattr(after, name).tolist() == getattr(data.index, name).tolist(), name
    assert after.key[moved].tolist() == before.key.tolist()
    # Yesterday's steps still join the contexts they joined.
    assert after.key[after.moves[:, :2]].tolist() == before.key[before.moves[:, :2]].tolist()
    assert after.moves[:, 2].tolist() == before.moves[:, 2].tolist()


@given(lengths=LENGTHS, seed=SEEDS)
def test_an_index_of_some_users_answers_for_them(lengths: list[int], seed: int) -> None:
    data = planted(lengths, seed)
    user, end = asked(data, seed)
    some = data.index.of(user)
    new = np.arange(len(user))
    whole, part = data.index.contexts(user, end), some.contexts(new, end)
    for name in ("request", "key", "count"):
        assert getattr(whole, name).tolist() == getattr(part, name).tolist()
    assert np.array_equal(data.index.steps(whole), some.steps(part))
    everything = np.zeros(len(whole.key), np.int64)
    assert np.array_equal(data.index.newest(whole, everything, 5), some.newest(part, everything, 5))


def test_an_index_of_nobody() -> None:
    empty = ContextIndex.build(np.zeros(1, np.int64), np.zeros(0, np.int64))
    seen = empty.contexts(np.array([-1, -1]), np.array([0, 0]))
    assert len(seen.key) == 0
    assert [len(x) for x in empty.steps(seen)] == [0, 0]
    positions, _ = empty.newest(seen, np.zeros(0, np.int64), 3)
    assert (positions == -1).all() and positions.shape == (2, 3)


def membership(data: Planted, seed: int) -> tuple[object, ...]:
    user, end = asked(data, seed)
    seen = data.index.contexts(user, end)
    rng = np.random.default_rng(seed)
    member = rng.random((len(seen.key), 3)) < 0.3
    chosen = rng.random((len(user), 3)) < 0.5
    targets = data.table.keys(rng.integers(2, 4, (len(user), 3)))
    return seen, targets, member, chosen


@given(lengths=LENGTHS, seed=SEEDS, strict=st.booleans())
def test_tiers_by_hand(lengths: list[int], seed: int, strict: bool) -> None:
    data = planted(lengths, seed)
    seen, targets, member, chosen = membership(data, seed)
    got = tiers(data.table, seen, targets, member, chosen, strict=strict)
    for node in range(len(seen.key)):
        request = seen.request[node]
        mine = data.table.codes(seen.key[node]).tolist()
        wanted = data.table.codes(targets[request]).tolist()
        if mine == wanted or any(member[node] & chosen[request]):
            assert got[node] == 0
        elif strict:
            assert got[node] == -1
        else:  # weather is the last feature and the only one that back-off drops
            assert got[node] == (1 if mine[:2] == wanted[:2] else 2)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_rows_lie_inside_their_requests(seed: int) -> None:
    data = planted([25, 0, 9, 40], seed)
    selector = data.selector(seed)
    lists = Lists.build(selector, data.table, data.index, np.arange(4), "m")
    retriever = CofarsRetriever(selector, data.reader, lists, events=12)
    users, ends = [0, 1, 2, 3, -1, 3], [25, 0, 4, 31, 0, 0]
    pointers = data.pointers(users, ends)
    rows = retriever.rows(pointers, data.past)
    for request, own in enumerate(rows.tolist()):
        real = [row for row in own if row >= 0]
        assert own == sorted(real, reverse=True) + [-1] * (12 - len(real))
        assert all(pointers.start[request] <= row < pointers.end[request] for row in real)
        # Without `strict` the most recent events fill what is left.
        assert len(set(real)) == min(12, ends[request])
    with pytest.raises(ConfigError, match="other histories"):
        retriever.rows(pointers, histories([3]))


def test_strict_lists_hold_the_selected_contexts_only() -> None:
    data = planted([60, 60], 1)
    selector = data.selector()
    lists = Lists.build(selector, data.table, data.index, np.arange(2), "m")
    # No context belongs to any prototype: what is left is the target's own.
    lonely = Lists(lists.index, np.zeros_like(lists.bits), lists.prototypes, "m")
    pointers = data.pointers([0, 1], [60, 60])
    pointers.context[:] = data.past.context[[3, 70]]
    found = CofarsRetriever(selector, data.reader, lonely, events=50, strict=True).retrieve(
        pointers
    )
    for request in range(2):
        keys = scan(data, request, 60)
        wanted = data.table.keys(pointers.context[request])
        own = [p for p, key in enumerate(keys) if key == wanted]
        assert found.positions[request, : len(own)].tolist() == own[::-1]
        assert (found.positions[request, len(own) :] == -1).all()


def test_lists_of_another_model_are_refused(tmp_path: Path) -> None:
    data = planted([20, 9], 2)
    lists = Lists.build(data.selector(), data.table, data.index, np.arange(2), "one")
    (tmp_path / "lists").mkdir()
    save_lists(tmp_path / "lists", lists)
    loaded = load_lists(tmp_path / "lists", "one")
    seen = loaded.index.contexts(np.array([0, 1]), np.array([20, 9]))
    assert np.array_equal(loaded.membership(seen), lists.membership(seen))
    assert loaded.index.entry.tolist() == data.index.entry.tolist()
    with pytest.raises(ArtifactError, match="model one cannot serve model two"):
        load_lists(tmp_path / "lists", "two")
    with pytest.raises(ArtifactError, match="holds no CoFARS lists"):
        load_lists(tmp_path, "one")


def test_todays_events_get_the_prototypes_that_a_rebuild_gives() -> None:
    data = planted([30, 12], 3)
    selector = data.selector(init_std=1.0)
    users, ends = np.array([1, 0]), np.array([30, 12])
    with torch.no_grad():
        requests = data.reader(data.pointers([0, 1], ends.tolist()))
        selector.edge_gate.calibrate(selector.eval()(requests).similarity, 50.0)
    whole = Lists.build(selector, data.table, data.index, users, "m")
    share = whole.membership(data.index.contexts(np.arange(2), ends)).mean()
    assert 0.2 < share < 0.8
    keys = event_keys(data.past, data.table, slice(None))
    before = ContextIndex.build(np.array([0, 5, 5 + 12]), np.delete(keys, np.arange(5, 30)))
    start = Lists.build(selector, data.table, before, users, "m")
    after = start.append(
        selector, data.table, users, np.zeros(25, np.int64), keys[5:30], np.arange(5, 30)
    )
    assert len(start.bits) < len(after.bits)
    assert after.bits.tolist() == whole.bits.tolist()
