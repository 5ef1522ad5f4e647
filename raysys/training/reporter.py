"""How the loop speaks with whatever runs it; and the way that needs nothing but a terminal."""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from raysys.errors import RaysysError
from raysys.training.progress import ProgressLine

Record = dict[str, Any]


class InterruptedRunError(RaysysError):
    """The run was asked to stop and has written a checkpoint to go on from."""

    exit_code = 130


class Reporter(Protocol):
    """The loop's only window to the outside. Implementations: this file, ray_train, ray_tune."""

    def stage(self, name: str) -> "Reporter":
        """The reporter of a stage of the run, which counts steps and epochs of its own."""
        ...

    def step(self, record: Record) -> None:
        """Rank 0 only, at each logged step."""
        ...

    def epoch(self, record: Record, checkpoint: Path) -> None:
        """Every rank, at each epoch end, with the same record: may wait for the others.

        Rank 0 has written `checkpoint` by then.
        """
        ...

    def stop_requested(self) -> bool:
        """Asked on every rank after every step; one yes writes a checkpoint and ends all."""
        ...

    def preempted(self) -> bool:
        """True while the machine is about to be taken away: the loop saves now and goes on.

        Every rank asks at the same step, every few seconds: may wait for the others.
        """
        ...


class InProcessReporter:
    """Progress on stderr; the first Ctrl-C or SIGTERM asks for a clean stop, the second kills.

    A context manager: signal handlers (installed in the main thread only) and the progress
    line live inside the block.
    """

    def __init__(self, show: bool = True) -> None:
        self._line = ProgressLine() if show else None
        self._stop = threading.Event()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "InProcessReporter":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore_handlers()
        if self._line:
            self._line.close()

    def stage(self, name: str) -> "InProcessReporter":
        return self

    def step(self, record: Record) -> None:
        if self._line:
            self._line.update(record)

    def epoch(self, record: Record, checkpoint: Path) -> None:
        if self._line:
            self._line.update(record)

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def preempted(self) -> bool:
        return False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
