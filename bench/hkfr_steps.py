"""All steps of HKFR's fair test: tries with equal budgets, then seeds; every one is kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.hkfr_arms import HEURISTICS, SEQUENCES, SUBJECT, Arm
from bench.hkfr_cell import Cell, Done, Settings, run_cell
from bench.hkfr_data import Questions, Study, questions
from raysys.data.files import write_text
from raysys.dist import ensure_ray, run_tasks
from raysys.dist.cluster import worker_env
from raysys.metrics.blocks import Floats

_SMALLEST = 1 / 3  # of the training questions, however little time there is


@dataclass(frozen=True)
class Studied:
    """What a study has found. settings: by arm; values: METRICS of each test question, by arm and
    seed; done: their steps; seconds: of one core, by arm; samples: training questions."""

    asked: Questions
    arms: Mapping[str, Arm]
    settings: Mapping[str, Settings]
    values: Mapping[tuple[str, int], Mapping[str, Floats]]
    done: Mapping[tuple[str, int], Done]
    seconds: Mapping[str, float]
    samples: int

    def of(self, arm: str, metric: str) -> dict[int, Floats]:
        """A metric of each test question [Q] by seed."""
        return {seed: found[metric] for (name, seed), found in self.values.items() if name == arm}


class Steps:
    """The steps of a study. seconds: of one core, by arm."""

    def __init__(
        self, study: Study, root: Path, seeds: int, other_seeds: int, core_hours: float,
        workers: int,
    ) -> None:  # fmt: skip
        self.study, self.root = study, root
        self.seeds, self.other_seeds = seeds, other_seeds
        self.core_hours, self.workers = core_hours, workers
        self.seconds: dict[str, float] = {}

    def cell(self, step: str, arm: str = "", **told: Any) -> Cell:
        """A step of this study."""
        return Cell(root=self.root, study=self.study, step=step, arm=arm, **told)

    def run(self, cells: Mapping[Any, Cell], label: str) -> dict[Any, Done]:
        """All of them; those that are missing are done."""
        missing = [cell for cell in cells.values() if cell.finished() is None]
        if self.workers and missing:
            ensure_ray(env=worker_env(1))
            for _ in run_tasks(run_cell, missing, label=label, in_flight=self.workers):
                pass
        elif missing:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            for cell in missing:
                run_cell(cell)
            torch.set_num_threads(threads)
        done = {key: cell.finished() for key, cell in cells.items()}
        found = {key: one for key, one in done.items() if one is not None}
        for key, one in found.items():
            arm = cells[key].arm
            self.seconds[arm] = self.seconds.get(arm, 0.0) + one.seconds
        return found

    def count(self, arm: str, arms: Mapping[str, Arm]) -> int:
        """Seeds of an arm; one where nothing is drawn."""
        if arm in HEURISTICS or (arm in arms and arms[arm].weights == "base"):
            return 1
        named = arm in SEQUENCES or arms[arm].named
        return self.seeds if named else self.other_seeds

    def affordable(self, expected: float, spent: float) -> int:
        """Training questions of a seed; settled once, then kept for the resumed study.

        expected: seconds of all seeds with all samples.
        """
        kept = self.root / "samples.json"
        if kept.is_file():
            return int(json.loads(kept.read_text(encoding="utf-8"))["samples"])
        left = self.core_hours * 3600 - spent
        share = min(1.0, max(_SMALLEST, left / max(expected, 1e-9)))
        samples = max(1, round(self.study.samples * share))
        write_text(kept, json.dumps({"samples": samples}) + "\n")
        return samples


def studied(steps: Steps, arms: Mapping[str, Arm], rates: tuple[float, ...]) -> Studied:
    """Tune every arm on validation, then ask the test questions once per seed."""
    asked = questions(steps.study)
    told = dict.fromkeys(arm.text for arm in arms.values() if arm.text != "nothing")
    steps.run({kind: steps.cell("texts", kind) for kind in told}, "texts")
    steps.run({"base": steps.cell("base")}, "pretraining")
    third = max(1, min(steps.study.samples, asked.parts[0]) // 3)
    own = [name for name, arm in arms.items() if arm.weights == "own" and arm.like is None]
    tries = {
        **{(name, rate): steps.cell("try", name, settings={"lr": rate}, samples=third)
           for name in own for rate in rates},
        **{(name, 0.0): steps.cell("try", name, samples=third)
           for name in (*HEURISTICS, *SEQUENCES)},
    }  # fmt: skip
    tried = steps.run(tries, "tuning")
    settings = {name: _chosen(tried, name) for name in (*HEURISTICS, *SEQUENCES, *own)}
    for name, arm in arms.items():
        if name not in settings:
            settings[name] = settings[arm.like] if arm.like else {}
    counts = {name: steps.count(name, arms) for name in settings}
    each = {
        name: np.mean([one.seconds for (of, _), one in tried.items() if of == _owner(name, arms)])
        for name in settings
        if name in SEQUENCES or (name in arms and arms[name].weights == "own")
    }
    expected = 3 * sum(float(value) * counts[name] for name, value in each.items())
    samples = steps.affordable(expected, sum(steps.seconds.values()))
    cells = {
        (name, seed): steps.cell("test", name, settings=point, seed=seed, samples=samples)
        for name, point in settings.items()
        for seed in range(counts[name])
    }
    # Those that ask another arm's weights come after it.
    late = {key for key in cells if key[0] in arms and arms[key[0]].weights == SUBJECT}
    done = steps.run({key: cell for key, cell in cells.items() if key not in late}, "seeds")
    done |= steps.run({key: cells[key] for key in late}, "seeds")
    values = {key: cell.values() for key, cell in cells.items()}
    return Studied(asked, arms, settings, values, done, steps.seconds, samples)


def _chosen(tried: Mapping[tuple[str, float], Done], name: str) -> dict[str, Any]:
    """The settings that are best on validation; of equals the first."""
    mine = [one for (of, _), one in tried.items() if of == name]
    return max(mine, key=lambda one: one.value or 0.0).settings


def _owner(name: str, arms: Mapping[str, Arm]) -> str:
    return (arms[name].like or name) if name in arms else name
