"""Progress of a job over texts on stderr: texts done, rate, time left."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY = 10.0  # seconds between plain lines where there is no terminal


class TextProgress:
    """A moving bar on a terminal; elsewhere (a log file, a job) a plain line now and then.

    done: texts of the total that an earlier run has done.
    """

    def __init__(self, label: str, total: int, *, verb: str = "embed", done: int = 0) -> None:
        self._label = f"{verb} {label}"
        self._before = done
        self._total = total
        self._console = Console(stderr=True)
        self._started = self._printed = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} texts/s"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(self._label, total=total, completed=done, rate=0.0)

    def __enter__(self) -> "TextProgress":
        if self._console.is_terminal and self._total:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, done: int) -> None:
        """Say that `done` texts of the total are done."""
        now = time.monotonic()
        rate = (done - self._before) / max(now - self._started, 1e-9)
        self._bar.update(self._task, completed=done, rate=rate)
        if self._console.is_terminal:
            return
        if now - self._printed >= _LINE_EVERY or done == self._total:
            self._printed = now
            left = (self._total - done) / max(rate, 1e-9)
            self._console.print(
                f"{self._label}: {done}/{self._total} texts, {rate:.0f} texts/s, {left:.0f} s left",
                soft_wrap=True,
            )
