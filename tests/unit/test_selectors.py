"""Selectors against plain Python: which events of a history a request is shown."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.ctr.retrievers.contexts import Assignment, chosen_features, context_keys
from raysys.ctr.retrievers.draws import distinct, mixed
from raysys.ctr.retrievers.index import ContextIndex
from raysys.ctr.retrievers.selectors import ByContext, RandomEvents
from raysys.data.batch import Collator, Pointers, Selector
from raysys.data.contexts import ContextCodec, ContextFeature
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.errors import ConfigError


def codec(*values: tuple[str, ...]) -> ContextCodec:
    names = ("meal", "area")
    return ContextCodec(
        features=tuple(
            ContextFeature(name=name, kind="categorical", values=own)
            for name, own in zip(names, values, strict=True)
        )
    )


# The model knows fewer values than the data, in another order.
DATA = codec(("lunch", "dinner", "tea"), ("a", "b"))
MODEL = codec(("dinner", "lunch"), ("b", "a"))
MODEL_CODES = ({0: 0, 1: 1, 2: 3, 3: 2, 4: 1}, {0: 0, 1: 1, 2: 3, 3: 2})
CONTEXTS = np.array([(m, a) for m in range(4) for a in range(4)], np.int32)
SEEDS = st.integers(0, 10_000)
COUNTS = st.integers(1, 6)


def histories(rng: np.random.Generator, longest: int = 14) -> Histories:
    """Six users, the first and the last without events."""
    lengths = rng.integers(0, longest, 6, endpoint=True)
    lengths[[0, -1]] = 0
    count = int(lengths.sum())
    return Histories(
        users=pa.array([f"u{i}" for i in range(6)], pa.string()),
        start=np.cumsum([0, *lengths]).astype(np.int64),
        item=rng.integers(1, 9, count).astype(np.int32),
        ts=rng.integers(0, 100, count).astype(np.int64),
        behaviour=rng.integers(0, 3, count).astype(np.int8),
        context=np.stack([rng.integers(0, 5, count), rng.integers(0, 4, count)], 1).astype(
            np.int32
        ),
        codec=DATA,
    )


def pointers(rng: np.random.Generator, past: Histories, size: int = 8) -> Pointers:
    """Requests of any users, a stranger among them, at any point of their histories."""
    user = rng.integers(0, 6, size)
    start = past.start[user]
    end = start + rng.integers(0, past.start[user + 1] - start, endpoint=True)
    start[-1] = end[-1] = 0
    return Pointers(
        start=start,
        end=end,
        ts=rng.integers(100, 10_000, size),
        context=np.stack([rng.integers(0, 5, size), rng.integers(0, 4, size)], 1).astype(np.int32),
        codec=DATA,
        candidates=np.full((size, 1), 2),
    )


def asked(codes: np.ndarray) -> tuple[int, ...]:
    """Codes of the data as codes of the model."""
    return tuple(table[int(c)] for table, c in zip(MODEL_CODES, codes, strict=True))


def alike(seed: int) -> Assignment:
    """Random similarities of most contexts; the others are unknown to it."""
    rng = np.random.default_rng(seed)
    known = CONTEXTS[rng.permutation(len(CONTEXTS))[:12]]
    return Assignment(MODEL, known, rng.random((12, 12)) < 0.3)


def by_hand(
    past: Histories, points: Pointers, count: int, least: int, assignment: Assignment | None = None
) -> tuple[list[list[int]], list[int]]:
    """Rows and depths of every request, by looking at every event."""
    out, depths = [], []
    known = [] if assignment is None else assignment.contexts.tolist()
    for start, end, context in zip(points.start, points.end, points.context, strict=True):
        now = asked(context)
        events = [(row, asked(past.context[row])) for row in range(end - 1, start - 1, -1)]
        found = {d: [row for row, was in events if was[:d] == now[:d]] for d in (0, 1, 2)}
        if assignment is not None:

            def like(was: tuple[int, ...], now: tuple[int, ...] = now) -> bool:
                both = list(was) in known and list(now) in known
                return was == now or (
                    both and assignment.similar[known.index(list(now)), known.index(list(was))]
                )

            found[3] = []
            for depth in found:  # what is alike counts at every depth
                rows = [row for row, was in events if row in found[depth] or like(was)]
                found[depth] = rows
        depth = next((d for d in sorted(found, reverse=True) if len(found[d]) >= least), 0)
        out.append(found[depth][:count])
        depths.append(depth)
    return out, depths


def lists(rows: np.ndarray) -> list[list[int]]:
    for row in rows.tolist():
        assert row == sorted(row, reverse=True)  # newest first, padding behind
    return [[r for r in row if r >= 0] for row in rows.tolist()]


SELECTORS: dict[str, Callable[[int], Selector]] = {
    "random": lambda k: RandomEvents(k, 3),
    "exact": lambda k: ByContext(MODEL, k, least=2),
    "alike": lambda k: ByContext(MODEL, k, assignment=alike(0)),
    "permuted": lambda k: ByContext(MODEL, k, shuffle=1),
}
every = pytest.mark.parametrize("name", list(SELECTORS))


@given(seed=SEEDS, count=COUNTS, least=st.integers(1, 4))
def test_exact_context_is_what_looking_at_every_event_finds(
    seed: int, count: int, least: int
) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    selector = ByContext(MODEL, count, least=least)
    rows, depths = by_hand(past, points, count, least)
    assert lists(selector.rows(points, past)) == rows
    assert selector.depths(points, past).tolist() == depths


@given(seed=SEEDS, count=COUNTS, least=st.integers(1, 4))
def test_assigned_contexts_are_what_looking_at_every_event_finds(
    seed: int, count: int, least: int
) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    selector = ByContext(MODEL, count, least=least, assignment=alike(seed))
    rows, depths = by_hand(past, points, count, least, alike(seed))
    assert lists(selector.rows(points, past)) == rows
    assert selector.depths(points, past).tolist() == depths


@every
@given(seed=SEEDS, count=COUNTS)
@settings(max_examples=30)
def test_rows_are_distinct_events_of_the_history_and_never_too_many(
    name: str, seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    rows = SELECTORS[name](count).rows(points, past)
    assert rows.shape[0] == len(points.start)
    assert 1 <= rows.shape[1] <= count
    for start, end, own in zip(points.start, points.end, lists(rows), strict=True):
        assert len(set(own)) == len(own)
        assert all(start <= row < end for row in own)
        assert own or end == start  # something is found wherever there is a past
        if name == "random":
            assert len(own) == min(count, end - start)


@every
@given(seed=SEEDS)
@settings(max_examples=20)
def test_a_request_is_shown_the_same_alone_sent_along_and_whatever_comes_later(
    name: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    together = lists(SELECTORS[name](3).rows(points, past))
    for row, (start, end) in enumerate(zip(points.start, points.end, strict=True)):
        part = {n: v[row : row + 1] for n, v in vars(points).items() if isinstance(v, np.ndarray)}
        one = replace(points, **part)
        assert lists(SELECTORS[name](3).rows(one, past)) == [together[row]]
        late = np.arange(len(past.item)) >= end
        context = np.where(late[:, None], (past.context + 1) % 4, past.context)
        edited = replace(past, context=context, item=np.where(late, 1, past.item))
        assert lists(SELECTORS[name](3).rows(one, edited)) == [together[row]]
        # The history up to now alone, as a request sends it.
        sent = Histories(
            users=pa.array(["me"]),
            start=np.array([0, end - start]),
            codec=DATA,
            **{n: getattr(past, n)[start:end] for n in ("item", "ts", "behaviour", "context")},
        )
        there = replace(one, start=np.array([0]), end=np.array([end - start]))
        got = lists(SELECTORS[name](3).rows(there, sent))
        assert got == [[event - start for event in together[row]]]


@every
def test_nobody_has_no_events(name: str) -> None:
    nobody = Histories.empty(DATA)
    points = replace(
        pointers(np.random.default_rng(0), histories(np.random.default_rng(0))),
        start=np.zeros(8, np.int64),
        end=np.zeros(8, np.int64),
    )
    batch = Collator(nobody, MODEL, 0, SELECTORS[name](3))(points)
    assert not batch.history_mask.any()
    assert batch.history_items.shape == (8, 1)


class Newest:
    """The newest events, in plain Python."""

    def __init__(self, length: int) -> None:
        self.length = length

    def rows(self, pointers: Pointers, histories: Histories) -> np.ndarray:
        own = [
            list(range(start, end))[::-1][: self.length]
            for start, end in zip(pointers.start, pointers.end, strict=True)
        ]
        width = max(1, *map(len, own))
        return np.array([rows + [-1] * (width - len(rows)) for rows in own])


@given(seed=SEEDS, length=COUNTS, known=st.booleans())
@settings(max_examples=30)
def test_a_selector_of_the_newest_gives_the_batch_of_none(
    seed: int, length: int, known: bool
) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    if not known:
        points = replace(points, ts=np.full(8, UNKNOWN_TS))
    plain = Collator(past, MODEL, length)
    chosen = Collator(past, MODEL, 99, Newest(length))
    assert (plain.rows(points) == chosen.rows(points)).all()
    for name, value in vars(plain(points)).items():
        other = getattr(chosen(points), name)
        assert value is other is None or (value.dtype == other.dtype and value.equal(other))


@given(seed=SEEDS)
@settings(max_examples=20)
def test_a_batch_holds_the_events_that_were_chosen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    collator = Collator(past, MODEL, 9, ByContext(MODEL, 4))
    batch, rows = collator(points), collator.rows(points)
    for at in np.ndindex(*rows.shape):
        row = rows[at]
        assert bool(batch.history_mask[at]) == (row >= 0)
        item = past.item[row] if row >= 0 else 0
        context = asked(past.context[row]) if row >= 0 else (0, 0)
        age = (points.ts[at[0]] - past.ts[row]) / 1e6 if row >= 0 else 0
        assert batch.history_items[at] == item
        assert tuple(batch.history_context[at].tolist()) == context
        assert batch.history_age_s[at] == np.float32(age)
    assert batch.history_length.tolist() == (points.end - points.start).tolist()


def test_random_events_are_drawn_evenly_and_anew_for_each_request() -> None:
    draws, size, count = 4000, 7, 3
    key = mixed(5, np.arange(draws))
    drawn = distinct(key, np.full(draws, size), count)
    assert all(len(set(row)) == count for row in drawn.tolist())
    share = np.bincount(drawn.ravel(), minlength=size) / draws
    bound = 5 * np.sqrt(count / size * (1 - count / size) / draws)
    assert np.abs(share - count / size).max() < bound
    pairs = {frozenset(row) for row in drawn.tolist()}
    assert len(pairs) == 35  # every set of three occurs
    assert (distinct(mixed(6, np.arange(draws)), np.full(draws, size), count) != drawn).any()
    assert distinct(key[:3], np.array([0, 2, 10_000]), 4)[0].tolist() == [-1] * 4
    assert sorted(distinct(key[:2], np.array([4, 2]), 4)[1].tolist()) == [-1, -1, 0, 1]


@given(seed=SEEDS, count=COUNTS)
@settings(max_examples=30)
def test_permuted_contexts_are_those_of_earlier_events_of_the_user(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    source = []
    for start, end in zip(past.start[:-1], past.start[1:], strict=True):
        drawn = mixed(seed, np.arange(end - start)).tolist()
        source += [start + word % (place + 1) for place, word in enumerate(drawn)]
    relabelled = replace(past, context=past.context[np.array(source, np.int64)])
    got = lists(ByContext(MODEL, count, shuffle=seed).rows(points, past))
    assert got == by_hand(relabelled, points, count, 1)[0]


def test_permuted_contexts_are_others() -> None:
    rng = np.random.default_rng(0)
    past = histories(rng, 200)
    plain, placebo = (ContextIndex.build(past, MODEL, shuffle) for shuffle in (None, 0))

    def context_of(index: ContextIndex) -> np.ndarray:
        out = np.empty(len(index.order), np.int64)
        keys = context_keys(index.context, MODEL)
        out[index.order] = np.repeat(keys, np.diff(index.first))
        return out

    agree = (context_of(plain) == context_of(placebo)).mean()
    assert agree < 0.3  # twelve contexts, some of them more frequent than others


@given(seed=SEEDS, count=st.integers(1, 6))
def test_the_nearest_contexts_are_those_of_largest_similarity(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 4, (16, 16)) / 4
    similarity[rng.random((16, 16)) < 0.1] = np.nan
    got = Assignment.nearest(MODEL, CONTEXTS, similarity, count)
    for row in range(16):
        known = [j for j in range(16) if not np.isnan(similarity[row, j])]
        expected = sorted(known, key=lambda j: (-similarity[row, j], j))[:count]
        assert np.flatnonzero(got.similar[row]).tolist() == sorted(expected)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_a_shuffled_assignment_keeps_the_number_of_contexts(seed: int) -> None:
    given_ = alike(seed)
    got = given_.shuffled(seed)
    assert got.similar.sum(1).tolist() == given_.similar.sum(1).tolist()
    assert np.diag(got.similar).tolist() == np.diag(given_.similar).tolist()
    assert (got.similar == given_.shuffled(seed).similar).all()


def test_a_shuffled_assignment_forgets_the_old_one() -> None:
    rng = np.random.default_rng(0)
    big = np.stack(np.meshgrid(range(20), range(20), indexing="ij"), -1).reshape(-1, 2)
    wide = codec(tuple(map(str, range(18))), tuple(map(str, range(18))))
    given_ = Assignment(wide, big.astype(np.int32), rng.random((400, 400)) < 0.2)
    kept = (given_.similar & given_.shuffled(1).similar).sum() / given_.similar.sum()
    assert abs(kept - 0.2) < 0.02
    assert (given_.shuffled(1).similar != given_.shuffled(2).similar).any()


def test_features_are_chosen_by_name_in_the_order_given() -> None:
    assert chosen_features(MODEL, ("area", "meal")).names == ("area", "meal")
    assert chosen_features(MODEL, None) == MODEL
    with pytest.raises(ConfigError, match="no context feature weather; it has meal, area"):
        chosen_features(MODEL, ("meal", "weather"))
    wide = tuple(
        ContextFeature(name=f"f{i}", kind="categorical", values=tuple(map(str, range(98))))
        for i in range(10)
    )
    with pytest.raises(ConfigError, match="too many combinations"):
        chosen_features(ContextCodec(features=wide), None)
    with pytest.raises(ValueError, match="other context features"):
        ByContext(DATA, 3, assignment=alike(0))


@given(seed=SEEDS)
@settings(max_examples=10)
def test_the_last_feature_named_is_given_up_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    chosen = ByContext(chosen_features(MODEL, ("area",)), 3)
    for row, own in enumerate(lists(chosen.rows(points, past))):
        span: Any = range(points.end[row] - 1, points.start[row] - 1, -1)
        now = asked(points.context[row])[1]
        same = [r for r in span if asked(past.context[r])[1] == now]
        assert own == (same or list(span))[:3]
