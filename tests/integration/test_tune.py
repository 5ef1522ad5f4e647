"""Sweeps on a real Ray cluster of two CPUs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster
from training_toy import toy_environment, toy_ray
from tune_toy import SPACE, options, tiny_world

from raysys.artifacts.predictor import Predictor
from raysys.errors import ConfigError, ResumeError
from raysys.recipes.evaluate import evaluate
from raysys.recipes.registry import run
from tune_spaces.runner.space import Choice, configure
from tune_spaces.runner.sweep import tune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("tune") / "world")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with toy_ray():
        yield


@pytest.fixture(scope="module")
def swept(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of four trials, one at a time."""
    out = tmp_path_factory.mktemp("swept") / "sweep"
    summary = tune(options(world), out, resume=False, again="")
    assert (summary["trials"], summary["failed"], summary["ran"]) == (4, 0, 4)
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "results.parquet").to_pylist()


def test_a_completed_trial_is_what_train_would_have_made(
    swept: Path, world: Path, tmp_path: Path
) -> None:
    found = rows(swept)
    assert [row["trial"] for row in found] == ["p000", "p001", "p002", "p003"]
    # Among four trials halving by a factor of two has stopped some and let others end.
    assert {row["status"] for row in found} == {"completed", "stopped"}
    row = next(row for row in found if row["status"] == "completed")
    keys = [key for key in row if "." in key]
    assert set(keys) == set(SPACE.search)
    base = options(world).base
    alone = run(
        configure(base, {k: row[k] for k in keys}, row["seed"]),
        tmp_path / "alone",
        show_progress=False,
    )
    trial = Predictor.load(swept / row["run"])
    assert trial.model_id == alone.result["model_id"]
    assert row["gauc"] == alone.result["validation"]["gauc"]
    evaluated = evaluate(swept / row["run"], world, "valid", baselines=False)
    assert evaluated is not None


def test_the_files_of_a_sweep_name_its_best_run(swept: Path) -> None:
    body = json.loads((swept / "sweep.json").read_text())
    completed = [row for row in rows(swept) if row["status"] == "completed"]
    best = max(completed, key=lambda row: row["gauc"])
    assert (body["state"], body["best"]["trials"]) == ("finished", [best["trial"]])
    assert body["best"]["runs"] == [str(swept / best["run"])]
    assert body["identity"]["samples"] == 4
    images = {path.name for path in (swept / "report").glob("*.png")}
    assert images == {"objective.png", "parameters.png"}
    # Nothing of Tune's stays.
    assert not (swept / "ray").exists()


def test_a_finished_sweep_is_not_run_again_and_another_is_refused(swept: Path, world: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in swept.glob("trials/*/model.safetensors")}
    found = rows(swept)
    again = tune(options(world), swept, resume=True, again="")
    assert (again["ran"], again["trials"]) == (0, 4)
    assert rows(swept) == found
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for changed, words in (
        (options(world, samples=5), r"samples \(4 → 5\)"),
        (options(world, seeds=2), r"seeds \(1 → 2\)"),
        (options(world, batch_size=32), r"recipe\.batch_size \(16 → 32\)"),
        (options(world, SPACE.model_copy(update={"halving": None})), r"space\.halving"),
    ):
        with pytest.raises(ResumeError, match=words):
            tune(changed, swept, resume=True, again="")
    with pytest.raises(ConfigError, match="--resume"):
        tune(options(world), swept, resume=False, again="")


def test_two_at_once_train_the_same_points(swept: Path, world: Path, tmp_path: Path) -> None:
    """The first suggestions are drawn before any result; equal points give equal values."""
    space = SPACE.model_copy(update={"halving": None})
    given = options(world, space, samples=3, max_concurrent=2)
    tune(given, tmp_path / "sweep", resume=False, again="")
    for mine, other in zip(rows(tmp_path / "sweep"), rows(swept), strict=False):
        assert mine["train.lr"] == other["train.lr"]
        assert mine["status"] == "completed"
        if other["status"] == "completed":
            assert mine["gauc"] == other["gauc"]


def test_a_grid_over_seeds_with_a_failing_cell(cluster: None, world: Path, tmp_path: Path) -> None:
    """A loss that is not finite fails its trials, which are named; the others give the curve."""
    space = SPACE.model_copy(
        update={"search": {}, "grid": {"train.lr": (1e-3, 1e-2, 1e30)}, "curve": "train.lr"}
    )
    given = options(world, space, samples=1, seeds=2, max_concurrent=2)
    summary = tune(given, tmp_path / "sweep", resume=False, again="")
    assert (summary["completed"], summary["failed"]) == (4, 2)
    assert set(summary["failures"]) == {"p000-g2-s4", "p000-g2-s5"}
    for message in summary["failures"].values():
        assert "Lower train.lr" in message
    assert {row["seed"] for row in rows(tmp_path / "sweep")} == {4, 5}
    curve = json.loads((tmp_path / "sweep" / "report" / "curve.json").read_text())
    assert curve["series"][0]["x"] == [1e-3, 1e-2]
    assert (tmp_path / "sweep" / "report" / "curve.png").exists()


def test_trials_on_ray_train(cluster: None, world: Path, tmp_path: Path) -> None:
    """Nested, with the dashboard on: stopped trials give their CPUs back, and one worker learns
    what a trial in one process learns."""
    tune(
        options(world, samples=3, **{"train.workers": 1}),
        tmp_path / "nested",
        resume=False,
        again="",
    )
    tune(options(world, samples=3), tmp_path / "plain", resume=False, again="")
    nested, plain = rows(tmp_path / "nested"), rows(tmp_path / "plain")
    assert "stopped" in [row["status"] for row in nested]
    for mine, other in zip(nested, plain, strict=True):
        assert {**mine, "seconds": 0} == {**other, "seconds": 0}


def test_an_impossible_plan_leaves_nothing(cluster: None, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs 3 CPUs, 0\.5 GB, the cluster has 2 CPUs"):
        tune(options(world, **{"train.threads_per_worker": 3}), tmp_path / "sweep", resume=False,
             again="")  # fmt: skip
    assert not (tmp_path / "sweep").exists()


def test_a_choice_no_trial_survives_is_reported(cluster: None, world: Path, tmp_path: Path) -> None:
    """Every trial fails: the sweep still ends, with a table and without a best."""
    space = SPACE.model_copy(update={"search": {"train.lr": Choice(values=(1e30,))}})
    given = options(world, space, samples=2, max_concurrent=2)
    summary = tune(given, tmp_path / "sweep", resume=False, again="")
    assert (summary["failed"], summary["best"], summary["images"]) == (2, None, [])
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["failed", "failed"]


def test_nested_training_without_a_dashboard_is_refused(world: Path, tmp_path: Path) -> None:
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        toy_environment(patch)
        bare = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        patch.setenv("RAY_ADDRESS", bare.address)
        given = options(world, **{"train.workers": 1})
        try:
            with pytest.raises(ConfigError, match=r"dashboard does not answer.*train\.workers=0"):
                tune(given, tmp_path / "sweep", resume=False, again="")
        finally:
            ray.shutdown()
            bare.shutdown()
    assert not (tmp_path / "sweep").exists()
