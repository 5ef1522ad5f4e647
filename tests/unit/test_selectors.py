"""Selectors against plain Python: which events of a history a request is shown."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.ctr.retrievers.alike import AlikeContexts
from raysys.ctr.retrievers.build import table_of
from raysys.ctr.retrievers.config import Exact
from raysys.ctr.retrievers.draws import distinct, mixed
from raysys.ctr.retrievers.selectors import ByContext, RandomEvents
from raysys.data.batch import Collator, Pointers, Selector
from raysys.data.context_keys import ContextTable
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
CONTEXTS = [(m, a) for m in range(4) for a in range(4)]
TABLE = ContextTable.fit(MODEL, MODEL.names, ("area", "meal"), ())
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


def alike(seed: int, drop: tuple[str, ...] = TABLE.drop) -> AlikeContexts:
    """Random similarities of contexts, most of which training has met."""
    rng = np.random.default_rng(seed)
    met = np.array(CONTEXTS)[rng.permutation(len(CONTEXTS))[:9]]
    table = ContextTable.fit(MODEL, MODEL.names, drop, [met])
    size = sum(len(level) for level in nodes(met.tolist(), drop))
    return AlikeContexts.of(table, rng.random((size, size)) < 0.3)


def without(context: Sequence[int], names: Sequence[str]) -> tuple[int, ...]:
    return tuple(0 if name in names else c for name, c in zip(MODEL.names, context, strict=True))


def nodes(met: list[list[int]], drop: tuple[str, ...]) -> list[list[tuple[int, ...]]]:
    """The contexts of each level of back-off in order; the last level is everything."""
    levels = [
        sorted({without(context, drop[:level]) for context in met})
        for level in range(len(drop) + 1)
    ]
    return [*levels, [()]]


def node(context: tuple[int, ...], met: list[list[int]], drop: tuple[str, ...]) -> int:
    """The number of the first node that holds the context."""
    number = 0
    for level, held in enumerate(nodes(met, drop)):
        for other in held:
            if other in (without(context, drop[:level]), ()):
                return number
            number += 1
    raise AssertionError


def by_hand(
    past: Histories,
    points: Pointers,
    count: int,
    *,
    least: int | None = None,
    strict: bool = False,
    likeness: AlikeContexts | None = None,
    drop: tuple[str, ...] = TABLE.drop,
) -> tuple[list[list[int]], list[list[int]]]:
    """Rows and tiers of every request, by looking at every event."""
    out, tiers = [], []
    met = [] if likeness is None else likeness.table.codes(likeness.table.known_keys).tolist()

    def tier_of(was: tuple[int, ...], now: tuple[int, ...]) -> int:
        if likeness is not None:
            near, far = node(now, met, drop), node(was, met, drop)
            bits = bin(int("1" + likeness.rows[near], 16))[3:]
            if bits[far] == "1":
                return 0
        agree = [
            d for d in range(len(drop) + 1) if without(was, drop[:d]) == without(now, drop[:d])
        ]
        return min([*agree, len(drop) + 1])

    for start, end, context in zip(points.start, points.end, points.context, strict=True):
        now = asked(context)
        found = [(tier_of(asked(past.context[row]), now), -row) for row in range(start, end)]
        enough = count if least is None else least
        opened = [
            (tier, row) for tier, row in sorted(found)
            if tier == 0 or (not strict and sum(other < tier for other, _ in found) < enough)
        ]  # fmt: skip
        chosen = sorted((row, tier) for tier, row in opened[:count])
        out.append([-row for row, _ in chosen])
        tiers.append([tier for _, tier in chosen])
    return out, tiers


def lists(rows: np.ndarray) -> list[list[int]]:
    for row in rows.tolist():
        assert row == sorted(row, reverse=True)  # newest first, padding behind
    return [[r for r in row if r >= 0] for row in rows.tolist()]


SELECTORS: dict[str, Callable[[int], Selector]] = {
    "random": lambda k: RandomEvents(k, 3),
    "exact": lambda k: ByContext(TABLE, k, least=2),
    "full": lambda k: ByContext(TABLE, k),
    "strict": lambda k: ByContext(TABLE, k, strict=True),
    "alike": lambda k: ByContext(TABLE, k, alike=alike(0)),
    "permuted": lambda k: ByContext(TABLE, k, shuffle=1),
}
every = pytest.mark.parametrize("name", list(SELECTORS))


@given(
    seed=SEEDS,
    count=COUNTS,
    least=st.none() | st.integers(1, 8),
    strict=st.booleans(),
    drop=st.sampled_from([("area", "meal"), ("meal",), ()]),
    counted=st.booleans(),
)
def test_events_are_those_that_looking_at_every_event_finds(
    seed: int, count: int, least: int | None, strict: bool, drop: tuple[str, ...], counted: bool
) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    likeness = alike(seed, drop)
    options: dict[str, Any] = dict(least=None if strict else least, strict=strict)
    given_ = likeness if counted else None
    selector = ByContext(likeness.table, count, alike=given_, **options)
    rows, tiers = selector.retrieve(points, past)
    expected, steps = by_hand(past, points, count, likeness=given_, drop=drop, **options)
    assert lists(rows) == expected
    assert [[tier for tier in row if tier >= 0] for row in tiers.tolist()] == steps
    assert ((rows >= 0) == (tiers >= 0)).all()


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
        if name != "strict":
            assert own or end == start  # something is found wherever there is a past
        if name not in ("exact", "strict"):
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
    collator = Collator(past, MODEL, 9, ByContext(TABLE, 4))
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
    got = lists(ByContext(TABLE, count, shuffle=seed).rows(points, past))
    assert got == by_hand(relabelled, points, count)[0]


def test_permuted_contexts_are_others_and_as_frequent() -> None:
    """Strict lists of single users, 6,000 events each, every one asked for each context."""
    size, users = 6000, 4
    rng = np.random.default_rng(0)
    context = np.stack([rng.integers(2, 5, users * size), rng.integers(2, 4, users * size)], 1)
    past = Histories(
        users=pa.array([f"u{i}" for i in range(users)]),
        start=np.arange(users + 1) * size,
        item=np.full(users * size, 2, np.int32),
        ts=np.zeros(users * size, np.int64),
        behaviour=np.zeros(users * size, np.int8),
        context=context.astype(np.int32),
        codec=DATA,
    )
    every_ = np.array([(m, a) for m in (2, 3, 4) for a in (2, 3)], np.int32)
    user = np.repeat(np.arange(users), len(every_))
    points = Pointers(
        start=past.start[user],
        end=past.start[user + 1],
        ts=np.zeros(len(user), np.int64),
        context=np.tile(every_, (users, 1)),
        codec=DATA,
        candidates=np.full((len(user), 1), 2),
    )
    table = ContextTable.fit(DATA, DATA.names, (), ())
    plain, placebo = (
        lists(ByContext(table, size, strict=True, shuffle=seed).rows(points, past))
        for seed in (None, 0)
    )
    for one, other in zip(plain, placebo, strict=True):
        # Counts of drawn contexts; events drawn from nearby prefixes vary together.
        assert abs(len(one) - len(other)) < 6 * np.sqrt(2 * size / 6)
        shared = len(set(one) & set(other)) / len(one)
        assert abs(shared - 1 / 6) < 0.05


@given(seed=SEEDS, share=st.floats(0.05, 1.0))
@settings(max_examples=30)
def test_the_nearest_contexts_are_those_below_a_share_of_divergences(
    seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    table = alike(seed).table
    size, met = len(alike(seed).rows), len(table.known)
    widths = (3, 2)
    parts = [rng.dirichlet(np.ones(width), size) for width in widths]
    got = AlikeContexts.nearest(table, np.hstack(parts).astype(np.float32), widths, share).matrix

    def entropy(p: np.ndarray) -> float:
        return -sum(x * np.log2(x) for x in p if x > 0)

    def divergence(i: int, j: int) -> float:
        each = [entropy((p[i] + p[j]) / 2) - (entropy(p[i]) + entropy(p[j])) / 2 for p in parts]
        return sum(each) / len(each)

    pairs = sorted(divergence(i, j) for i in range(met) for j in range(i))
    threshold = pairs[math.ceil(share * len(pairs)) - 1]
    assert got.diagonal().all()
    for i, j in np.ndindex(size, size):
        distance = divergence(i, j)
        if abs(distance - threshold) > 1e-5:
            assert got[i, j] == (i == j or distance < threshold)
    within = got[:met, :met][np.triu_indices(met, 1)].mean()
    assert within >= share - 1e-9
    assert within < share + 1 / len(pairs) + 1e-9


@given(seed=SEEDS)
@settings(max_examples=20)
def test_drawn_contexts_are_as_many_and_keep_the_own_one(seed: int) -> None:
    given_ = alike(seed)
    events = np.random.default_rng(seed).integers(0, 50, len(given_.rows))
    got = given_.drawn(events, seed)
    assert got.table == given_.table
    assert got.matrix.sum(1).tolist() == given_.matrix.sum(1).tolist()
    assert got.matrix.diagonal().tolist() == given_.matrix.diagonal().tolist()
    assert got == given_.drawn(events, seed)


def test_drawn_contexts_forget_the_old_ones_but_not_how_frequent_they_are() -> None:
    rng = np.random.default_rng(0)
    events = (1e6 / np.arange(1, 401) ** 1.2).astype(np.int64)[rng.permutation(400)]
    given_ = AlikeContexts.of(TABLE, (rng.random((400, 400)) < 0.2) | np.eye(400, dtype=bool))
    got = given_.drawn(events, 1)
    old, new = (x.matrix & ~np.eye(400, dtype=bool) for x in (given_, got))
    assert abs((old & new).sum() / old.sum() - 0.2) < 0.03
    # The most frequent contexts weigh most in how many events a list has.
    held, drawn = (x @ np.minimum(events, np.sort(events)[-17]) for x in (old, new))
    anyhow = np.random.default_rng(2).permuted(old, axis=1) @ np.minimum(
        events, np.sort(events)[-17]
    )
    assert np.abs(held - drawn).mean() < 0.5 * np.abs(held - anyhow).mean()
    assert (got.matrix != given_.drawn(events, 2).matrix).any()


def test_alike_contexts_are_plain_values() -> None:
    given_ = alike(3)
    again = AlikeContexts.model_validate_json(given_.model_dump_json())
    assert again == given_
    assert (again.matrix == given_.matrix).all()


def test_features_are_chosen_by_name_in_the_order_given() -> None:
    assert table_of(Exact(contexts=("area", "meal")), MODEL).codec.names == ("area", "meal")
    assert table_of(Exact(), MODEL) == TABLE  # though one of them has been used
    assert table_of(Exact(drop=("meal",)), MODEL).drop == ("meal",)
    with pytest.raises(ConfigError, match="unknown context features weather; known: meal, area"):
        table_of(Exact(contexts=("meal", "weather")), MODEL)
    wide = tuple(
        ContextFeature(name=f"f{i}", kind="categorical", values=tuple(map(str, range(98))))
        for i in range(10)
    )
    with pytest.raises(ConfigError, match="too many combinations"):
        table_of(Exact(), ContextCodec(features=wide))


@given(seed=SEEDS)
@settings(max_examples=10)
def test_a_feature_that_is_not_named_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    past = histories(rng)
    points = pointers(rng, past)
    chosen = ByContext(table_of(Exact(contexts=("area",)), MODEL), 3, least=1)
    for row, own in enumerate(lists(chosen.rows(points, past))):
        span: Any = range(points.end[row] - 1, points.start[row] - 1, -1)
        now = asked(points.context[row])[1]
        same = [r for r in span if asked(past.context[r])[1] == now]
        assert own == (same or list(span))[:3]
