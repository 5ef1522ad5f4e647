"""The space `cofars`: every axis changes what is learned; Tune hears of the ranker only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tune_toy import cofars_options, tiny_world

from raysys.recipes.registry import run
from raysys.training.ray_tune import RayTuneReporter
from tune_spaces import open_space
from tune_spaces.runner.space import Scalar, configure

# Of each axis two values that must not come to the same.
AXES: dict[str, tuple[Scalar, Scalar]] = {
    "cofars.encoder.anchored": (False, True),
    "cofars.gates.temperature": (0.1, 2.0),
    "cofars.gates.percentile": (90.0, 70.0),
    "cofars.gates.choice_percentile": (90.0, 10.0),
    "cofars.loss.mse": (5e-2, 5.0),
    "cofars.loss.ind": (1e-3, 0.1),
    "cofars.recent": (20, 2),
    "cofars.lists.events": (100, 5),
    "cofars.graph.layers": (1, 2),
    "cofars.encoder.prototypes": (4, 5),
}


def test_the_axes_are_those_of_the_paper_and_the_curve_its_counts() -> None:
    space = open_space("cofars")
    assert {*space.search, *space.grid} == set(AXES)
    assert space.grid["cofars.encoder.prototypes"] == (1, 10, 20, 30, 40, 60, 80)
    assert space.curve == "cofars.encoder.prototypes"
    assert space.trials(12, space.seeds) == 12 + 7 * 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("tune") / "world")


def learned(world: Path, folder: Path, point: dict[str, Scalar]) -> dict[str, torch.Tensor]:
    base = cofars_options(world, **{"train.epochs": 1, "train.max_steps": 2}).base
    first = {key: values[0] for key, values in AXES.items()}
    run(configure(base, {**first, **point}, seed=4), folder, show_progress=False)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return learned(world, tmp_path_factory.mktemp("plain") / "run", {})


@pytest.mark.slow
@pytest.mark.parametrize("key", AXES)
def test_no_axis_is_silent(
    key: str, world: Path, plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    changed = learned(world, tmp_path / "run", {key: AXES[key][1]})
    # Of the selector or, for K, of the ranker; the same weights mean that nothing was varied.
    assert changed.keys() != plain.keys() or not all(
        plain[name].shape == values.shape and torch.equal(plain[name], values)
        for name, values in changed.items()
    )


@pytest.mark.slow
def test_the_defaults_of_the_space_train_on_the_planted_city(
    plain: dict[str, torch.Tensor],
) -> None:
    """Contexts and attributes need no --config there."""
    assert all(torch.isfinite(values).all() for values in plain.values())


def test_tune_hears_nothing_of_a_stage_but_may_stop_it(tmp_path: Path) -> None:
    def shape(record: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("told")

    reporter = RayTuneReporter(tmp_path / "stop", shape)
    stage = reporter.stage("warm-up")
    stage.step({})
    stage.epoch({"epoch": 1}, tmp_path)
    assert not stage.stop_requested()
    (tmp_path / "stop").touch()
    # It looks again only after a while.
    assert RayTuneReporter(tmp_path / "stop", shape).stage("warm-up").stop_requested()
    with pytest.raises(AssertionError, match="told"):
        reporter.epoch({"epoch": 1}, tmp_path)
