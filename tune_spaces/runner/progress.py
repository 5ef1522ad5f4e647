"""What a sweep shows on stderr while it runs: a table on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tune_spaces.runner.ledger import ENDED, Book, Trial
from tune_spaces.runner.objective import better

# Ended trials that a table still shows, newest last.
_LAST = 12


class Progress:
    """Follows the ledger. A context manager; `update` looks for news.

    Args:
        metric, mode: the objective's name and direction.
        total: trials of the whole sweep.
    """

    def __init__(self, book: Book, metric: str, mode: Literal["max", "min"], total: int) -> None:
        self._book = book
        self._metric = metric
        self._mode: Literal["max", "min"] = mode
        self._total = total
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, transient=False, auto_refresh=False)
        # What an earlier driver has shown is no news.
        self._shown = {name: self._state(trial) for name, trial in book.trials.items()}

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.update()
        if self._console.is_terminal:
            self._live.stop()

    def update(self) -> None:
        """Show what has happened since the last call."""
        trials = list(self._book.trials.values())
        news = [trial for trial in trials if self._state(trial) != self._shown.get(trial.id)]
        self._shown.update({trial.id: self._state(trial) for trial in news})
        if self._console.is_terminal:
            self._live.update(self._table(trials), refresh=True)
            return
        best = best_of(trials, self._mode)
        for trial in news:
            self._console.print(self._line(trial, best), markup=False, soft_wrap=True)

    @staticmethod
    def _state(trial: Trial) -> tuple[str, int]:
        return trial.status, trial.epoch

    def _line(self, trial: Trial, best: Trial | None) -> str:
        line = f"{trial.id} {trial.status}"
        if trial.epoch == 0:
            line += "  " + values(trial)
        else:
            line += f"  epoch {trial.epoch}  {self._metric} {number(trial.value)}"
        if best is not None:
            line += f"  best {number(best.value)} ({best.id})"
        return line + (f"  {trial.message}" if trial.message else "")

    def _table(self, trials: list[Trial]) -> Table:
        best = best_of(trials, self._mode)
        ended = [trial for trial in trials if trial.status in ENDED]
        title = f"{len(ended)} of {self._total} trials ended"
        if best is not None:
            title += f"; best {self._metric} {number(best.value)} ({best.id})"
        table = Table("trial", "status", "epoch", self._metric, "values", title=title)
        for trial in [*ended[-_LAST:], *(t for t in trials if t.status not in ENDED)]:
            style = "bold" if trial is best else ""
            cells = (trial.id, trial.status, str(trial.epoch), number(trial.value), values(trial))
            table.add_row(*cells, style=style)
        return table


def best_of(trials: list[Trial], mode: Literal["max", "min"]) -> Trial | None:
    """The trial with the best value, failed ones left out; the first of equals."""
    best: Trial | None = None
    for trial in trials:
        if trial.value is None or trial.status == "failed":
            continue
        if best is None or better(trial.value, best.value, mode):
            best = trial
    return best


def values(trial: Trial) -> str:
    """`lr=0.00123 embedding_dim=8 seed=1`: the last part of each key."""
    short = {key.rpartition(".")[2]: value for key, value in trial.parameters.items()}
    shown = {**short, "seed": trial.seed}.items()
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown)


def number(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "–" if value is None else f"{value:.4f}"
