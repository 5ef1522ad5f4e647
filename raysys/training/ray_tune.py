"""The loop as a Ray Tune trial: one process, each epoch a report with its checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray import tune

from raysys.training.checkpoints import CheckpointStore
from raysys.training.config import TrainConfig
from raysys.training.launch import TrainFunction
from raysys.training.reporter import Record
from raysys.training.rng import seed_everything
from raysys.training.session import Session


class RayTuneReporter:
    """Gives every epoch's record and checkpoint to Tune, where schedulers stop or clone it."""

    def step(self, record: Record) -> None:
        """Nothing: Tune decides on epochs."""

    def epoch(self, record: Record, checkpoint: Path) -> None:
        tune.report(dict(record), checkpoint=tune.Checkpoint.from_directory(checkpoint))

    def stop_requested(self) -> bool:
        return False

    def preempted(self) -> bool:
        return False


def trainable(
    train: TrainFunction, configure: Callable[[dict[str, Any]], tuple[BaseModel, TrainConfig]]
) -> Callable[[dict[str, Any]], None]:
    """A function for `tune.Tuner`.

    Continues from the checkpoint Tune hands in: the trial's own after a failure or a restored
    sweep, another trial's under population-based training (with this trial's rates).

    Args:
        train: as for `raysys.training.launch`.
        configure: a point of the search space → the recipe's config and its training part.
    """

    def trial(point: dict[str, Any]) -> None:
        config, settings = configure(point)
        run_dir = Path(tune.get_context().get_trial_dir()) / "run"
        store = CheckpointStore(run_dir / "checkpoints", keep=settings.keep_checkpoints)
        handed = tune.get_checkpoint()
        if handed is None:
            store.clear()
        else:
            with handed.as_directory() as folder:
                store.adopt(Path(folder))
        seed_everything(settings.seed)
        train(config, Session(run_dir, RayTuneReporter(), store))

    return trial
