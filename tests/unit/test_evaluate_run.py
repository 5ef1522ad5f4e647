"""Evaluation of a run: one scoring path, identical rows for all, nothing written on bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from baselines_fixtures import Log, random_log, untrained_run, write
from typer.testing import CliRunner

from raysys.artifacts.predictor import Predictor
from raysys.cli.evaluate import evaluate as command
from raysys.data.dataset import Dataset
from raysys.data.mapping import LocalMapper
from raysys.data.prepared import prepare
from raysys.data.requests import Request
from raysys.data.world.config import WorldConfig
from raysys.data.world.make import make_world
from raysys.errors import ConfigError, DataError, MetricError
from raysys.metrics import ScoredRows
from raysys.metrics import evaluate as measure
from raysys.metrics.baselines import compute_baselines
from raysys.metrics.compare import compare, load_system
from raysys.recipes.evaluate import Evaluation, evaluate
from raysys.tracking.report import write_report


def _log(**options: bool) -> Log:
    return random_log(21, users=16, impressions=160, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log, Evaluation]:
    root = tmp_path_factory.mktemp("evaluate")
    log_ = _log()
    run = untrained_run(write(log_, root), root / "run")
    return root, log_, evaluate(run, root / "data", leak_tests=True, replicates=200)


def test_scores_are_those_of_the_predictor(done: tuple) -> None:
    root, log_, result = done
    data = prepare(Dataset(root / "data"))
    test = [i for i in log_.impressions if i["split"] == "test"]
    requests = [
        Request(
            request_id=i["impression_id"],
            user_id=i["user_id"],
            ts=i["ts"],
            candidates=i["candidates"],
        )
        for i in test
    ]
    expected = Predictor.load(root / "run", histories=data.histories).score(requests)
    rows = ScoredRows.read_parquet(root / "run" / "scores" / "test.parquet")
    assert rows.impression.strings().equals(expected["request_id"].combine_chunks())
    assert rows.item.strings().equals(expected["item_id"].combine_chunks())
    np.testing.assert_allclose(rows.score, expected["score"].to_numpy(), atol=1e-5)
    assert rows.click.tolist() == [c in i["clicks"] for i in test for c in i["candidates"]]
    assert (rows.model_id, rows.split) == (result.model_id, "test")
    again = measure(rows, result.model)
    assert again == result.model


def test_baselines_are_measured_on_the_rows_of_the_model(done: tuple) -> None:
    root, _, result = done
    rows = ScoredRows.read_parquet(root / "run" / "scores" / "test.parquet")
    scores = compute_baselines(prepare(Dataset(root / "data")), "test", seed=0)
    assert result.baselines.keys() == scores.keys() == result.intervals.keys()
    for name, values in scores.items():
        expected = measure(rows.with_scores(values), ["gauc_mean@impression", "auc"])
        for metric, value in expected.items():
            assert result.baselines[name][metric] == value
        interval = result.intervals[name]["gauc_mean@impression"]
        delta = result.model["gauc_mean@impression"].value
        delta -= expected["gauc_mean@impression"].value
        assert interval.delta == pytest.approx(delta, abs=1e-12)
        assert interval.low <= delta <= interval.high
    assert "logloss" in result.baselines["ctr"]
    assert "logloss" not in result.baselines["repeat"]


def test_the_result_is_complete_and_written(done: tuple) -> None:
    root, _, result = done
    written = json.loads((root / "run" / "metrics.json").read_text())
    assert written == result.model_dump(mode="json")
    assert {"model", "baselines", "groups", "data_card_id", "intervals", "summary"} <= set(written)
    failed = [finding.test for finding in result.findings if finding.passed is False]
    warned = f"NOT TO BE TRUSTED, {failed[0]} failed: " if failed else ""
    assert result.summary.startswith(f"{warned}ctr/din reaches gauc_mean@impression")
    assert "8-feature GBDT" in result.summary
    assert result.left_out.keys() == {"embedding", "embedding_max"}
    passed = {f.test: f.passed for f in result.findings}
    assert passed["candidate_permutation"]
    assert passed["overlap"]
    assert passed["time_audit"]
    assert passed["shuffled_history"] is not None
    assert result.oracle == {}
    assert result.oracle_gap == {}


def test_the_first_sentence_says_that_the_trees_are_better(tmp_path: Path) -> None:
    log_ = _log()
    for impression in log_.impressions:
        past = log_.history(impression)
        impression["clicks"] = [i for i in impression["candidates"] if i in past]
    run = untrained_run(write(log_, tmp_path), tmp_path / "run")
    result = evaluate(run, tmp_path / "data", replicates=200)
    assert ", below the 8-feature GBDT (gbdt_" in result.summary
    assert "no difference shown" not in result.summary


def test_vectors_of_the_run_serve_the_embedding_baseline(tmp_path: Path) -> None:
    log_ = _log()
    data = write(log_, tmp_path)
    vectors = np.random.default_rng(0).normal(size=(len(log_.items), 4)).astype(np.float32)
    run = untrained_run(data, tmp_path / "run", vectors)
    result = evaluate(run, tmp_path / "data", replicates=200)
    padded = np.concatenate([np.zeros((2, 4), np.float32), vectors])
    scores = compute_baselines(data, "test", seed=0, vectors=padded, which=["embedding"])
    rows = ScoredRows.read_parquet(run / "scores" / "test.parquet").with_scores(scores["embedding"])
    expected = measure(rows, ["auc"])["auc"].value
    assert result.baselines["embedding"]["auc"].value == pytest.approx(expected)
    assert result.left_out == {}


def test_a_timeless_set_and_empty_lists(tmp_path: Path) -> None:
    log_ = _log(timed=False)
    log_.impressions[-1] |= dict(candidates=[], clicks=[])
    run = untrained_run(write(log_, tmp_path), tmp_path / "run")
    result = evaluate(run, tmp_path / "data", replicates=200)
    assert result.groups["dropped_empty"] == 1
    assert "recency" in result.left_out
    assert [f.passed for f in result.findings if f.test == "time_audit"] == [None]


def test_items_in_another_order_get_the_same_scores(tmp_path: Path) -> None:
    log_ = _log()
    run = untrained_run(write(log_, tmp_path / "a"), tmp_path / "run")
    first = evaluate(run, tmp_path / "a" / "data", baselines=False, replicates=200)
    log_.items.reverse()
    write(log_, tmp_path / "b")
    second = evaluate(
        run, tmp_path / "b" / "data", baselines=False, other_data=True, replicates=200
    )
    for name, value in first.model.items():
        assert second.model[name].value == pytest.approx(value.value, abs=1e-6)


def test_other_data_than_trained_on_are_said(tmp_path: Path) -> None:
    run = untrained_run(write(_log(), tmp_path / "a"), tmp_path / "run")
    log_ = _log()
    log_.group_key = "user"
    write(log_, tmp_path / "b")
    with pytest.raises(ConfigError, match="may have learned the very rows"):
        evaluate(run, tmp_path / "b" / "data", baselines=False)
    assert not (run / "scores").exists()
    result = evaluate(
        run, tmp_path / "b" / "data", baselines=False, other_data=True, replicates=200
    )
    assert any("the run was trained on data" in warning for warning in result.warnings)
    assert result.groups["key"] == "user"
    # A comparison with a run that learned from these data is one across data.
    other = untrained_run(prepare(Dataset(tmp_path / "b" / "data")), tmp_path / "other")
    evaluate(other, tmp_path / "b" / "data", baselines=False, replicates=200)
    assert not (run / "metrics.json").exists()
    apart = run / "other" / result.data_card_id
    with pytest.raises(MetricError, match="different data"):
        compare(load_system(apart), load_system(other), ["auc"])


def test_a_metric_of_probabilities_may_lead(tmp_path: Path) -> None:
    data = write(_log(), tmp_path)
    run = untrained_run(data, tmp_path / "run")
    result = evaluate(run, tmp_path / "data", metrics=["logloss", "auc"], replicates=200)
    trees = result.baselines["gbdt_pointwise"]["logloss"].value
    assert "logloss" not in result.baselines["gbdt_lambdarank"]
    better = result.model["logloss"].value < trees
    words = f"{'better' if better else 'worse'} than the 8-feature GBDT (gbdt_pointwise"
    assert words in result.summary
    page = write_report(tmp_path / "report.html", [run]).read_text()
    assert "logloss, lower is better" in page


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    log_ = _log()
    run = untrained_run(write(log_, tmp_path), tmp_path / "run")
    with pytest.raises(ConfigError, match="no split is called 'tset'"):
        evaluate(run, tmp_path / "data", "tset")
    with pytest.raises(MetricError, match="did you mean"):
        evaluate(run, tmp_path / "data", metrics=["gauc"])
    for impression in log_.impressions:
        if impression["split"] == "test":
            impression["clicks"] = []
        if impression["split"] == "valid":
            impression["split"] = "train"
    write(log_, tmp_path / "constant")
    with pytest.raises(MetricError, match="constant"):
        evaluate(run, tmp_path / "constant" / "data", other_data=True)
    with pytest.raises(DataError, match="split valid has no impressions"):
        evaluate(run, tmp_path / "constant" / "data", "valid", other_data=True)
    assert not (run / "scores").exists()
    assert not (run / "metrics.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["food", "news"])
def test_a_world_shows_its_oracle_and_the_gap(tmp_path: Path, kind: str) -> None:
    make_world(WorldConfig(kind=kind, users=60, days=20, seed=3), tmp_path / "data", LocalMapper())
    run = untrained_run(prepare(Dataset(tmp_path / "data")), tmp_path / "run")
    result = evaluate(run, tmp_path / "data", replicates=200)
    headline = next(iter(result.model))
    best = result.oracle[headline].value
    assert best > max(values[headline].value for values in result.baselines.values())
    for name, gap in result.oracle_gap.items():
        base = result.baselines[name][headline].value
        share = (result.model[headline].value - base) / (best - base)
        assert gap.share == pytest.approx(share)
    assert result.oracle_gap.keys() == {"popularity", "gbdt_pointwise"}


def test_the_command_prints_json_on_stdout(done: tuple) -> None:
    root = done[0]
    app = typer.Typer()
    app.command()(command)
    arguments = [str(root / "run"), "--data", str(root / "data"), "--no-baselines"]
    shown = CliRunner().invoke(app, [*arguments, "--json"])
    assert Evaluation.model_validate_json(shown.stdout).split == "test"
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0
    assert "no GBDT baseline" in table.stdout
