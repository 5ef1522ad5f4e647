"""A trial, as its process on Ray sees it: an ordinary run folder, told to Tune epoch by epoch."""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from raysys.data.files import write_text
from raysys.errors import RaysysError, ResumeError, StorageFullError
from raysys.recipes.ranker import RankerRecipe
from raysys.recipes.registry import run
from raysys.tracking.metrics_log import METRICS_LOG, read_records
from raysys.training import InterruptedRunError
from raysys.training.launch import RunFiles
from raysys.training.ray_train import Tail
from raysys.training.ray_tune import RayTuneReporter
from tune_spaces.runner.objective import Objective
from tune_spaces.runner.space import configure

# A trial whose driver was killed may still be at work for a moment.
_TAKE_OVER_S = 60.0


@dataclass(frozen=True)
class Job:
    """What all trials of a sweep have in common.

    base: the recipe's config; folder: of the run folders; stop: a file that asks for a clean end.
    """

    base: RankerRecipe
    metric: str
    folder: Path
    stop: Path
    allow_code_change: bool

    @property
    def nested(self) -> bool:
        """Whether every trial runs Ray Train."""
        return self.base.train.workers > 0

    def halt(self, name: str) -> Path:
        """A file that asks one nested trial to end, since the search has stopped it."""
        return self.folder / f"{name}.halt"


def trainable(job: Job) -> Callable[[dict[str, Any]], None]:
    """The function for `tune.Tuner`. A fault is told, not raised: Tune would only try it again.

    Its records have a kind: epoch (see `Objective`), end, failed (the trial's own fault),
    stopped (by Ctrl-C), halted (by the search), broken (a fault of the place, not of the trial).
    """

    def trial(told: dict[str, Any]) -> None:
        tune.report(_outcome(job, told))

    return trial


def _outcome(job: Job, told: dict[str, Any]) -> dict[str, Any]:
    name = told["trial"]
    try:
        _train(job, job.folder / name, told)
    except InterruptedRunError:
        return {"kind": "halted" if job.halt(name).exists() else "stopped"}
    except (StorageFullError, ResumeError) as error:
        return {"kind": "broken", "error": type(error).__name__, "message": str(error)}
    except RaysysError as error:
        return {"kind": "failed", "message": str(error)}
    except Exception as error:
        path = job.folder / f"{name}.error.txt"
        write_text(path, traceback.format_exc())
        return {"kind": "failed", "message": f"{type(error).__name__}: {error}; see {path}"}
    return {"kind": "end"}


def _train(job: Job, folder: Path, told: dict[str, Any]) -> None:
    config = configure(job.base, told["parameters"], told["seed"])
    reporter = RayTuneReporter(job.stop, Objective(job.metric, config.train.early_stopping))
    if reporter.stop_requested():
        raise InterruptedRunError("asked to stop before it began")
    # Epochs an earlier process saved but may not have told; the sweep counts none of them twice.
    if (folder / METRICS_LOG).exists():
        for record in read_records(folder / METRICS_LOG):
            if record["kind"] == "epoch":
                reporter.epoch(record, None)
    if not job.nested:
        run(
            config,
            folder,
            allow_code_change=job.allow_code_change,
            reporter=reporter,
            wait_s=_TAKE_OVER_S,
        )
    else:
        _train_nested(job, config, folder, reporter, job.halt(told["trial"]))


def _train_nested(
    job: Job, config: RankerRecipe, folder: Path, reporter: RayTuneReporter, halt: Path
) -> None:
    """Ray Train inside the trial: its workers cannot speak with Tune, their log is read here."""
    files = RunFiles(folder)
    tail = Tail(files.metrics)
    errors: list[BaseException] = []

    def launch() -> None:
        try:
            run(
                config,
                folder,
                allow_code_change=job.allow_code_change,
                show_progress=False,
                wait_s=_TAKE_OVER_S,
            )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=launch, name="raysys-nested-train", daemon=True)
    thread.start()
    running = True
    while running:
        thread.join(0.2)
        running = thread.is_alive()
        if (halt.exists() or reporter.stop_requested()) and files.checkpoints.is_dir():
            files.stop.touch()
        for record in tail.new():
            if record["kind"] == "epoch":
                reporter.epoch(record, None)
    if errors:
        raise errors[0]
