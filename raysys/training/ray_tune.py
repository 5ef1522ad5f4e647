"""The loop as a Ray Tune trial: one process, each epoch a report, on which schedulers decide.

Tune is given no checkpoints, as Train is not: a trial's run folder holds its own.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from raysys.training.reporter import Record, Reporter


class RayTuneReporter:
    """Reports what `shape` makes of every epoch's record; the file `stop` asks for a clean end."""

    def __init__(self, stop: Path, shape: Callable[[Record], dict[str, Any]]) -> None:
        self._stop_file = stop
        self._shape = shape
        self._looked = float("-inf")

    def stage(self, name: str) -> "Reporter":
        """Tune hears nothing of a stage before the last: its epochs are no results."""
        return _Silent(self)

    def step(self, record: Record) -> None:
        """Nothing: Tune decides on epochs."""

    def epoch(self, record: Record, checkpoint: Path | None) -> None:
        tune.report(self._shape(record))

    def stop_requested(self) -> bool:
        now = time.monotonic()
        if now - self._looked < 0.5:
            return False
        self._looked = now
        return self._stop_file.exists()

    def preempted(self) -> bool:
        return False


class _Silent:
    """Tells nothing; asked to stop whenever the reporter of the whole run is."""

    def __init__(self, whole: RayTuneReporter) -> None:
        self._whole = whole

    def stage(self, name: str) -> Reporter:
        return self

    def step(self, record: Record) -> None:
        """Nothing."""

    def epoch(self, record: Record, checkpoint: Path) -> None:
        """Nothing."""

    def stop_requested(self) -> bool:
        return self._whole.stop_requested()

    def preempted(self) -> bool:
        return self._whole.preempted()
