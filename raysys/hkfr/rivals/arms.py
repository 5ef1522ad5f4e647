"""The rivals by name, with equally many settings each, of which validation chooses one."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from raysys.errors import ConfigError
from raysys.hkfr.next_task import NextTask, full_ranking
from raysys.hkfr.rivals.base import NextRanker
from raysys.hkfr.rivals.heuristics import AreaPopularity, Markov, OwnHabit
from raysys.hkfr.rivals.neural import GOAL, GOAL_CUTOFF, MODELS, SequenceConfig, SequenceRanker

TRIES = 4
Settings = dict[str, Any]


@dataclass(frozen=True)
class Rival:
    """build: makes a ranker of settings by name. tries: the settings among which to choose."""

    build: Callable[..., NextRanker]
    tries: tuple[Settings, ...]


@dataclass(frozen=True)
class Tuned:
    """A fitted ranker, what it was tuned to, and its `GOAL` on validation."""

    ranker: NextRanker
    settings: Settings
    value: float


def rivals(area: str | None, sequences: SequenceConfig | None = None) -> dict[str, Rival]:
    """All rivals, heuristics first.

    area: context feature that names the place; None: one place. sequences: what the sequence models
    have in common; width and learning rate are tuned.
    """
    common = sequences or SequenceConfig()
    strengths = (0.1, 1.0, 10.0, 100.0)
    found = {
        "area popularity": Rival(AreaPopularity, _grid(area=(area,), strength=strengths)),
        "own frequency": Rival(OwnHabit, _grid(strength=(1e-6, 0.1, 1.0, 10.0))),
        "own recency": Rival(OwnHabit, _grid(half_life=(0,), strength=strengths)),
        "own habit": Rival(OwnHabit, _grid(half_life=(14, 60), meal=(1, 4), strength=(1.0,))),
        "markov": Rival(Markov, _grid(strength=strengths)),
    }

    def build(model: str, width: int, lr: float) -> SequenceRanker:
        train = common.train.model_copy(update={"lr": lr})
        return SequenceRanker(
            common.model_copy(update={"model": model, "width": width, "train": train})
        )

    tries = {"width": (32, 64), "lr": (1e-3, 3e-3)}
    return found | {name: Rival(build, _grid(model=(name,), **tries)) for name in MODELS}


def tuned(rival: Rival, train: NextTask, valid: NextTask, seed: int) -> Tuned:
    """The rival with the settings that are best on validation; of equal ones, the first.

    Raises:
        ConfigError: it has none.
    """
    best: Tuned | None = None
    for settings in rival.tries:
        ranker = rival.build(**settings)
        ranker.fit(train, valid, seed)
        found = full_ranking(ranker.scores(valid), valid.target, (GOAL_CUTOFF,))
        value = float(found[GOAL].mean())
        if best is None or value > best.value:
            best = Tuned(ranker, settings, value)
    if best is None:
        raise ConfigError("a rival with no settings to try; give it at least one")
    return best


def _grid(**values: tuple[Any, ...]) -> tuple[Settings, ...]:
    """Every combination."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))
