"""A reporter that asks training to stop, as Ctrl-C does."""

from raysys.training import InProcessReporter


class Stopping(InProcessReporter):
    """Asks after some steps; None: never."""

    def __init__(self, steps: int | None) -> None:
        super().__init__(show=False)
        self.left = steps

    def stop_requested(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0
