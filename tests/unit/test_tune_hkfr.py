"""The space `hkfr`: every axis changes what is learned, validation gives its metric."""

from pathlib import Path
from typing import Any

import pytest
from hkfr_language import planted_samples, write_samples

from raysys.errors import DataError
from raysys.options import nested, resolve
from raysys.recipes.registry import recipe_of, run
from tune_spaces import open_space
from tune_spaces.runner.space import Scalar, configure
from tune_spaces.runner.sweep import Options, tune

# Of each axis two values that must not come to the same.
AXES: dict[str, tuple[Scalar, Scalar]] = {
    "train.lr": (1e-3, 1e-2),
    "train.epochs": (1, 2),
    "tuning.lora.rank": (4, 8),
    "tuning.lora.targets": ("attention", "linear"),
    "max_tokens": (96, 48),
    "other_tasks": (1.0, 0.25),
    "loss": ("answer", "full"),
}
SMALL = [
    "backbone={layers: 1, width: 16, heads: 1, vocab: 400, positions: 1024}", "max_tokens=96",
    "row_tokens=96", "batch_rows=16", "held_limit=8", "rank_limit=4",
]  # fmt: skip


def test_the_axes_are_those_that_are_varied() -> None:
    assert set(open_space("hkfr").search) == set(AXES)


def test_samples_without_validation_are_refused_before_anything_begins(tmp_path: Path) -> None:
    space = open_space("hkfr")
    rows = [row for row in planted_samples(10) if row["split"] == "train"]
    data = write_samples(tmp_path / "samples", rows)
    base = resolve(
        recipe_of(space.recipe), None, SMALL[:1], {**nested(space.defaults), "data": str(data)}
    )
    chosen = Options(name="hkfr", space=space, base=base, samples=2, seeds=1)
    with pytest.raises(DataError, match="no validation split"):
        tune(chosen, tmp_path / "sweep", resume=False, again="")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_no_axis_is_silent_and_validation_judges(tmp_path: Path) -> None:
    space = open_space("hkfr")
    data = write_samples(tmp_path / "samples")
    given = {**nested(space.defaults), "data": str(data)}
    space.check(resolve(recipe_of(space.recipe), None, SMALL[:1], given))
    base = resolve(recipe_of(space.recipe), None, SMALL, given)
    first = {key: values[0] for key, values in AXES.items()}

    def learned(name: str, point: dict[str, Scalar]) -> dict[str, Any]:
        config = configure(base, {**first, **point}, seed=4)
        return run(config, tmp_path / name, show_progress=False).result

    plain = learned("plain", {})
    assert 0 <= plain["validation"][space.metric] <= 1
    for key, (_, other) in AXES.items():
        assert learned(key, {key: other})["weights_sha256"] != plain["weights_sha256"], key
