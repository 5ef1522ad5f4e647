"""Grouped metrics against references of a few lines, scikit-learn, and their own symmetries."""

from itertools import permutations
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from raysys.errors import MetricError
from raysys.metrics import ranking
from raysys.metrics.blocks import tie_blocks

Row = tuple[float, int]


def orders(rows: list[Row]) -> list[list[int]]:
    """The label lists of every order of the rows that is sorted by score."""
    every = [[rows[i] for i in p] for p in permutations(range(len(rows)))]
    best = sorted((s for s, _ in rows), reverse=True)
    return [[y for _, y in order] for order in every if [s for s, _ in order] == best]


def expectation(rows: list[Row], of) -> float:
    values = [of(labels) for labels in orders(rows)]
    return sum(values) / len(values)


def auc_of(labels: list[int]) -> float:
    wins = [i < j for i, y in enumerate(labels) if y for j, z in enumerate(labels) if not z]
    return sum(wins) / len(wins)


def mrr_of(labels: list[int]) -> float:
    return sum(y / (i + 1) for i, y in enumerate(labels)) / sum(labels)


def ndcg_of(k: int):
    def value(labels: list[int]) -> float:
        gain = [1 / log2(i + 2) for i in range(len(labels))][:k]
        dcg = sum(y * g for y, g in zip(labels, gain, strict=False))
        return dcg / sum(gain[: sum(labels)])

    return value


REFERENCES = {
    "auc": (ranking.auc, auc_of),
    "mrr": (ranking.mrr, mrr_of),
    "mrr_first": (ranking.mrr_first, lambda labels: 1 / (labels.index(1) + 1)),
    "ndcg@2": (lambda b: ranking.ndcg(b, 2), ndcg_of(2)),
    "ndcg@9": (lambda b: ranking.ndcg(b, 9), ndcg_of(9)),
    "hr@2": (lambda b: ranking.hit_rate(b, 2), lambda labels: float(any(labels[:2]))),
    "recall@3": (lambda b: ranking.recall(b, 3), lambda labels: sum(labels[:3]) / sum(labels)),
}

group = st.lists(st.tuples(st.integers(0, 2).map(float), st.integers(0, 1)), min_size=1, max_size=5)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=40, deadline=None)
@given(groups=st.lists(group, min_size=1, max_size=4))
def test_equals_the_mean_over_all_orders_of_tied_rows(name: str, groups: list[list[Row]]) -> None:
    function, of = REFERENCES[name]
    rows = [(s, y, g) for g, members in enumerate(groups) for s, y in members]
    values = function(tie_blocks(*zip(*rows, strict=True), n_groups=len(groups)))
    for members, value in zip(groups, values, strict=True):
        labels = {y for _, y in members}
        if 1 not in labels or (name == "auc" and 0 not in labels):
            assert np.isnan(value)
        else:
            assert value == pytest.approx(expectation(members, of), abs=1e-12)


def sample(seed: int, n: int = 3000, n_groups: int = 80, levels: int = 12):
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, n) / levels, rng.random(n) < 0.2, rng.integers(0, n_groups, n)


def test_equals_scikit_learn_in_every_group() -> None:
    score, label, code = sample(0)
    blocks = tie_blocks(score, label, code)
    auc, ndcg = ranking.auc(blocks), ranking.ndcg(blocks, 10)
    for g in range(80):
        s, y = score[code == g], label[code == g]
        assert auc[g] == pytest.approx(roc_auc_score(y, s), abs=1e-12)
        assert ndcg[g] == pytest.approx(ndcg_score(y[None], s[None], k=10), abs=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
def test_input_order_never_matters(name: str) -> None:
    score, label, code = sample(1)
    shuffled = np.random.default_rng(2).permutation(score.size)
    function = REFERENCES[name][0]
    a = function(tie_blocks(score, label, code))
    b = function(tie_blocks(score[shuffled], label[shuffled], code[shuffled]))
    assert np.array_equal(a, b)


def test_constant_scorer_has_the_random_expectation() -> None:
    label = np.array([1, 1, 0, 0, 0, 0, 0, 0])
    blocks = tie_blocks(np.zeros(8), label, np.zeros(8, int))
    assert ranking.auc(blocks)[0] == 0.5
    assert ranking.recall(blocks, 2)[0] == pytest.approx(2 / 8)
    assert ranking.hit_rate(blocks, 2)[0] == pytest.approx(1 - (6 * 5) / (8 * 7))
    assert ranking.mrr(blocks)[0] == pytest.approx(sum(1 / r for r in range(1, 9)) / 8)


def test_random_scores_average_to_the_constant_scorer() -> None:
    rng = np.random.default_rng(3)
    label = np.tile([1, 1, 0, 0, 0, 0, 0, 0], 20_000)
    code = np.repeat(np.arange(20_000), 8)
    for function, _ in REFERENCES.values():
        random = function(tie_blocks(rng.random(label.size), label, code))
        constant = function(tie_blocks(np.zeros(8), label[:8], code[:8]))[0]
        assert abs(random.mean() - constant) < 4 * random.std() / np.sqrt(random.size)


def test_large_groups_stay_exact() -> None:
    n = 200_000
    label = (np.arange(n) % 3 == 0).astype(int)
    blocks = tie_blocks(np.zeros(n), label, np.zeros(n, int))
    positives = label.sum()
    assert ranking.auc(blocks)[0] == 0.5
    miss = np.prod([(n - positives - j) / (n - j) for j in range(10)])
    assert ranking.hit_rate(blocks, 10)[0] == pytest.approx(1 - miss, abs=1e-9)


def test_empty_groups_are_undefined_and_no_rows_are_fine() -> None:
    blocks = tie_blocks([1.0, 0.0], [1, 0], [1, 1], n_groups=3)
    assert np.array_equal(ranking.auc(blocks), [np.nan, 1.0, np.nan], equal_nan=True)
    nothing = tie_blocks([], [], [], n_groups=2)
    for function, _ in REFERENCES.values():
        assert np.isnan(function(nothing)).all()


@pytest.mark.parametrize(
    ("score", "label", "message"),
    [
        ([0.1, np.nan], [0, 1], "row 1 is nan"),
        ([np.inf, 0.0], [0, 1], "row 0 is inf"),
        ([0.1, 0.2], [0, 2], "label in row 1 is 2"),
        ([0.1], [0, 1], "differ in shape"),
    ],
)
def test_bad_rows_are_errors(score, label, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        tie_blocks(score, label, [0, 0])
