"""No label of a row, and nothing later than its request, reaches what is known of it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from baselines_fixtures import Log, random_log, write

from raysys.metrics.baselines.compute import compute_baselines
from raysys.metrics.baselines.counts import BLOCKS, Counts, ItemCounts, Moments
from raysys.metrics.baselines.evidence import Evidence, Knowledge
from raysys.metrics.baselines.gbdt import GBDT, gbdt_scores
from raysys.metrics.baselines.rows import Rows


def _features(log_: Log, folder: Path, split: str, counts: Counts = "frozen") -> np.ndarray:
    data = write(log_, folder)
    known = Knowledge(data, "test", counts, 0, None)
    return Evidence(known, Rows.of(data, data.impressions.of(split))).features()


def _flipped(impression: dict) -> list[str]:
    return [i for i in impression["candidates"] if i not in impression["clicks"]]


@pytest.mark.parametrize("timed", [True, False])
def test_test_labels_change_no_score(tmp_path: Path, timed: bool) -> None:
    log_ = random_log(7, timed=timed)
    before = compute_baselines(write(log_, tmp_path / "a"), "test", seed=1)
    for impression in log_.impressions:
        if impression["split"] == "test":
            impression["clicks"] = _flipped(impression)
    after = compute_baselines(write(log_, tmp_path / "b"), "test", seed=1)
    for name, scores in before.items():
        np.testing.assert_array_equal(scores, after[name], err_msg=name)


@pytest.mark.parametrize("counts", ["frozen", "streaming"])
def test_nothing_at_or_after_a_request_changes_its_features(tmp_path: Path, counts: Counts) -> None:
    log_ = random_log(8)
    test = [i for i in log_.impressions if i["split"] == "test"]
    now = test[len(test) // 2]["ts"]
    edited = log_.copy()
    for event in edited.events:
        if event["ts"] >= now:
            event["item_id"] = "i07"
    for impression in edited.impressions:
        if impression["ts"] >= now:
            impression["clicks"] = _flipped(impression)
    upto = sum(len(i["candidates"]) for i in test if i["ts"] <= now)
    before = _features(log_, tmp_path / "a", "test", counts)[:upto]
    after = _features(edited, tmp_path / "b", "test", counts)[:upto]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("timed", [True, False])
def test_a_training_row_does_not_count_its_own_label(tmp_path: Path, timed: bool) -> None:
    log_ = random_log(9, timed=timed)
    before = _features(log_, tmp_path / "a", "train")
    train = [i for i in log_.impressions if i["split"] == "train"]
    start = np.cumsum([0] + [len(i["candidates"]) for i in train])
    for place in (0, len(train) // 2, len(train) - 1):
        edited = log_.copy()
        edited.impressions[place]["clicks"] = _flipped(train[place])
        after = _features(edited, tmp_path / f"b{place}", "train")
        own = slice(start[place], start[place + 1])
        np.testing.assert_array_equal(before[own], after[own])


def test_training_counts_are_those_of_earlier_blocks(tmp_path: Path) -> None:
    log_ = random_log(10)
    train = [i for i in log_.impressions if i["split"] == "train"]
    train[4]["ts"] = train[5]["ts"] = train[6]["ts"]  # of one time, so of one block
    data = write(log_, tmp_path)
    moments = Moments.of(data, "frozen", 0)
    rows = Rows.of(data, data.impressions.of("train"))
    clicks, views = ItemCounts.of(data, moments).before(rows)
    block = [sum(e["ts"] < i["ts"] for e in train) * BLOCKS // len(train) for i in train]
    expected = [
        (
            sum(item in e["clicks"] for e, b in zip(train, block, strict=True) if b < own),
            sum(item in e["candidates"] for e, b in zip(train, block, strict=True) if b < own),
        )
        for i, own in zip(train, block, strict=True)
        for item in i["candidates"]
    ]
    np.testing.assert_array_equal(np.stack([clicks, views], axis=1), expected)


def _learnable(group_key: str) -> Log:
    """Clicked are exactly the candidates that the user's history holds."""
    log_ = random_log(11, users=12, impressions=300)
    log_.group_key = group_key
    for impression in log_.impressions:
        past = log_.history(impression)
        impression["clicks"] = [i for i in impression["candidates"] if i in past]
    return log_


@pytest.mark.parametrize("group_key", ["impression", "user"])
def test_trees_learn_and_are_deterministic(tmp_path: Path, group_key: str) -> None:
    data = write(_learnable(group_key), tmp_path)
    first = compute_baselines(data, "test", seed=3, which=GBDT)
    again = compute_baselines(data, "test", seed=3, which=GBDT)
    click = Rows.of(data, data.impressions.of("test")).click
    assert first.keys() == {"gbdt_pointwise", "gbdt_lambdarank"}
    for name, scores in first.items():
        assert np.array_equal(scores, again[name])
        assert scores[click == 1].min() > scores[click == 0].max(), name


def test_only_the_newest_rows_train(tmp_path: Path) -> None:
    log_ = _learnable("impression")
    old = [i for i in log_.impressions if i["split"] == "train"][:90]
    data = write(log_, tmp_path / "a")
    for impression in old:
        impression["clicks"] = _flipped(impression)
    noisy = write(log_, tmp_path / "b")
    limit = sum(len(i["candidates"]) for i in log_.impressions if i["split"] == "train") // 3
    for prepared in (data, noisy):
        known = Knowledge(prepared, "test", "frozen", 0, None)
        test = Evidence(known, Rows.of(prepared, prepared.impressions.of("test")))
        scores = gbdt_scores(known, test, 0, limit)["gbdt_pointwise"]
        click = test.rows.click
        assert scores[click == 1].mean() > scores[click == 0].mean() + 0.5


def test_histogram_trees_stand_in_where_lightgbm_cannot_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "lightgbm.py").write_text("raise OSError('libgomp.so.1: cannot open')\n")
    monkeypatch.syspath_prepend(broken)
    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    data = write(_learnable("impression"), tmp_path)
    scores = compute_baselines(data, "test", seed=3, which=GBDT)
    assert scores.keys() == {"gbdt_histogram"}
    click = Rows.of(data, data.impressions.of("test")).click
    assert scores["gbdt_histogram"][click == 1].min() > scores["gbdt_histogram"][click == 0].max()


def test_constant_training_labels_give_no_trees(tmp_path: Path) -> None:
    log_ = random_log(12)
    for impression in log_.impressions:
        if impression["split"] == "train":
            impression["clicks"] = []
    scores = compute_baselines(write(log_, tmp_path), "test", seed=0)
    assert not set(GBDT) & scores.keys()
    assert (scores["popularity"] == 0).all()
