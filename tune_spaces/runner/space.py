"""What a sweep varies: pure data, checked against its recipe before anything starts."""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.options import merge, nested, validate
from raysys.recipes.ranker import RankerRecipe
from raysys.recipes.registry import recipe_of

Scalar = bool | int | float | str
Point = dict[str, Scalar]  # key of the recipe, with dots -> value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Real(_Part):
    """A number between low and high, both included; log: even over its logarithm."""

    kind: Literal["real"] = "real"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _checked(self)

    def ends(self) -> tuple[Scalar, ...]:
        """The values to check."""
        return (self.low, self.high)


class Whole(_Part):
    """A whole number between low and high, both included; log: even over its logarithm."""

    kind: Literal["whole"] = "whole"
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _checked(self)

    def ends(self) -> tuple[Scalar, ...]:
        """The values to check."""
        return (self.low, self.high)


class Choice(_Part):
    """One of several values without an order."""

    kind: Literal["choice"] = "choice"
    values: tuple[Scalar, ...] = Field(min_length=1)

    def ends(self) -> tuple[Scalar, ...]:
        """The values to check."""
        return self.values


def _checked(part: Any) -> Any:
    if not part.low < part.high or (part.log and part.low <= 0):
        raise ValueError(f"low={part.low}, high={part.high}: low < high, and 0 < low for log")
    return part


Domain = Annotated[Real | Whole | Choice, Field(discriminator="kind")]


class Halving(_Part):
    """ASHA (Li et al., MLSys 2020): at epochs grace, grace·factor, … a trial goes on only if it
    is among the best 1/factor of those that came so far."""

    grace: int = Field(default=2, ge=1)
    factor: int = Field(default=3, ge=2)


class Space(_Part):
    """A sweep over a recipe.

    recipe: a name of `raysys.recipes.registry`.
    metric, mode: of the recipe's validation split; the only figure a sweep ever looks at.
    search: what Optuna suggests, by key of the recipe (`train.lr`).
    grid: values that are all trained for every suggestion.
    defaults: options of the recipe below those of the user, by key.
    at_best: the grid is trained for the best suggestion only, once all have ended.
    samples, seeds: suggestions, and training seeds for each, unless the user says otherwise;
        with `at_best` a suggestion has one seed, and the seeds are those of the grid.
    halving: stopping of bad suggestions; only where a suggestion is one trial, since a mean over
        seeds or a grid needs all of them.
    curve: the grid key over which the means with their intervals are drawn.
    map: two grid keys, rows and columns of a picture of the means.
    front: a number in the runs' metrics.json, with dots, that is to be small; the metric is drawn
        over it, with the trials that no other one beats in both.
    memory_gb: of one training process at the scale the space is meant for.
    """

    recipe: str
    metric: str
    mode: Literal["max", "min"]
    search: dict[str, Domain] = {}
    grid: dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = {}
    at_best: bool = False
    defaults: dict[str, Any] = {}
    samples: int = Field(default=12, ge=1)
    seeds: int = Field(default=1, ge=1)
    halving: Halving | None = Halving()
    curve: str | None = None
    map: tuple[str, str] | None = None
    front: str | None = None
    memory_gb: float = Field(default=1.5, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        both = sorted(self.search.keys() & self.grid.keys())
        if both:
            raise ValueError(f"{', '.join(both)}: either search or grid, not both")
        if "train.seed" in self.search or "train.seed" in self.grid:
            raise ValueError("train.seed is varied by seeds, not by search or grid")
        if self.at_best and not self.search:
            raise ValueError("at_best: without search there is no best suggestion")
        drawn = {"curve": (self.curve,) if self.curve else (), "map": self.map or ()}
        for name, key in ((name, key) for name, keys in drawn.items() for key in keys):
            values = self.grid.get(key, ())
            if not values or any(isinstance(v, bool | str) for v in values):
                raise ValueError(f"{name}={key}: give it numbers in grid")
        return self

    def fixed(self, keys: Mapping[str, Any]) -> Self:
        """The same space without what the user has fixed: keys in `keys`."""
        return self.model_copy(
            update={
                "search": {k: v for k, v in self.search.items() if k not in keys},
                "grid": {k: v for k, v in self.grid.items() if k not in keys},
                "curve": None if self.curve in keys else self.curve,
                "map": None if self.map and {*self.map} & keys.keys() else self.map,
                # With nothing left to search the grid is the sweep.
                "at_best": self.at_best and not self.search.keys() <= keys.keys(),
            }
        )

    def trials(self, samples: int, seeds: int) -> int:
        """How many trials a sweep of so many suggestions and seeds has."""
        last = seeds * len(self.cells())
        return samples + last if self.at_best else samples * last

    def cells(self) -> list[Point]:
        """All combinations of the grid; one empty one without a grid."""
        values = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, combination, strict=True)) for combination in values]

    def check(self, base: RankerRecipe) -> None:
        """Every end of every range makes a valid config.

        Raises:
            ConfigError: an unknown key (names the nearest) or an impossible value.
        """
        ranges = {key: domain.ends() for key, domain in self.search.items()}
        for key, values in (ranges | self.grid).items():
            for value in values:
                configure(base, {key: value}, base.train.seed)


def configure(base: RankerRecipe, point: Mapping[str, Scalar], seed: int) -> RankerRecipe:
    """`base` with the values of `point` and the training seed.

    Raises:
        ConfigError: a key the recipe does not have, or a value it does not allow.
    """
    values = merge(base.model_dump(mode="json"), nested({**point, "train.seed": seed}))
    return validate(recipe_of(base.recipe), values, "search space")
