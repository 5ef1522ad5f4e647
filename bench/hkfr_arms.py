"""The arms of HKFR's fair test (hkfr.md §5): one language model, one thing at a time."""

from dataclasses import dataclass
from typing import Literal

from raysys.hkfr.rivals.arms import rivals
from raysys.hkfr.rivals.neural import MODELS

# What of a user stands in the prompt: counts and facts; the rendered events; counts and facts of
# orders alone; names in a row, as P5 has them; a model's fusion; nothing.
Text = Literal["template", "events", "single", "names", "fused", "nothing"]
SUBJECT, BASE_LEVEL, UNTUNED, FUSED, UNFUSED = (
    "hkfr",
    "no knowledge",
    "no tuning",
    "hkfr fused",
    "no fusion",
)
# They know nothing of the user they answer for, and must not rise above the base level.
PLACEBOS = ("another user's knowledge", "permuted labels")
HEURISTICS = tuple(name for name in rivals(None) if name not in MODELS)
SEQUENCES = tuple(MODELS)


@dataclass(frozen=True)
class Arm:
    """An arm with a language model.

    weights: tuned for it; or whose it asks, the pretrained ones (base) or those of another arm.
    placebo: what is permuted, in training too. instructed: whether the instruction stands in test
    prompts. like: whose learning rate it takes, its own by default. named: the rule for the
    verdict names it.
    """

    text: Text
    told: str
    weights: str = "own"
    placebo: Literal["knowledge", "labels"] | None = None
    instructed: bool = True
    like: str | None = None
    named: bool = False


def language_arms(*, fused: bool) -> dict[str, Arm]:
    """All arms with a language model; fused: whether there is knowledge that a model has fused."""
    arms = {
        SUBJECT: Arm("template", "HKFR on the template's knowledge", named=True),
        FUSED: Arm("fused", "HKFR on knowledge that a model has fused", named=True),
        UNFUSED: Arm("events", "the events as text, equally many tokens", named=fused),
        UNTUNED: Arm("template", "pretrained, not tuned", weights="base", named=True),
        "single kind": Arm("single", "HKFR on orders alone"),
        "p5-style": Arm("names", "names in a row, no knowledge"),
        BASE_LEVEL: Arm("nothing", "the instruction alone: the base level", named=True),
        PLACEBOS[0]: Arm(
            "template", "of the same tenth by activity", placebo="knowledge", like=SUBJECT,
            named=True,
        ),
        PLACEBOS[1]: Arm(
            "template", "of the training questions", placebo="labels", like=SUBJECT, named=True
        ),
        "instruction withheld": Arm(
            "template", "HKFR's weights, asked with knowledge alone", weights=SUBJECT,
            instructed=False,
        ),
    }  # fmt: skip
    return {name: arm for name, arm in arms.items() if fused or arm.text != "fused"}
