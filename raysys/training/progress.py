"""One line on stderr that says how far a run is, fed by the records of metrics.jsonl."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine:
    """Steps done, steps/s, loss, last validation metrics and remaining time.

    On a terminal a moving bar; elsewhere (a log file, a job) one plain line per epoch.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._validation = ""
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("train", total=None, epoch=0, words="")
        if self._console.is_terminal:
            self._bar.start()

    def update(self, record: dict[str, Any]) -> None:
        """Show a record of metrics.jsonl (kind step or epoch)."""
        metrics = {key: value for key, value in record.items() if key.startswith("val/")}
        if metrics:
            self._validation = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        words = f"{record['steps_per_s']:.1f} steps/s  loss {record['loss']:.4f}"
        words += f"  {self._validation}"
        self._bar.update(
            self._task,
            completed=record["step"],
            total=record["total_steps"],
            epoch=record["epoch"],
            words=words,
        )
        if record["kind"] == "epoch" and not self._console.is_terminal:
            done = f"{record['step']}/{record['total_steps']}"
            self._console.print(f"epoch {record['epoch']}  step {done}  {words}", soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()
