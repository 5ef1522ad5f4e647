"""Reading metrics.jsonl, which the training loop writes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raysys.errors import ArtifactError

METRICS_LOG = "metrics.jsonl"

# What a record says of the loop itself; all other numbers are measurements.
_BOOKKEEPING = frozenset({"kind", "step", "total_steps", "epoch", "rows", "finished"})


@dataclass
class Curve:
    """A measurement over training steps: step [n], value [n]."""

    step: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def thinned(self, points: int) -> "Curve":
        """At most `points` points, each the mean of as many neighbours."""
        size = -(-len(self.step) // points)
        if size <= 1:
            return self
        starts = np.arange(0, len(self.step), size)
        counts = np.diff([*starts, len(self.step)])
        return Curve(
            step=[int(s) for s in np.add.reduceat(self.step, starts) // counts],
            value=[float(v) for v in np.add.reduceat(self.value, starts) / counts],
        )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a log in order; a last line that is still being written is left out.

    Raises:
        ArtifactError: a line within the log is no JSON object; names the line.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines) or line.endswith("\n"):
            raise ArtifactError(f"{path}, line {number}: no JSON object; remove this line")
    return records


def curves(records: list[dict[str, Any]]) -> dict[str, Curve]:
    """ "kind/name" -> curve, e.g. "step/loss", "epoch/val/auc"; non-numbers are left out."""
    found: dict[str, Curve] = {}
    for record in records:
        for name, value in record.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in _BOOKKEEPING and number:
                curve = found.setdefault(f"{record.get('kind', 'step')}/{name}", Curve())
                curve.step.append(int(record["step"]))
                curve.value.append(float(value))
    return found
