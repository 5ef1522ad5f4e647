"""The space `larr_contrast`: every axis changes what is learned, validation gives its metric."""

from pathlib import Path
from typing import Any

import pytest
from larr_city import City

from raysys.options import nested, resolve
from raysys.recipes.registry import recipe_of, run
from tune_spaces import open_space
from tune_spaces.runner.space import Scalar, configure

# Of each axis two values that must not come to the same.
AXES: dict[str, tuple[Scalar, Scalar]] = {
    "temperature": (0.05, 0.3),
    "weights.uu": (1.0, 0.1),
    "weights.pp": (1.0, 0.1),
    "weights.up": (1.0, 0.1),
    "train.lr": (1e-3, 1e-2),
    "tuning.lora.rank": (4, 8),
    "width": (16, 8),
}
SMALL = [
    "backbone={layers: 1, width: 16, heads: 1, vocab: 300}", "max_tokens=48", "row_tokens=48",
    "batch_size=8", "chunk_tokens=384", "train.max_steps=2", "questions=20", "pool=20",
]  # fmt: skip


def test_the_axes_are_those_that_are_varied() -> None:
    assert set(open_space("larr_contrast").search) == set(AXES)


@pytest.mark.slow
def test_no_axis_is_silent_and_validation_judges(tmp_path: Path) -> None:
    space = open_space("larr_contrast")
    data = City().write(tmp_path / "city")
    base = resolve(
        recipe_of(space.recipe), None, SMALL, {**nested(space.defaults), "data": str(data)}
    )
    space.check(base)
    first = {key: values[0] for key, values in AXES.items()}

    def learned(name: str, point: dict[str, Scalar]) -> dict[str, Any]:
        config = configure(base, {**first, **point}, seed=4)
        return run(config, tmp_path / name, show_progress=False).result

    plain = learned("plain", {})
    assert 0 <= plain["validation"][space.metric] <= 1
    for key, (_, other) in AXES.items():
        assert learned(key, {key: other})["weights_sha256"] != plain["weights_sha256"], key
