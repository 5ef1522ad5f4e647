"""How much is left when: the remaining share over the steps, and whole units of it (§2.3)."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.homodistil.groups import Group


class Schedule(BaseModel):
    """r(t): 1 before `start`, `ratio` from `end` on, both shares of all steps.

    shape: cubic (r falls fast first), linear, exponential, in `stairs` equal drops, or all at once
    at `start`. warm_up: no pruning in the first min(500, 2 % of the steps).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: Annotated[float, Field(gt=0, le=1)]
    shape: Literal["cubic", "linear", "exponential", "stairs", "oneshot"] = "cubic"
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(gt=0, le=1)] = 0.7
    stairs: Annotated[int, Field(ge=1)] = 8
    warm_up: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> "Schedule":
        if self.start >= self.end:
            raise ValueError(f"start={self.start} must lie before end={self.end}")
        return self

    def remaining(self, step: int, steps: int) -> float:
        """r(t) of T steps, in [ratio, 1]; never grows."""
        if step >= self.end * steps:
            return self.ratio
        quiet = min(500, 0.02 * steps) if self.warm_up else 0.0
        begin = self.start * steps
        if step < max(begin, quiet):
            return 1.0
        if self.shape == "oneshot":
            return self.ratio
        done = (step - begin) / (self.end * steps - begin)
        lost = 1 - self.ratio
        if self.shape == "linear":
            return 1 - lost * done
        if self.shape == "exponential":
            return float(self.ratio**done)
        if self.shape == "stairs":
            return 1 - lost * math.floor(done * self.stairs + 1e-9) / self.stairs
        return self.ratio + lost * (1 - done) ** 3


def units_left(group: Group, share: float, target: int) -> int:
    """k_G: units of a group at a remaining share, never under `target`, its size at the end;
    dimensions and neurons in multiples of 8, heads whole."""
    wanted = math.ceil(share * group.size - 1e-9)
    if group.kind != "attn":
        wanted = -(-wanted // 8) * 8
    return max(target, min(group.size, wanted))
