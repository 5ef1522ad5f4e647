"""Attribute values, their counts per context before a time, and smoothed shares, by plain loops."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from cofars_planted import CODEC, SIZES, VALUES, WIDTHS, Planted, histories
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raysys.data import attribute_counts
from raysys.data.attribute_counts import count_contexts, shrink, user_shares
from raysys.data.attributes import AttributeConfig, AttributeField, fit_attributes
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import ContextFeature
from raysys.data.schema import ITEMS
from raysys.errors import ConfigError, DataError

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=5)


def items(brands: list[str | None], prices: list[float | None]) -> pa.Table:
    rows = [
        dict(item_id=f"i{n}", brand=brand, price=price, attributes=[("stars", f"{n % 5}.5")])
        for n, (brand, price) in enumerate(zip(brands, prices, strict=True))
    ]
    return pa.Table.from_pylist(rows, ITEMS)


def config(*fields: AttributeField, joint: bool = False) -> AttributeConfig:
    return AttributeConfig(fields=fields, joint=joint)


BRAND = AttributeField(source="brand")


def test_values_start_at_zero_and_unknown_ones_are_none() -> None:
    table = items(["b", "a", None, "b", "z"], [1.0, 2.0, 30.0, None, 4.0])
    price = AttributeField(source="price", edges=(2.0, 10.0))
    # The last item was not met in training: its brand is no value, its price still has a band.
    fitted = fit_attributes(table, np.array([1, 1, 5, 1, 0]), config(BRAND, price))
    assert fitted.widths == (2, 3)
    expected = [(-1, -1), (-1, -1), (1, 0), (0, 1), (-1, 2), (1, -1), (-1, 1)]
    assert fitted.encode(table).tolist() == [list(row) for row in expected]


def test_quantile_edges_come_from_the_training_items() -> None:
    prices: list[float | None] = [float(p) for p in [*range(1, 9), *range(1000, 1008)]]
    counts = np.array([1] * 8 + [0] * 8)
    field = AttributeField(source="price", buckets=4)
    fitted = fit_attributes(items(["a", "b"] * 8, prices), counts, config(field))
    assert fitted.features[0].edges == tuple(np.quantile(np.arange(1, 9), [0.25, 0.5, 0.75]))
    values = fitted.encode(items(["a", "b"] * 8, prices))[2:, 0]
    assert values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] + [3] * 8


def test_text_can_be_cut_as_a_number_if_it_is_one() -> None:
    table = items(["a"] * 6, [1.0] * 6)
    stars = AttributeField(source="attribute:stars", edges=(2.0,))
    fitted = fit_attributes(table, np.ones(6, int), config(stars))
    assert fitted.encode(table)[2:, 0].tolist() == [0, 0, 1, 1, 1, 0]
    brand = AttributeField(source="brand", buckets=2)
    with pytest.raises(DataError, match="brand"):
        fit_attributes(table, np.ones(6, int), config(brand))


def test_a_limit_keeps_the_values_most_items_have() -> None:
    brands: list[str | None] = ["a", "b", "b", "c", "c", "d"]
    field = AttributeField(source="brand", limit=2)
    fitted = fit_attributes(items(brands, [1.0] * 6), np.ones(6, int), config(field))
    assert fitted.features[0].values == ("b", "c")
    assert fitted.encode(items(brands, [1.0] * 6))[2:, 0].tolist() == [-1, 0, 0, 1, 1, -1]


def test_joined_fields_count_pairs_of_values() -> None:
    table = items(["a", "b", "a", None], [1.0, 1.0, 9.0, 9.0])
    price = AttributeField(source="price", edges=(5.0,))
    fitted = fit_attributes(table, np.ones(4, int), config(BRAND, price, joint=True))
    assert fitted.widths == (4,)
    assert fitted.encode(table)[2:, 0].tolist() == [0, 2, 1, -1]
    with pytest.raises(ConfigError, match="at most two fields"):
        fit_attributes(table, np.ones(4, int), config(BRAND, price, BRAND, joint=True))
    many = AttributeField(source="item_id")
    large = items(["a", "b"] * 2049, [1.0] * 4098)
    with pytest.raises(ConfigError, match="8196 pairs"):
        fit_attributes(large, np.ones(4098, int), config(BRAND, many, joint=True))


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (BRAND, "brand"),
        (AttributeField(source="price", edges=(50.0,)), "price"),
        (AttributeField(source="price", buckets=3), "price"),
    ],
)
def test_a_field_with_one_value_is_refused_by_name(field: AttributeField, name: str) -> None:
    table = items(["a", "a", "b", None], [7.0, 7.0, 99.0, None])
    with pytest.raises(ConfigError, match=f"{name} has fewer than two values"):
        fit_attributes(table, np.array([1, 1, 0, 1]), config(field))


def test_impossible_fields_are_refused() -> None:
    for options in (
        dict(source="price"),
        dict(source="brand", edges=(2.0, 1.0)),
        dict(source="price", edges=(1.0,), limit=3),
        dict(source="brand", wrong=1),
    ):
        with pytest.raises(ValidationError):
            AttributeField(**options)
    with pytest.raises(ConfigError, match="fields is empty"):
        fit_attributes(items(["a"], [1.0]), np.ones(1, int), config())


@given(
    lengths=LENGTHS, seed=st.integers(0, 50), minutes=st.integers(0, 13), chunk=st.integers(1, 9)
)
def test_counts_are_those_of_the_events_before_the_time(
    lengths: list[int], seed: int, minutes: int, chunk: int
) -> None:
    past = histories(lengths, seed)
    table = ContextTable.fit(CODEC, tuple(SIZES), (), [past.context[::2]])
    before = 60_000_000 * minutes
    users = np.arange(len(lengths))
    stop = past.end_before(users, np.full(len(users), before))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribute_counts, "CHUNK", chunk)
        counts = count_contexts(past, table, VALUES, WIDTHS, stop)
    known = [tuple(row) for row in np.unique(past.context[::2], axis=0).tolist()]
    expected = np.zeros((len(known) + 1, sum(WIDTHS)), int)
    for row in range(len(past.item)):
        if past.ts[row] < before:
            context = tuple(past.context[row].tolist())
            place = known.index(context) + 1 if context in known else 0
            cuisine, price = VALUES[past.item[row]]
            expected[place, cuisine] += 1
            expected[place, WIDTHS[0] + price] += 1
    # Rows of the table go by ascending key, which is lexicographic order of the codes.
    assert counts.values.tolist() == expected.tolist()
    assert counts.events.tolist() == expected[:, : WIDTHS[0]].sum(1).tolist()
    assert counts.supported(2).tolist() == [
        r for r in range(1, len(known) + 1) if expected[r, : WIDTHS[0]].sum() >= 2
    ]


def test_only_wanted_behaviours_and_items_with_values_count() -> None:
    past = histories([6])
    past.behaviour[:] = [0, 1, 2, 0, 1, 2]
    past.item[0] = 1  # unknown
    table = ContextTable.fit(CODEC, (), (), [past.context])
    counts = count_contexts(past, table, VALUES, WIDTHS, past.start[1:], (0, 2))
    assert counts.events.tolist() == [0, 3]
    assert counts.values[1].tolist() == [
        int((VALUES[past.item[[2, 3, 5]], field] == value).sum())
        for field, width in enumerate(WIDTHS)
        for value in range(width)
    ]


def test_shares_lean_on_the_context_without_its_dropped_features() -> None:
    planted = Planted.of(histories([150, 90], seed=3), known=histories([60], seed=4).context)
    table, counts, strength = planted.table, planted.counts, 20.0
    width = WIDTHS[0]
    own = {key: counts.values[row + 1, :width] for row, key in enumerate(table.known)}
    root = counts.values[:, :width].sum(0) / counts.values[:, :width].sum()
    parents: Counter[tuple[int, ...]] = Counter()
    parent_counts: dict[tuple[int, ...], np.ndarray] = {}
    for key, count in own.items():
        group = tuple(table.codes(np.array(key))[:2].tolist())  # weather is dropped
        parents[group] += 1
        parent_counts[group] = parent_counts.get(group, 0) + count
    assert max(parents.values()) > 1
    for row, (key, count) in enumerate(own.items(), 1):
        total = parent_counts[tuple(table.codes(np.array(key))[:2].tolist())]
        middle = (total + strength * root) / (total.sum() + strength)
        expected = (count + strength * middle) / (count.sum() + strength)
        np.testing.assert_allclose(planted.shares[row, :width], expected, rtol=1e-5)
    np.testing.assert_allclose(planted.shares[0, :width], root, rtol=1e-5)
    np.testing.assert_allclose(planted.shares[:, :width].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(planted.shares[:, width:].sum(1), 1, rtol=1e-5)


def test_no_event_and_no_prior_give_uniform_shares() -> None:
    empty = shrink(np.zeros((1, 5), np.int64), np.zeros((1, 5)), (2, 3), 20.0)
    np.testing.assert_allclose(empty, [[1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]])


def test_user_shares_are_his_own_events_shrunk_to_those_of_all() -> None:
    planted = Planted.of(histories([40, 0, 25], seed=5))
    past, table = planted.past, planted.table
    seen = planted.index.contexts(np.array([2, 0]), np.array([20, 33]))
    parent = planted.shares[table.rows(seen.key)]
    shares = user_shares(planted.index, past, seen, VALUES, WIDTHS, parent, 7.0)
    for node in range(len(seen.key)):
        user, end = (2, 20) if seen.request[node] == 0 else (0, 33)
        rows = np.arange(past.start[user], past.start[user] + end)
        mine = rows[table.keys(past.context[rows]) == seen.key[node]]
        cuisine = np.bincount(VALUES[past.item[mine], 0], minlength=WIDTHS[0])
        expected = (cuisine + 7 * parent[node, : WIDTHS[0]]) / (len(mine) + 7)
        np.testing.assert_allclose(shares[node, : WIDTHS[0]], expected, rtol=1e-5)


@given(seed=st.integers(0, 100))
def test_keys_can_be_taken_apart_and_rows_are_those_of_training(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, 2 + n, 20) for n in SIZES.values()], 1)
    table = ContextTable.fit(CODEC, ("weather", "meal"), ("meal",), [codes[:8], codes[8:12]])
    picked = codes[:, [2, 0]]
    keys = table.keys(picked)
    assert table.codes(keys).tolist() == picked.tolist()
    known = sorted({tuple(row) for row in picked[:12].tolist()})
    assert [int(row) for row in table.rows(keys)] == [
        known.index(tuple(row)) + 1 if tuple(row) in known else 0 for row in picked.tolist()
    ]
    assert ContextTable.model_validate_json(table.model_dump_json()) == table
    expected = [
        0 if a == b else 1 if a[0] == b[0] else 2
        for a, b in zip(picked.tolist(), picked[::-1].tolist(), strict=True)
    ]
    assert table.tiers(keys, keys[::-1]).tolist() == expected


def test_impossible_contexts_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown context features mood"):
        ContextTable.fit(CODEC, ("mood",), (), [])
    with pytest.raises(ConfigError, match="drops weather"):
        ContextTable.fit(CODEC, ("meal",), ("weather",), [])
    wide = tuple(
        ContextFeature(name=f"f{n}", kind="numeric", edges=tuple(map(float, range(1000))))
        for n in range(7)
    )
    codec = CODEC.model_copy(update={"features": wide})
    with pytest.raises(ConfigError, match="too many combinations"):
        ContextTable.fit(codec, codec.names, (), [])
