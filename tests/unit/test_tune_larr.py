"""The space `larr`: every axis changes what is learned."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from larr_runs import TINY, small_city
from safetensors.torch import load_file

from raysys.options import nested, resolve
from raysys.recipes.registry import recipe_of, run
from tune_spaces import open_space
from tune_spaces.runner.space import Scalar, configure

# Of each axis two values that must not come to the same.
AXES: dict[str, tuple[Scalar, Scalar]] = {
    "train.lr": (1e-3, 1e-2),
    "train.weight_decay": (1e-5, 1e-2),
    "larr.alignment.temperature": (0.1, 0.5),
    "larr.alignment.weight": (0.1, 1.0),
    "larr.encoder.layers": (1, 2),
    "larr.encoder.width": (8, 16),
    "larr.encoder.heads": (1, 2),
    "larr.encoder.dropout": (0.0, 0.4),
    "larr.encoder.head": (8, 16),
    "larr.use": ("query", "concat"),
}


def test_the_axes_are_those_that_are_varied() -> None:
    space = open_space("larr")
    assert {*space.search, *space.grid} == set(AXES)
    assert space.curve == "larr.alignment.weight"
    assert 0.0 in space.grid["larr.alignment.weight"]  # without alignment


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("tune-larr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(root / "cache"))
        small_city(root / "city")
        yield root / "city"


def learned(city: Path, folder: Path, point: dict[str, Scalar]) -> dict[str, torch.Tensor]:
    space = open_space("larr")
    given = {**nested(space.defaults), "data": str(city)}
    base = resolve(recipe_of(space.recipe), None, [*TINY, "train.max_steps=3"], given)
    first = {key: values[0] for key, values in AXES.items()}
    run(configure(base, {**first, **point}, seed=4), folder, show_progress=False)
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_no_axis_is_silent(city: Path, tmp_path: Path) -> None:
    """The defaults of the space need no --config on the planted city."""
    plain = learned(city, tmp_path / "plain", {})
    assert all(torch.isfinite(values).all() for values in plain.values())
    for key, (_, other) in AXES.items():
        changed = learned(city, tmp_path / key, {key: other})
        same = changed.keys() == plain.keys() and all(
            plain[name].shape == values.shape and torch.equal(plain[name], values)
            for name, values in changed.items()
        )
        assert not same, key
