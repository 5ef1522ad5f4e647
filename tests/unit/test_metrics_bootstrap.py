"""The user bootstrap: weights, shards, coverage, and pooled statistics under weights."""

import numpy as np
import pytest

from raysys.errors import MetricError
from raysys.metrics import pointwise
from raysys.metrics.bootstrap import (
    WeightedAuc,
    WeightedEce,
    bootstrap_sums,
    interval_of,
    paired_bootstrap,
    paired_resampled,
    ratio_interval,
    user_weights,
)
from raysys.metrics.pointwise import Tally
from raysys.metrics.routing import stable_hash


def users(n: int):
    return stable_hash(f"user {i}" for i in range(n))


def test_weights_are_poisson_and_independent() -> None:
    weights = user_weights(users(2_000), seed=1, replicates=400).astype(float)
    error = 1 / np.sqrt(weights.size)
    assert abs(weights.mean() - 1) < 4 * error
    assert abs(weights.var() - 1) < 4 * np.sqrt(3) * error
    expected = [np.exp(-1), np.exp(-1), np.exp(-1) / 2, np.exp(-1) / 6]
    shares = [(weights == k).mean() for k in range(4)]
    assert shares == pytest.approx(expected, abs=4 * error)
    for a, b in ((weights[:-1], weights[1:]), (weights[:, :-1], weights[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 * error


def test_a_users_stream_depends_on_seed_and_user_only() -> None:
    all_users = users(50)
    whole = user_weights(all_users, seed=3, replicates=101)
    assert np.array_equal(user_weights(all_users[20:30], 3, 101), whole[20:30])
    assert np.array_equal(user_weights(all_users, 3, 37, first=64), whole[:, 64:])
    assert not np.array_equal(user_weights(all_users, 4, 101), whole)


def test_shards_merge_to_the_single_answer() -> None:
    columns = np.random.default_rng(0).normal((1.0, 10.0), 1.0, (60, 2))
    whole = bootstrap_sums(users(60), columns, seed=5, replicates=200)
    parts = [
        bootstrap_sums(users(60)[i::3], columns[i::3], seed=5, replicates=200) for i in range(3)
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert np.allclose(merged.replicates, whole.replicates, rtol=0, atol=1e-10)
    assert ratio_interval(merged).low == pytest.approx(ratio_interval(whole).low, abs=1e-12)


def test_interval_by_hand() -> None:
    drawn = np.arange(-10.0, 90.0)
    found = interval_of(40.0, drawn)
    assert (found.low, found.high) == tuple(np.percentile(drawn, [2.5, 97.5]))
    assert found.p == pytest.approx(2 * 12 / 101)
    assert interval_of(1.0, np.ones(99)).p == pytest.approx(2 / 100)
    assert interval_of(0.0, np.zeros(99)).p == 1.0


def test_coverage_of_clustered_differences() -> None:
    """Users of very unequal size share an effect; the interval must still cover the truth."""
    rng, hit, trials = np.random.default_rng(7), 0, 150
    for trial in range(trials):
        n = rng.integers(1, 12, 150).astype(float)
        difference = n * (0.1 + rng.normal(0, 1, 150)) + rng.normal(0, 1, 150) * np.sqrt(n)
        found = paired_bootstrap(users(150), difference, n, seed=trial, replicates=400)
        hit += found.low <= 0.1 <= found.high
    assert 0.88 <= hit / trials <= 0.99


def test_no_difference_has_large_p_and_a_big_one_small() -> None:
    noise = np.random.default_rng(8).normal(size=300)
    assert paired_bootstrap(users(300), noise - noise.mean(), np.ones(300)).p > 0.5
    assert paired_bootstrap(users(300), noise + 1, np.ones(300)).p == pytest.approx(2 / 2001)


def sample(seed: int, n: int = 400, n_users: int = 25, levels: int = 20):
    rng = np.random.default_rng(seed)
    p = rng.integers(1, levels, n) / levels
    return p, (rng.random(n) < p).astype(np.int64), rng.integers(0, n_users, n)


@pytest.mark.parametrize("levels", [20, 10**6])
@pytest.mark.parametrize(
    ("kind", "statistic"), [(WeightedAuc, pointwise.auc), (WeightedEce, pointwise.ece)]
)
def test_weighted_statistics_equal_repeated_rows(kind, statistic, levels: int) -> None:
    p, y, user = sample(9, levels=levels)
    weighted = kind.of(p, y, user)
    for w in user_weights(users(25), seed=0, replicates=40).T.copy():
        repeated = Tally.of(np.repeat(p, w[user]), np.repeat(y, w[user]))
        assert weighted(w) == pytest.approx(statistic(repeated), abs=1e-12)


@pytest.mark.parametrize("name", ["logloss", "ne", "calib_ratio", "ece_width"])
def test_additive_statistics_equal_repeated_rows(name: str) -> None:
    p, y, user = sample(9)
    statistic = getattr(pointwise, name)
    sums = statistic.by_user(p, y, user, 25)
    for w in user_weights(users(25), seed=0, replicates=8).T:
        repeated = Tally.of(np.repeat(p, w[user]), np.repeat(y, w[user]))
        assert statistic.finish(w @ sums) == pytest.approx(statistic(repeated), abs=1e-12)


def test_pooled_bootstrap_is_paired_and_finds_the_better_ranker() -> None:
    _, y, user = sample(10, n=4000, n_users=200)
    noise = np.random.default_rng(11).normal(size=y.size)
    good, poor = (WeightedAuc.of(y * s + noise, y, user) for s in (1.0, 0.8))
    same = paired_resampled(users(200), [good], [good], replicates=100)
    assert (same.delta, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    found = paired_resampled(users(200), [good], [poor], replicates=130)
    assert 0 < found.low < found.delta < found.high


def test_too_few_users_is_an_error() -> None:
    with pytest.raises(MetricError, match="too few users"):
        paired_bootstrap(users(2), np.ones(2), np.ones(2))
    statistic = WeightedAuc.of(np.array([0.1, 0.2]), np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(MetricError, match="too few users"):
        paired_resampled(users(2), [statistic], [statistic])
