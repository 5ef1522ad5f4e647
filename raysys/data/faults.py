"""Faults found by a check, as a report: the first ones of each kind and the count of all."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

FIRST_FAULTS = 5


@dataclass(frozen=True)
class Fault:
    """One fault; `row` counts from 1 within `file`, None where the whole file is meant."""

    kind: str
    file: str
    row: int | None
    column: str | None
    message: str


@dataclass
class Report:
    """What `check` found: the first faults of each kind, the count of all, and warnings."""

    path: str
    first: int = FIRST_FAULTS
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is no fault; warnings do not count."""
        return not self.counts

    def add(self, kind: str, file: str, row: int | None, column: str | None, message: str) -> None:
        """Count a fault and keep it if it is among the first of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= self.first:
            self.faults.append(Fault(kind, file, row, column, message))

    def add_uncounted(self, kind: str, total: int) -> None:
        """Count what lies beyond the first `first` of `total` faults found at once."""
        if total > self.first:
            self.counts[kind] += total - self.first

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "path": self.path,
            "ok": self.ok,
            "rows": self.rows,
            "counts": dict(self.counts),
            "faults": [vars(fault) for fault in self.faults],
            "warnings": self.warnings,
        }
