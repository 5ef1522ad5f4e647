"""What is compared: arms over one base config, each with the options it may be tuned in."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from raysys.options import merge, nested, validate
from raysys.recipes.ranker import RankerRecipe
from raysys.recipes.registry import recipe_of

Point = dict[str, Any]  # key of a recipe, with dots -> value


class Arm(BaseModel):
    """One system of a fair test.

    options: what makes it this arm, laid upon the base config. tries: what is tried for it; every
    arm of a study has equally many. tuned_as: takes over the choice of another arm instead, as
    a placebo or an ablation does. named: it occurs in the rule for the verdict.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    recipe: str
    options: Point = {}
    tries: tuple[Point, ...] = ()
    tuned_as: str | None = None
    named: bool = False

    @model_validator(mode="after")
    def _apart(self) -> "Arm":
        twice = sorted({key for point in self.tries for key in point if key in self.options})
        if twice:
            raise ValueError(f"arm {self.name}: {twice[0]} is both fixed and tried")
        return self

    def config(self, base: dict[str, Any], point: Point, seed: int, given: Point) -> RankerRecipe:
        """The recipe of a training.

        base: a config file of any recipe; what this arm's recipe does not know of it is left out,
        but nothing of `options`, `point` and `given`.

        Raises:
            ConfigError: an unknown key or an impossible value.
        """
        kind = recipe_of(self.recipe)
        known = kind.model_fields
        values = {key: value for key, value in base.items() if key in known}
        model = known["model"].annotation
        assert model is not None
        options = {k: v for k, v in base.get("model", {}).items() if k in model.model_fields}
        fixed: Point = {"train.seed": seed, "with_histories": False}
        # A point that is taken over from another arm must not undo what makes this one.
        over = nested({**point, **self.options, **given, **fixed})
        return validate(kind, merge({**values, "model": options}, over), f"arm {self.name}")
