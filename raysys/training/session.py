"""What a recipe's train function is given by whoever runs it."""

from dataclasses import dataclass
from pathlib import Path

from raysys.training.checkpoints import CheckpointStore
from raysys.training.reporter import Reporter


@dataclass(frozen=True)
class Session:
    """The run folder, the way to report, and the checkpoints of this run.

    `config_hash` names the run: a checkpoint of another one is refused. None accepts any.
    """

    run_dir: Path
    reporter: Reporter
    checkpoints: CheckpointStore
    config_hash: str | None = None
