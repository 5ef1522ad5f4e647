"""Seed statistics and the claim rule."""

import pytest
from scipy import stats

from raysys.errors import MetricError
from raysys.metrics.bootstrap import Interval
from raysys.metrics.seeds import (
    holm,
    non_inferiority,
    paired_t,
    summary,
    superiority,
    t_interval,
)

A = {1: 0.71, 2: 0.72, 3: 0.70, 4: 0.73, 5: 0.715}
B = {1: 0.70, 2: 0.705, 3: 0.70, 4: 0.71, 5: 0.702}


def test_summary() -> None:
    found = summary(A)
    assert (found.min, found.max, found.n) == (0.70, 0.73, 5)
    assert found.mean == pytest.approx(0.715)
    assert found.sd == pytest.approx(0.01118034)
    assert summary({0: 0.5}).sd is None


def test_paired_t_is_scipys() -> None:
    found = paired_t(A, dict(reversed(B.items())))
    reference = stats.ttest_rel(list(A.values()), list(B.values()))
    interval = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_seeds_are_never_dropped() -> None:
    with pytest.raises(MetricError, match=r"different seeds; only one of them has \[5\]"):
        paired_t(A, {k: v for k, v in B.items() if k != 5})
    with pytest.raises(MetricError, match="seed 2"):
        paired_t(A | {2: float("nan")}, B)
    with pytest.raises(MetricError, match="at least 2 seeds"):
        t_interval([0.1])


def test_constant_differences() -> None:
    assert t_interval([0.0, 0.0]).p == 1.0
    assert t_interval([0.5, 0.5]).p == 0.0


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == pytest.approx({"a": 1.0, "b": 1.0})


def around(delta: float, half: float) -> Interval:
    return Interval(delta, delta - half, delta + half, 0.001)


@pytest.mark.parametrize(
    ("seeds", "users", "change", "verdict"),
    [
        (around(0.01, 0.005), around(0.01, 0.005), {}, "supported"),
        (around(-0.01, 0.005), around(-0.01, 0.005), {}, "contradicted"),
        (around(-0.01, 0.005), around(-0.01, 0.005), {"higher_is_better": False}, "supported"),
        (around(0.01, 0.02), around(0.01, 0.005), {}, "no difference shown"),
        (around(0.01, 0.005), around(0.01, 0.02), {}, "no difference shown"),
        (around(0.001, 0.0005), around(0.001, 0.0005), {}, "no difference shown"),
        (around(0.01, 0.005), around(0.01, 0.005), {"p_adjusted": 0.06}, "no difference shown"),
        (around(0.01, 0.005), around(0.01, 0.005), {"n_seeds": 4}, "no verdict"),
        (None, around(0.01, 0.005), {"n_seeds": 1}, "no verdict"),
    ],
)
def test_a_claim_needs_everything(seeds, users, change: dict, verdict: str) -> None:
    options = {"n_seeds": 5, "p_adjusted": 0.01} | change
    assert superiority(seeds, users, **options) == verdict


@pytest.mark.parametrize(
    ("delta", "half", "change", "verdict"),
    [
        (0.0, 0.002, {}, "not inferior"),
        (0.0, 0.004, {}, "non-inferiority not shown"),
        (0.002, 0.004, {}, "not inferior"),
        (0.002, 0.004, {"higher_is_better": False}, "non-inferiority not shown"),
        (0.0, 0.002, {"n_seeds": 2}, "no verdict"),
    ],
)
def test_non_inferiority(delta: float, half: float, change: dict, verdict: str) -> None:
    wide, narrow = around(delta, half), around(delta, half / 2)
    options = {"n_seeds": 5} | change
    assert non_inferiority(wide, narrow, **options) == verdict
    assert non_inferiority(narrow, wide, **options) == verdict
