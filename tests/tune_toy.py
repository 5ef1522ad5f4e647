"""A sweep small enough for tests: a tiny world and a space of quick trainings."""

from pathlib import Path
from typing import Any

from raysys.data.mapping import LocalMapper
from raysys.data.world import WorldConfig, make_world
from raysys.options import nested, resolve
from raysys.recipes.registry import recipe_of
from tune_spaces import open_space
from tune_spaces.runner.space import Choice, Halving, Real, Space
from tune_spaces.runner.sweep import Options

TINY = {
    "model.embedding_dim": 4, "model.attention_hidden": [8], "model.hidden": [16],
    "model.history_length": 20, "batch_size": 16, "train.epochs": 3, "train.early_stopping": None,
    # A seed whose first suggestion is the best, so that halving has work to do.
    "with_histories": False, "train.seed": 4,
}  # fmt: skip
SPACE = Space(
    recipe="ctr/din",
    metric="gauc",
    mode="max",
    search={
        "train.lr": Real(low=1e-4, high=3e-2, log=True),
        "model.dropout": Real(low=0.0, high=0.4),
        "model.attention_softmax": Choice(values=(False, True)),
    },
    halving=Halving(grace=1, factor=2),
    memory_gb=0.5,
)


def tiny_world(out: Path) -> Path:
    make_world(WorldConfig(kind="food", users=60, days=20, seed=3), out, LocalMapper())
    return out


# What makes `tune_spaces.cofars` small; its axes stay as they are, but for the curve.
TINY_COFARS = {
    "model.embedding_dim": 4, "model.attention_hidden": [8], "model.hidden": [16],
    "batch_size": 16, "train.epochs": 2, "train.early_stopping": None,
    "cofars.encoder.dim": 8, "cofars.encoder.hidden": [16], "cofars.encoder.prototypes": 4,
    "cofars.preferences.support": 5, "selector.batch_size": 16, "selector.warm_up.epochs": 1,
    "selector.train.epochs": 1,
}  # fmt: skip


def cofars_options(world: Path, **changes: Any) -> Options:
    """Two suggestions, then a curve of two counts at the better one; `changes` as in `options`."""
    shipped = open_space("cofars")
    grid = {"cofars.encoder.prototypes": (1, 5)}
    space = shipped.model_copy(update={"grid": grid, "memory_gb": 0.5})
    own = {"defaults": nested(space.defaults), "tiny": TINY_COFARS}
    return options(world, space, **{"samples": 2, **own, **changes})


def options(world: Path, space: Space = SPACE, **changes: Any) -> Options:
    """`samples`, `seeds`, `max_concurrent` of the sweep; other names override the recipe."""
    own = {
        key: changes.pop(key) for key in ("samples", "seeds", "max_concurrent") if key in changes
    }
    defaults, tiny = changes.pop("defaults", {}), changes.pop("tiny", TINY)
    overrides = [f"{key}={value}".lower() for key, value in {**tiny, **changes}.items()]
    overrides = [line.replace("=none", "=null") for line in overrides]
    base = resolve(recipe_of(space.recipe), None, overrides, {**defaults, "data": str(world)})
    given = {"samples": 4, "seeds": 1, "max_concurrent": 1, **own}
    return Options(name="toy", space=space, base=base, **given)
