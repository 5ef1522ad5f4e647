"""The arms of HomoDistil's fair test (homodistil.md §5): one recipe, one thing at a time."""

from dataclasses import dataclass, field
from typing import Any

ALONE = {"loss.kl": 0.0, "loss.hidden": 0.0, "loss.attention": 0.0, "loss.embedding": 0.0}
# A4 trained on until it has cost as much as A6.
SAME_COST = ("A12", "A4", "A6")
CLAIMED = ("A1", "A2", "A4", "A6", "A12")  # get all seeds


@dataclass(frozen=True)
class Arm:
    """options: of `llm/homodistil`, over what all arms share. like: whose learning rate it takes,
    its own by default."""

    name: str
    told: str
    options: dict[str, Any] = field(default_factory=dict)
    like: str | None = None


def arms(calibration: int) -> dict[str, Arm]:
    """All arms; calibration: batches by which one-shot students choose."""
    once = {"calibration": calibration}
    found = [
        Arm("A1", "random weights, task alone", {"student": "random", **ALONE}),
        Arm("A2", "random weights, distilled", {"student": "random"}),
        Arm("A3", "one-shot by magnitude, distilled", {"score": "magnitude", "calibration": 1}),
        Arm("A4", "one-shot by PLATON, distilled", once),
        Arm("A5", "one-shot by activations, distilled", {"score": "activation", **once}),
        Arm("A6", "HomoDistil"),
        Arm("A7", "HomoDistil, random ranking", {"score": "random"}),
        Arm("A8", "HomoDistil without distillation", ALONE),
        Arm("A9", "dense to 0.7 T, then one-shot", {"schedule": "oneshot", "start": 0.699}),
        Arm("A10", "HomoDistil, linear schedule", {"schedule": "linear"}),
        Arm("A11", "fewer layers, of weights as near as whole layers come", {"student": "shallow"}),
        Arm("A12", "A4, trained as long as A6 costs", once, like="A4"),
    ]
    return {arm.name: arm for arm in found}


@dataclass(frozen=True)
class Place:
    """What is compared with each other: one ratio and one budget, in units of tokens."""

    ratio: float
    budget: float

    @property
    def name(self) -> str:
        """Short, for folders and tables."""
        return f"r{self.ratio:.2f}-b{self.budget:g}"


MAIN = Place(1 / 3, 1.0)
ELSEWHERE = ("A4", "A6", "A12")


def language_grid() -> dict[Place, tuple[str, ...]]:
    """The affordable grid: all arms at the main place, the decisive ones at others."""
    others = [Place(0.75, 1.0), Place(1 / 3, 0.3), Place(1 / 3, 3.0)]
    return {
        MAIN: tuple(arms(1)),
        # At the strongest ratio one layer alone is heavier than the thin student.
        Place(0.5, 1.0): (*ELSEWHERE, "A11"),
        **dict.fromkeys(others, ELSEWHERE),
    }


def encoder_grid() -> dict[Place, tuple[str, ...]]:
    """The main arms of a sentence encoder at half its width; A5 beside A4, whose loss is silent
    before anything is cut (see `DistillTask.calibrate`)."""
    return {Place(0.5, 1.0): ("A2", "A5", *ELSEWHERE)}
