"""What crosses the border to a worker: a function's result, or the user's error it met."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from raysys.errors import RaysysError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """A result, or a `RaysysError` to be raised again with its own message by the driver."""

    result: R | None
    error: RaysysError | None

    def get(self) -> R:
        """The result.

        Raises:
            RaysysError: what the function raised in the worker.
        """
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


def call(fn: Callable[[T], R], task: T) -> Outcome[R]:
    """Run `fn` in a worker; a defect of ours is left to Ray, which keeps its traceback."""
    try:
        return Outcome(fn(task), None)
    except RaysysError as error:
        return Outcome(None, error)
