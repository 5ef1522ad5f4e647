"""Named metrics: values, counts, shards, errors."""

from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from raysys.errors import MetricError
from raysys.metrics import ScoredRows, evaluate, merge, partial_metrics, route
from raysys.metrics.names import parse
from raysys.metrics.routing import shard_of, stable_hash

NAMES = [
    "auc",
    "auc_ctr",
    "auc_ctcvr",
    "auc_cvr",
    "logloss",
    "ne",
    "ece",
    "ece_width",
    "calib_ratio",
    *(
        f"{base}@{key}"
        for key in ("impression", "user")
        for base in (
            "gauc_mean",
            "gauc_weighted",
            "mrr",
            "mrr_first",
            "ndcg@5",
            "ndcg@10",
            "hr@3~slate",
            "recall@3~slate",
        )
    ),
]


def rows(seed: int = 0, users: int = 40) -> ScoredRows:
    rng = np.random.default_rng(seed)
    impressions = 3 * users
    size = rng.integers(1, 12, impressions)
    impression = np.repeat(np.arange(impressions), size)
    n = impression.size
    p = rng.integers(1, 20, n) / 40
    click = rng.random(n) < p
    return ScoredRows.of(
        impression_id=[f"i{i}" for i in impression],
        user_id=[f"u{i % users}" for i in impression],
        item_id=[f"{j}" for k in size for j in range(k)],
        score=np.round(np.log(p), 2),
        click=click,
        order=click & (rng.random(n) < 0.3),
        p_click=p,
        p_order=p * rng.integers(1, 10, n) / 20,
        data_card_id="card",
        empty={"impression": 4},
    )


@pytest.mark.parametrize("world", [1, 2, 5])
def test_merged_shards_equal_one_machine(world: int) -> None:
    whole = rows()
    single = evaluate(whole, NAMES)
    merged = merge([partial_metrics(shard, NAMES) for shard in route(whole, "user", world)])
    for name in NAMES:
        assert merged[name].value == pytest.approx(single[name].value, abs=1e-12)
        exact = {"value"}
        assert merged[name].model_dump(exclude=exact) == single[name].model_dump(exclude=exact)


def test_parts_cross_process_borders() -> None:
    part = partial_metrics(rows(), NAMES)
    assert merge([ForkingPickler.loads(ForkingPickler.dumps(part))]) == merge([part])


def test_routing_keeps_groups_whole_and_is_stable() -> None:
    whole = rows()
    parts = route(whole, "user", 3)
    users = [set(part.user.values.to_pylist()) for part in parts]
    assert sum(map(len, parts)) == len(whole)
    assert sum(map(len, users)) == len(whole.user.values)
    order = np.random.default_rng(1).permutation(len(whole))
    again = shard_of(whole.take(order).user, 3)
    assert np.array_equal(again, shard_of(whole.user, 3)[order])
    assert stable_hash(["user"])[0] == 7173623408806911919
    with pytest.raises(MetricError, match="world size is 0"):
        route(whole, "user", 0)


def test_values_by_plain_python() -> None:
    r = rows(1)
    found = evaluate(r, ["gauc_mean@user", "gauc_weighted@user", "auc_cvr", "auc_ctcvr", "auc_ctr"])
    users = np.array(r.user.strings().to_pylist())
    per = {}
    for user in set(users):
        y, s = r.click[users == user], r.score[users == user]
        if 0 < y.sum() < y.size:
            per[user] = (roc_auc_score(y, s), y.size)
    assert found["gauc_mean@user"].value == pytest.approx(np.mean([a for a, _ in per.values()]))
    weighted = sum(a * n for a, n in per.values()) / sum(n for _, n in per.values())
    assert found["gauc_weighted@user"].value == pytest.approx(weighted)
    clicked = r.click == 1
    cvr = roc_auc_score(r.order[clicked], (r.p_order / r.p_click)[clicked])
    assert found["auc_cvr"].value == pytest.approx(cvr)
    assert found["auc_cvr"].n_rows == clicked.sum()
    assert found["auc_ctcvr"].value == pytest.approx(roc_auc_score(r.order, r.p_order))
    assert found["auc_ctr"].value == pytest.approx(roc_auc_score(r.click, r.p_click))


def small() -> ScoredRows:
    return ScoredRows.of(
        impression_id=["p", "p", "n", "n", "b", "b", "b"],
        user_id=["u", "u", "v", "v", "w", "w", "w"],
        item_id=["1", "2", "1", "2", "1", "2", "3"],
        score=[1, 2, 1, 2, 3, 2, 1],
        click=[1, 1, 0, 0, 0, 1, 0],
        data_card_id="card",
        empty={"impression": 1},
    )


def test_every_group_is_accounted_for() -> None:
    found = evaluate(small(), ["gauc_mean@impression", "mrr@impression", "auc"])
    gauc, mrr = found["gauc_mean@impression"], found["mrr@impression"]
    assert (gauc.n_rows, gauc.n_groups, gauc.n_used) == (7, 4, 1)
    dropped = (gauc.dropped_all_positive, gauc.dropped_all_negative, gauc.dropped_empty)
    assert dropped == (1, 1, 1)
    assert gauc.value == 0.5
    assert gauc.warning == "only 1 of 4 groups (25%) are used"
    assert (mrr.n_used, mrr.dropped_all_positive, mrr.warning) == (2, 0, None)
    assert mrr.value == pytest.approx((0.75 + 0.5) / 2)
    assert (found["auc"].key, found["auc"].data_card_id) == ("all", "card")


def test_multi_click_groups_tell_the_reciprocal_ranks_apart() -> None:
    found = evaluate(small(), ["mrr@impression", "mrr_first@impression"])
    assert found["mrr_first@impression"].value == pytest.approx((1 + 0.5) / 2)
    assert found["mrr@impression"].value < found["mrr_first@impression"].value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gauc@impression", "gauc_mean@impression"),
        ("ndcg@10", "ndcg@10@"),
        ("hr@10@user", "hr@10~full@user"),
        ("aucc", "did you mean auc"),
        ("ndcg@0@user", "no metric is called"),
        ("logloss", "needs p_click"),
        ("auc_cvr", "needs p_click|needs p_order"),
    ],
)
def test_impossible_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        evaluate(small(), [name])


def test_errors_instead_of_numbers() -> None:
    negatives = small().take(np.array([2, 3]))
    for name in ("auc", "gauc_mean@user", "mrr@user"):
        with pytest.raises(MetricError, match="the label is constant"):
            evaluate(negatives, [name])
    with pytest.raises(MetricError, match="none of the 2 groups"):
        evaluate(small().take(np.arange(4)), ["gauc_mean@impression"])
    other = partial_metrics(small(), ["auc"])
    mixed = partial_metrics(replace(small(), data_card_id="else"), ["auc"])
    with pytest.raises(MetricError, match="cannot merge auc of data 'card' with auc of data 'el"):
        merge([other, mixed])
    with pytest.raises(MetricError, match="different metrics"):
        merge([other, partial_metrics(small(), ["mrr@user"])])


def test_lower_is_better_where_it_is() -> None:
    assert parse("logloss").higher_is_better is False
    assert parse("calib_ratio").higher_is_better is None
    assert parse("hr@10~s100@user").higher_is_better is True
