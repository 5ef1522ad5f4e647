"""Tuning with equal budgets, then seeds; every training is kept, so that a study resumes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bench.fair.arms import Arm, Point
from bench.fair.cell import Cell, Trained, run_cell, scores_of
from raysys.data.dataset import Dataset
from raysys.data.files import write_text
from raysys.data.prepared import prepare
from raysys.dist import ensure_ray, run_tasks
from raysys.dist.cluster import worker_env
from raysys.errors import ConfigError
from raysys.metrics.compare import System

_SMALLEST = 1 / 3  # of the rows, however little time there is


class Sizes(BaseModel):
    """How much is computed (METRICS.md's cost rule).

    rows: candidate rows to train on; tuning takes a third of them. valid_rows: of the validation
    part, by which options and epochs are chosen, in tuning too. users: whose test rows are
    scored. seeds: of the arms named in the rule for the verdict; other_seeds: of the others.
    max_core_hours: after tuning, the rows are reduced so that the whole study keeps to it, to
    a third at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(default=300_000, ge=1)
    valid_rows: int = Field(default=30_000, ge=1)
    users: int = Field(default=2_000, ge=1)
    seeds: int = Field(default=5, ge=1)
    other_seeds: int = Field(default=2, ge=1)
    max_core_hours: float = Field(default=4.0, gt=0)


@dataclass(frozen=True)
class Study:
    """chosen: the point each arm was tuned to. systems: test scores by arm and seed. validation:
    by arm and seed. seconds: of one core, by arm, tuning included. rows: trained on. tuning_size:
    the options by which tuning read fewer of them."""

    chosen: dict[str, Point]
    systems: dict[str, System]
    validation: dict[str, dict[int, float]]
    seconds: dict[str, float]
    rows: int
    tuning_size: Point


def run_study(
    arms: Sequence[Arm], base: dict[str, Any], data: str, out: Path, sizes: Sizes
) -> Study:
    """Tune on validation, train with all seeds, score the test split once per training.

    Raises:
        ConfigError: unequal numbers of tries, or a folder with other options.
        RaysysError: what a training raised; the others go on being there.
    """
    tuned = [arm for arm in arms if arm.tuned_as is None]
    if len({len(arm.tries) for arm in tuned}) > 1:
        raise ConfigError("the arms of a study are tried equally often")
    per_row = _impressions_per_row(data)

    def given(rows: float) -> Point:
        limits = (max(1, round(n * per_row)) for n in (rows, sizes.valid_rows))
        return {"data": data, **dict(zip(("train_limit", "valid_limit"), limits, strict=True))}

    tries = {
        (arm.name, n): Cell(
            out / "tune" / arm.name / f"try-{n}",
            arm.config(base, point, 0, given(sizes.rows / 3)),
        )
        for arm in tuned
        for n, point in enumerate(arm.tries)
    }
    tried = dict(zip(tries, train_all(list(tries.values()), "tuning"), strict=True))
    chosen: dict[str, Point] = {}
    for arm in tuned:
        best = max(range(len(arm.tries)), key=lambda n: tried[arm.name, n].validation)
        chosen[arm.name] = arm.tries[best]
    for arm in arms:
        if arm.tuned_as is not None:
            chosen[arm.name] = chosen[arm.tuned_as]

    counts = {arm.name: sizes.seeds if arm.named else sizes.other_seeds for arm in arms}
    rows = _affordable(arms, tried, counts, sizes, out / "rows.json")
    cells = {
        (arm.name, seed): Cell(
            out / "runs" / arm.name / f"seed-{seed}",
            arm.config(base, chosen[arm.name], seed, given(rows)),
            "test",
            sizes.users,
        )
        for seed in range(max(counts.values()))
        for arm in arms
        if seed < counts[arm.name]
    }
    trained = dict(zip(cells, train_all(list(cells.values()), "seeds"), strict=True))
    seconds = {arm.name: 0.0 for arm in arms}
    for (name, _), done in (*tried.items(), *trained.items()):
        seconds[name] += done.seconds
    systems, validation = {}, {}
    for arm in arms:
        mine = {seed: cell for (name, seed), cell in cells.items() if name == arm.name}
        systems[arm.name] = System(
            arm.name, {seed: {"": scores_of(cell)} for seed, cell in mine.items()}
        )
        validation[arm.name] = {seed: trained[arm.name, seed].validation for seed in mine}
    return Study(chosen, systems, validation, seconds, rows, given(sizes.rows / 3))


def merged(studies: Mapping[str, Study]) -> Study:
    """The folds of one data set as one study: test scores by seed and fold."""
    first = next(iter(studies.values()))
    if len(studies) == 1:
        return first
    systems = {
        arm: System(
            arm,
            {
                seed: {fold: study.systems[arm].rows[seed][""] for fold, study in studies.items()}
                for seed in system.rows
            },
        )
        for arm, system in first.systems.items()
    }
    every = list(studies.values())
    return Study(
        chosen={
            arm: {
                f"{fold} {key}": value
                for fold, study in studies.items()
                for key, value in study.chosen[arm].items()
            }
            for arm in first.chosen
        },
        systems=systems,
        validation={
            arm: {
                seed: float(np.mean([study.validation[arm][seed] for study in every]))
                for seed in seeds
            }
            for arm, seeds in first.validation.items()
        },
        seconds={arm: sum(study.seconds[arm] for study in every) for arm in first.seconds},
        rows=min(study.rows for study in every),
        tuning_size=first.tuning_size,
    )


def train_all(cells: list[Cell], label: str) -> list[Trained]:
    """All cells, those that are missing trained as tasks of one core each."""
    missing = [cell for cell in cells if cell.finished() is None]
    if missing:
        ensure_ray(env=worker_env(1))
        for _ in run_tasks(run_cell, missing, label=label, num_cpus=1):
            pass
    done = [cell.finished() for cell in cells]
    return [trained for trained in done if trained is not None]


def _impressions_per_row(data: str) -> float:
    rows = prepare(Dataset(data)).impressions
    train = rows.of("train")
    return len(train) / max(1, int(np.diff(rows.offsets)[train].sum()))


def _affordable(
    arms: Sequence[Arm],
    tried: dict[tuple[str, int], Trained],
    counts: dict[str, int],
    sizes: Sizes,
    kept: Path,
) -> int:
    """How many rows the seeds are trained on; settled once, then kept for the resumed study."""
    if kept.is_file():
        return int(json.loads(kept.read_text(encoding="utf-8"))["rows"])
    spent = sum(done.seconds for done in tried.values())
    each = {
        arm.name: np.mean([d.seconds for (name, _), d in tried.items() if name == _tuning_of(arm)])
        for arm in arms
    }
    expected = 3 * sum(float(each[name]) * count for name, count in counts.items())
    left = sizes.max_core_hours * 3600 - spent
    share = min(1.0, max(_SMALLEST, left / max(expected, 1e-9)))
    rows = round(sizes.rows * share)
    told = {
        "rows": rows,
        "core_hours_of_tuning": round(spent / 3600, 2),
        "core_hours_expected": round((spent + share * expected) / 3600, 2),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_text(kept, json.dumps(told) + "\n")
    return rows


def _tuning_of(arm: Arm) -> str:
    return arm.tuned_as or arm.name
