"""What a recipe's train function is given by whoever runs it."""

from dataclasses import dataclass, replace
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

    def stage(self, name: str) -> "Session":
        """A part of this run with a log and checkpoints of its own, in a folder beside its own."""
        store = self.checkpoints.below(name)
        store.root.mkdir(parents=True, exist_ok=True)
        reporter = self.reporter.stage(name)
        return replace(self, run_dir=store.root, checkpoints=store, reporter=reporter)
