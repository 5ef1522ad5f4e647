"""Graphs kept of whole histories: with them the same is retrieved, and no graph is made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cofars_planted import Planted, histories
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.cofars.lists import Lists
from raysys.cofars.requests import Requests
from raysys.cofars.retriever import CofarsRetriever
from raysys.cofars.selector import CofarsSelector
from raysys.cofars.stored import load_lists, save_lists
from raysys.data.attribute_counts import event_keys
from raysys.data.batch import Pointers
from raysys.data.context_index import ContextIndex

LENGTHS = [50, 0, 35, 60]
EVERYONE = np.arange(len(LENGTHS))


class Counting:
    """A selector that tells how many requests it made graphs for."""

    def __init__(self, selector: CofarsSelector) -> None:
        self.selector, self.graphs = selector, 0
        self._aggregate = selector._aggregate
        selector._aggregate = self.count  # type: ignore[method-assign]

    def count(self, requests: Requests) -> object:
        self.graphs += len(requests)
        return self._aggregate(requests)


def calibrated(data: Planted, seed: int, choice: float = 70.0, **options: object) -> CofarsSelector:
    selector = data.selector(seed, init_std=1.0, **options).eval()
    selector.calibrate(data.reader(data.pointers([0, 2, 3], [50, 35, 60])), 70.0, choice)
    return selector


def asked(data: Planted, users: list[int], ends: list[int], seed: int) -> Pointers:
    """Requests in contexts that their users had at some time, so far as they had any."""
    pointers = data.pointers(users, ends, seed)
    rng = np.random.default_rng(seed)
    for request, (user, end) in enumerate(zip(users, ends, strict=True)):
        if user >= 0 and end and request % 4:
            row = data.past.start[user] + rng.integers(end)
            pointers.context[request] = data.past.context[row]
    return pointers


def by_hand(data: Planted, pointers: Pointers, request: int) -> bool:
    """Whether a request lies behind all of its user's events, in a context he has had."""
    begin, end = int(pointers.start[request]), int(pointers.end[request])
    own = data.past.context[begin:end].tolist()
    return end in data.past.start[1:] and pointers.context[request].tolist() in own


@pytest.mark.slow
@settings(max_examples=15)
@given(
    seed=st.integers(0, 300),
    choice=st.sampled_from([70.0, 100.0]),  # at 100 hardly any prototype is on by itself
    soft=st.booleans(),
    fallback=st.booleans(),
    layers=st.integers(0, 2),
    residual=st.booleans(),
    raw=st.booleans(),
    add_target=st.booleans(),
)
def test_stored_graphs_change_nothing_that_is_retrieved(
    seed: int, choice: float, add_target: bool, **options: object
) -> None:
    data = Planted.of(histories(LENGTHS, seed=seed % 5), add_target=add_target)
    selector = calibrated(data, seed, choice, **options)
    lists = Lists.build(selector.train(), data.table, data.index, EVERYONE, "m", nightly=True)
    assert selector.training
    users = [0, 3, 2, 1, -1, 3, 0, 2, 3, 2]
    ends = [50, 60, 35, 0, 0, 31, 50, 34, 60, 35]
    pointers = asked(data, users, ends, seed)
    plain = CofarsRetriever(selector, data.reader, replace(lists, nightly=None), events=12)
    stored = CofarsRetriever(selector, data.reader, lists, events=12)
    wanted, at_once = plain.retrieve(pointers), Counting(selector)
    found = stored.retrieve(pointers)
    assert found.positions.tolist() == wanted.positions.tolist()
    assert found.tier.tolist() == wanted.tier.tolist()
    served = sum(by_hand(data, pointers, request) for request in range(len(users)))
    assert served >= 4
    assert at_once.graphs == len(users) - served


def test_activations_of_stored_graphs_are_those_made_online() -> None:
    data = Planted.of(histories(LENGTHS, seed=1))
    selector = calibrated(data, 1, residual=True)
    lists = Lists.build(selector, data.table, data.index, EVERYONE, "m", nightly=True)
    pointers = data.pointers([0, 3], [50, 60])
    pointers.context[:] = data.past.context[[7, 100]]
    requests = data.reader(pointers)
    nightly, pair = lists.nightly, data.reader.contexts(pointers).pair[requests.target.numpy()]
    assert nightly is not None
    with torch.no_grad():
        online = selector(requests)
    own = torch.from_numpy(nightly.prototypes[[0, 3]]).view_as(online.prototypes)
    torch.testing.assert_close(own, online.prototypes)
    similar = torch.from_numpy(nightly.similarity[pair])
    with torch.no_grad():
        beta = selector._activation(own, similar, requests.recent, requests.recent_mask)
    torch.testing.assert_close(beta, online.beta)
    assert online.beta.std() > 1e-3


def test_the_short_term_is_of_the_moment() -> None:
    data = Planted.of(histories(LENGTHS, seed=2))
    selector = calibrated(data, 2, raw=True)
    lists = Lists.build(selector, data.table, data.index, EVERYONE, "m", nightly=True)
    retriever = CofarsRetriever(selector, data.reader, lists, events=12)
    pointers = data.pointers([0], [50])
    pointers.context[0] = data.past.context[7]

    def chosen() -> list[list[bool]]:
        contexts, targets = data.reader.contexts(pointers), data.reader.target_keys(pointers)
        on: list[list[bool]] = retriever.chosen(pointers, contexts, targets).tolist()
        return on

    graphs = Counting(selector)
    before = chosen()
    with torch.no_grad():
        selector.state.weight_ih_l0.mul_(-30)
    assert chosen() != before
    assert graphs.graphs == 0


def test_later_events_need_a_graph_of_their_own_until_the_next_night() -> None:
    data = Planted.of(histories(LENGTHS, seed=3))
    selector = calibrated(data, 3)
    keys = event_keys(data.past, data.table, slice(None))
    # The first user's last 20 events come after the night.
    before = ContextIndex.build(np.array([0, 30, 30, 65, 125]), np.delete(keys, np.arange(30, 50)))
    night = Lists.build(selector, data.table, before, EVERYONE, "m", nightly=True)
    later = np.arange(30, 50)
    lists = night.append(selector, data.table, EVERYONE, np.zeros(20, np.int64), keys[later], later)
    assert lists.nightly is not None
    assert len(lists.nightly.similarity) == len(lists.index.key)
    reader = data.reader
    reader.index = lists.index
    pointers = data.pointers([0, 3], [50, 60])
    pointers.context[:] = data.past.context[[7, 100]]
    plain = CofarsRetriever(selector, reader, replace(lists, nightly=None), events=12)
    wanted, graphs = plain.retrieve(pointers), Counting(selector)
    found = CofarsRetriever(selector, reader, lists, events=12).retrieve(pointers)
    assert found.positions.tolist() == wanted.positions.tolist()
    assert graphs.graphs == 1


@pytest.mark.parametrize("nightly", [False, True])
def test_stored_graphs_are_read_back(tmp_path: Path, nightly: bool) -> None:
    data = Planted.of(histories(LENGTHS, seed=4))
    lists = Lists.build(calibrated(data, 4), data.table, data.index, EVERYONE, "m", nightly=nightly)
    save_lists(tmp_path, lists)
    loaded = load_lists(tmp_path, "m").nightly
    if not nightly:
        assert loaded is None
        return
    assert loaded is not None and lists.nightly is not None
    assert loaded.end.tolist() == LENGTHS
    assert np.array_equal(loaded.prototypes, lists.nightly.prototypes)
    assert np.array_equal(loaded.similarity, lists.nightly.similarity)


def test_the_newest_items_are_those_of_the_history() -> None:
    data = Planted.of(histories(LENGTHS, seed=5), recent=7)
    items, mask = data.reader.newest(data.pointers([0, 3, 1, -1], [50, 4, 0, 0]))
    own = [data.past.item[43:50].tolist(), data.past.item[85:89].tolist(), [], []]
    assert items.tolist() == [part[::-1] + [0] * (7 - len(part)) for part in own]
    assert mask.tolist() == [[True] * len(part) + [False] * (7 - len(part)) for part in own]
