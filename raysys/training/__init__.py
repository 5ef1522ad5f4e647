"""The training harness: one loop, three ways to run it, checkpoints that can be trusted.

A recipe writes a train function and hands it to `launch`:

    def train(config: Config, session: Session) -> dict:
        task, loader = ...
        result = fit(task, loader, config.train, session)
        if World.current().leads: save the artefacts into session.run_dir
        return {"metrics": result.metrics}

    launch(train, config, config.train, run_dir, data_card_id=...)
"""

from raysys.training.checkpoints import Checkpoint, CheckpointStore
from raysys.training.config import EarlyStopping, TrainConfig
from raysys.training.identity import code_fingerprint, run_name
from raysys.training.launch import Outcome, TrainFunction, launch
from raysys.training.loop import FitResult, fit, weights_sha256
from raysys.training.reporter import InProcessReporter, InterruptedRunError, Reporter
from raysys.training.session import Session
from raysys.training.task import Loader, Task, Validated
from raysys.training.world import World

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "EarlyStopping",
    "FitResult",
    "InProcessReporter",
    "InterruptedRunError",
    "Loader",
    "Outcome",
    "Reporter",
    "Session",
    "Task",
    "TrainConfig",
    "TrainFunction",
    "Validated",
    "World",
    "code_fingerprint",
    "fit",
    "launch",
    "run_name",
    "weights_sha256",
]
