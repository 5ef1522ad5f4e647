"""Applying a function to tasks: the one shape in which library code meets parallel workers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
R = TypeVar("R")


class Mapper(Protocol):
    """Applies `fn` to every task, perhaps in parallel, and yields results in task order.

    `fn` must be importable by name, and tasks and results must be picklable, because workers may
    be other processes. `label` names the work in the progress line on stderr.
    """

    def __call__(self, fn: Callable[[T], R], tasks: Sequence[T], *, label: str) -> Iterator[R]: ...


def progress_line() -> Progress:
    """The progress display of every mapper, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class LocalMapper:
    """Maps in this process, one task after the other."""

    def __call__(self, fn: Callable[[T], R], tasks: Sequence[T], *, label: str) -> Iterator[R]:
        with progress_line() as progress:
            for task in progress.track(tasks, description=label):
                yield fn(task)
