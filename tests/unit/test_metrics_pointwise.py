"""Pooled metrics against scikit-learn and plain Python."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from raysys.errors import MetricError
from raysys.metrics import pointwise
from raysys.metrics.pointwise import Tally

STATISTICS = [
    pointwise.auc,
    pointwise.logloss,
    pointwise.ne,
    pointwise.ece,
    pointwise.ece_width,
    pointwise.calib_ratio,
]


def sample(seed: int, n: int = 500, levels: int = 30):
    rng = np.random.default_rng(seed)
    p = rng.integers(1, levels, n) / levels
    return p, (rng.random(n) < p).astype(int)


def ece_reference(p, y, bins: int = 15) -> float:
    blocks = [(v, [b for a, b in zip(p, y, strict=True) if a == v]) for v in sorted(set(p))]
    before, gaps = 0.0, [0.0] * bins
    for value, labels in blocks:
        place = min(bins - 1, int((before + len(labels) / 2) / len(p) * bins))
        gaps[place] += len(labels) * value - sum(labels)
        before += len(labels)
    return sum(map(abs, gaps)) / len(p)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_learn_and_references(seed: int) -> None:
    p, y = sample(seed)
    tally = Tally.of(p, y)
    assert pointwise.auc(tally) == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    loss = log_loss(y, p)
    rate = y.mean()
    assert pointwise.logloss(tally) == pytest.approx(loss, abs=1e-12)
    entropy = -rate * log(rate) - (1 - rate) * log(1 - rate)
    assert pointwise.ne(tally) == pytest.approx(loss / entropy, abs=1e-12)
    assert pointwise.calib_ratio(tally) == pytest.approx(p.sum() / y.sum(), abs=1e-12)
    assert pointwise.ece(tally) == pytest.approx(ece_reference(p, y), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30),
    st.integers(0, 30),
)
def test_auc_by_pairs_and_shards_merge(rows: list[tuple[int, bool]], cut: int) -> None:
    if len({y for _, y in rows}) < 2:
        return
    wins = [(a > b) + 0.5 * (a == b) for a, y in rows if y for b, z in rows if not z]
    score, label = zip(*rows, strict=True)
    whole = Tally.of(score, label)
    assert pointwise.auc(whole) == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    merged = Tally.of(score[:cut], label[:cut]).merge(Tally.of(score[cut:], label[cut:]))
    assert np.array_equal(merged.value, whole.value)
    assert np.array_equal(merged.negatives, whole.negatives)
    assert np.array_equal(merged.positives, whole.positives)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_weights_count_rows(statistic) -> None:
    p, y = sample(4)
    weight = np.random.default_rng(5).integers(0, 4, p.size)
    repeated = Tally.of(np.repeat(p, weight), np.repeat(y, weight))
    assert statistic(Tally.of(p, y, weight)) == pytest.approx(statistic(repeated), abs=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_input_order_never_matters(statistic) -> None:
    p, y = sample(6)
    order = np.random.default_rng(7).permutation(p.size)
    assert statistic(Tally.of(p, y)) == statistic(Tally.of(p[order], y[order]))


def test_equal_mass_bins_see_what_equal_width_bins_hide() -> None:
    # A tenth of the rows predict .03 and click at .01; the rest are the mirror image around .02.
    p = np.repeat([0.03, 0.01], 5000)
    y = np.zeros(10_000, int)
    y[:50], y[5000:5150] = 1, 1
    tally = Tally.of(p, y)
    assert pointwise.ece_width(tally) == pytest.approx(0.0, abs=1e-12)
    assert pointwise.ece(tally) == pytest.approx(0.02, abs=1e-12)


def test_sure_and_wrong_stays_finite() -> None:
    assert pointwise.logloss(Tally.of([0.0, 1.0], [1, 0])) == pytest.approx(-log(1e-7))


def test_perfect_calibration_and_constant_predictor() -> None:
    y = np.array([1, 0, 0, 0])
    tally = Tally.of(np.full(4, 0.25), y)
    assert pointwise.ne(tally) == pytest.approx(1.0)
    assert pointwise.ece(tally) == 0.0
    assert pointwise.auc(tally) == 0.5


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("label", [[1, 1], [0, 0]])
def test_constant_label_is_an_error(statistic, label: list[int]) -> None:
    with pytest.raises(MetricError, match="the label is constant"):
        statistic(Tally.of([0.1, 0.2], label))


def test_scores_are_not_probabilities() -> None:
    with pytest.raises(MetricError, match=r"must lie in \[0, 1\], found 3"):
        pointwise.logloss(Tally.of([0.1, 3.0], [0, 1]))
    with pytest.raises(MetricError, match="row 1 is nan"):
        Tally.of([0.1, np.nan], [0, 1])
