"""The laws of the planted world against a few lines of plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raysys.data.world import WorldConfig
from raysys.data.world.law import (
    click_probability,
    drifting_tastes,
    latin_square,
    personal_laws,
    repeat_strength,
    solve_offset,
)
from raysys.data.world.lexicon import DISHES, PHRASINGS, THEME_PULL, THEMES
from raysys.data.world.recovery import counted_js
from raysys.data.world.scene import CONTEXT_COUNT, context_code, context_parts, make_scene
from raysys.data.world.slates import Memory, last_before, thin
from raysys.data.world.streams import stream


def test_streams_depend_on_every_part_of_their_key() -> None:
    def first(seed: int, purpose: str, *index: int) -> float:
        return float(stream(seed, purpose, *index).random())

    assert first(1, "a", 2, 3) == first(1, "a", 2, 3)
    others = [first(2, "a", 2, 3), first(1, "b", 2, 3), first(1, "a", 3, 2), first(1, "a", 2)]
    assert len({first(1, "a", 2, 3), *others}) == 5


def test_context_code_round_trip() -> None:
    codes = np.arange(CONTEXT_COUNT)
    assert (context_code(*context_parts(codes)) == codes).all()


@given(st.integers(0, 2**32), st.integers(2, 8))
def test_latin_square_rows_and_columns_tell_nothing(seed: int, size: int) -> None:
    square = latin_square(np.random.default_rng(seed), size)
    for line in [*square, *square.T]:
        assert sorted(line.tolist()) == list(range(size))


@given(st.floats(-8, 3), st.floats(0.02, 0.9), st.integers(0, 1000))
def test_solved_offset_gives_the_rate(mean: float, rate: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(mean, 2, 50)
    offset = solve_offset(logits, rate)
    got = sum(1 / (1 + math.exp(offset - x)) for x in logits.tolist()) / len(logits)
    assert got == pytest.approx(rate, abs=1e-9)


def test_solved_offset_weighs_rows() -> None:
    logits, weight = np.array([0.0, 5.0]), np.array([1.0, 0.0])
    assert solve_offset(logits, 0.5, weight) == pytest.approx(0.0, abs=1e-9)


def test_clicks_fall_with_the_position() -> None:
    got = click_probability(np.array([[1.0, 1.0]]), np.array([0.0, -0.5]), 2.0)
    assert got.tolist() == [pytest.approx([1 / (1 + math.e), 1 / (1 + math.exp(1.5))])]


def test_repeat_strength_saturates() -> None:
    counts = np.array([0, 1, 2, 255], dtype=np.uint8)
    assert repeat_strength(counts).tolist() == [0.0, 0.5, 0.75, 1.0]


def test_personal_laws_and_tastes_are_distributions_with_a_floor() -> None:
    rng = np.random.default_rng(0)
    shared = rng.dirichlet(np.full(30, 0.3), 3)
    laws = personal_laws(rng, shared, 5, 4.0, 0.1)
    assert laws.shape == (5, 3, 30)
    assert np.allclose(laws.sum(-1), 1)
    assert laws.min() >= 0.1 / 30
    tastes = np.exp(drifting_tastes(rng, 4, 3, 30))
    assert np.allclose(tastes.sum(-1), 1)


@given(st.integers(0, 500))
def test_thin_keeps_distinct_usable_items_and_pads_behind(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 9, (6, 10))
    usable = rng.random(drawn.shape) < 0.6
    kept = thin(rng, drawn, usable, 5)
    for row in range(len(drawn)):
        allowed = set(drawn[row][usable[row]].tolist())
        items = [i for i in kept[row].tolist() if i >= 0]
        assert len(items) == len(set(items)) == min(5, len(allowed))
        assert set(items) <= allowed
        assert kept[row].tolist() == items + [-1] * (5 - len(items))


@given(st.integers(0, 500))
def test_last_before_is_strict_and_stays_with_the_user(seed: int) -> None:
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, 4, 12))
    value, told = rng.integers(0, 6, 12), rng.random(12) < 0.4
    carried = rng.integers(-1, 6, 4)
    got = last_before(value, told, user, carried)
    for row in range(12):
        earlier = [i for i in range(row) if user[i] == user[row] and told[i]]
        assert got[row] == (value[earlier[-1]] if earlier else carried[user[row]])


def test_memory_counts_clicks_and_keeps_the_last_ones() -> None:
    memory = Memory(users=2, items=300)
    user = np.repeat([0, 1], [40, 1])
    item = np.r_[np.arange(40), 7]
    memory.remember(user, item)
    assert memory.clicks[0, :40].tolist() == [1] * 40
    assert sorted(memory.recent[0].tolist()) == list(range(8, 40))
    drawn = memory.draw(np.random.default_rng(0), np.array([1, 1]), 5)
    assert (drawn == 7).all()
    for _ in range(300):
        memory.remember(np.array([1]), np.array([9]))
    assert memory.clicks[1, 9] == 255


def test_counted_js_of_a_hand_example() -> None:
    counts = [np.array([[2, 0], [0, 3], [2, 2]])]
    js = counted_js(counts)
    assert np.allclose(np.diag(js), 0)
    assert js[0, 1] == pytest.approx(1.0)
    quarter = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert js[0, 2] == pytest.approx(quarter - 0.5)


def test_prototypes_share_features() -> None:
    """Contexts that differ in one feature agree more often than any two contexts."""
    scene = make_scene(WorldConfig(seed=3))
    cube = scene.prototype.reshape(5, 3, 4, 3)
    neighbours = [
        (np.take(cube, i, axis) == np.take(cube, j, axis)).mean()
        for axis in range(4)
        for i in range(cube.shape[axis])
        for j in range(i)
    ]
    anyone = (scene.prototype[:, None] == scene.prototype[None, :]).mean()
    assert len(np.unique(scene.prototype)) == 12
    assert np.mean(neighbours) > 2 * anyone


def test_unseen_meals_leave_a_way_out() -> None:
    """In one weather on one day, the held-out mealtimes of the three places differ."""
    held_out = make_scene(WorldConfig(seed=5)).unseen_meal
    ordered = np.sort(held_out, axis=0)
    assert (ordered[1:] != ordered[:-1]).all()


def test_lexicon_is_complete() -> None:
    assert set(THEMES) == set(THEME_PULL)
    assert all(len(dishes) >= 6 for dishes in DISHES)  # searches use six dishes of each cuisine
    assert all(len(words) >= 2 for values in PHRASINGS.values() for words in values.values())


def test_config_refuses_unknown_and_impossible_values() -> None:
    with pytest.raises(ValidationError, match="extra"):
        WorldConfig(user=3)
    with pytest.raises(ValidationError, match="longer than days"):
        WorldConfig(days=10, log_days=20)
    with pytest.raises(ValidationError, match="leave no training day"):
        WorldConfig(days=10, log_days=5, valid_days=3, test_days=2)
