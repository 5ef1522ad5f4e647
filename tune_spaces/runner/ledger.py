"""The sweep's memory: what was suggested and what came of it, one flushed line per event.

Ray Tune's own restore unpickles its state and loses what its last snapshot did not hold; this
file loses nothing that was decided, and replaying it in order brings search and stopping rule
back into exactly the state they had.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raysys.errors import ArtifactError
from tune_spaces.runner.space import Point

Event = dict[str, Any]
Status = Literal["waiting", "running", "completed", "stopped", "failed"]
ENDED: frozenset[Status] = frozenset({"completed", "stopped", "failed"})


@dataclass
class Trial:
    """One training. value: the metric of the weights it would keep at `epoch`."""

    id: str
    point: int
    parameters: Point
    seed: int
    status: Status = "running"
    epoch: int = 0
    value: float | None = None
    seconds: float = 0.0
    message: str | None = None


@dataclass
class Book:
    """All trials in the order of their suggestion, as the events tell.

    Events: suggest (trial, point, parameters, seed), report (trial, epoch, value, seconds,
    stop), end (trial, status completed or failed, message).
    """

    path: Path
    events: list[Event] = field(default_factory=list)
    trials: dict[str, Trial] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Book":
        """Read what there is; a last line torn by a crash is cut off.

        Raises:
            ArtifactError: a line within the file is damaged; names it.
        """
        book = cls(path)
        if not path.exists():
            return book
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                event = json.loads(line)
                book._apply(event)
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(
                    f"{path}, line {number}: damaged; restore the file, or start the sweep "
                    "again with another --out"
                ) from error
            book.events.append(event)
        if len(whole) < len(raw):
            os.truncate(path, len(whole))
        for trial in book.unfinished():
            trial.status = "waiting"
        return book

    def write(self, event: Event) -> None:
        """Put an event on the disk, then count it."""
        with self.path.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._apply(event)
        self.events.append(event)

    def unfinished(self) -> list[Trial]:
        """Those that must go on."""
        return [trial for trial in self.trials.values() if trial.status not in ENDED]

    def ended(self) -> int:
        """How many need no more work."""
        return len(self.trials) - len(self.unfinished())

    def _apply(self, event: Event) -> None:
        name = event["trial"]
        if event["kind"] == "suggest":
            self.trials[name] = Trial(name, event["point"], event["parameters"], event["seed"])
            return
        trial = self.trials[name]
        if event["kind"] == "report":
            trial.epoch, trial.value = event["epoch"], event["value"]
            trial.seconds = event["seconds"]
            if event["stop"]:
                trial.status = "stopped"
        else:
            trial.status, trial.message = event["status"], event["message"]
