"""The space `homodistil`: every axis changes what is learned, validation gives its metric."""

from pathlib import Path
from typing import Any

import pytest
from distil_toys import TINY, root

from raysys.homodistil.corpus import open_corpus
from raysys.options import nested, resolve
from raysys.recipes.registry import card_of, recipe_of, run, validates
from tune_spaces import open_space
from tune_spaces.runner.space import Scalar, configure

__all__ = ["root"]  # the fixture

# Of each axis two values that must not come to the same.
AXES: dict[str, tuple[Scalar, Scalar]] = {
    "train.lr": (1e-3, 1e-2),
    "every": (5, 10),
    "end": (0.3, 0.9),
    "score": ("platon", "magnitude"),
    "loss.kl": (1.0, 0.0),
    "loss.hidden": (1.0, 20.0),
    "loss.embedding": (1.0, 0.0),
    "ratio": (0.5, 0.75),
}


def test_the_axes_are_those_that_are_varied() -> None:
    space = open_space("homodistil")
    assert {*space.search, *space.grid} == set(AXES)


def test_a_sweep_looks_at_the_validation_split_of_a_corpus(root: Path) -> None:
    data = open_corpus(root / "data")
    assert validates(data)
    assert card_of(data).id == data.manifest.data_card_id


@pytest.mark.slow
def test_no_axis_is_silent_and_validation_judges(root: Path, tmp_path: Path) -> None:
    space = open_space("homodistil")
    write = tmp_path / "four"
    from raysys.llm.fresh import FreshModel, write_fresh_model

    write_fresh_model(write, FreshModel(layers=1, width=32, heads=4, vocab=300), ["sea wind boat"])
    given = {"data": str(root / "data"), "teacher": f"dir:{write}"}
    short = [*TINY, "train.max_steps=20"]
    base = resolve(recipe_of(space.recipe), None, short, {**nested(space.defaults), **given})
    space.check(base)
    first = {key: values[0] for key, values in AXES.items()}

    def learned(name: str, point: dict[str, Scalar]) -> dict[str, Any]:
        config = configure(base, {**first, **point}, seed=4)
        return run(config, tmp_path / name, show_progress=False).result

    plain = learned("plain", {})
    assert plain["validation"][space.metric] > 0
    for key, (_, other) in AXES.items():
        found = learned(key, {key: other})
        assert found["weights_sha256"] != plain["weights_sha256"], key
