"""Following a job's log: Ctrl-C gets through whatever the log client makes of it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from cluster.jobs import Jobs


class Log:
    """A log client; with `interrupt`, Ctrl-C comes while it waits, and ends in that error."""

    def __init__(self, interrupt: type[BaseException] | None) -> None:
        self.interrupt = interrupt

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        yield "one "
        if self.interrupt is not None:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError as cancelled:
                raise self.interrupt from cancelled
        yield "two"


def follow(interrupt: type[BaseException] | None, skip: int = 0) -> tuple[int, str]:
    jobs = object.__new__(Jobs)  # no cluster to connect to
    jobs._client = Log(interrupt)  # type: ignore[assignment]
    written: list[str] = []
    return jobs._follow("job", written.append, skip), "".join(written)


def test_the_log_goes_on_where_it_broke() -> None:
    assert follow(None) == (7, "one two")
    assert follow(None, skip=5) == (2, "wo")


@pytest.mark.parametrize("becomes", [asyncio.CancelledError, TimeoutError, RuntimeError])
def test_ctrl_c_gets_through(becomes: type[BaseException]) -> None:
    with pytest.raises(KeyboardInterrupt):
        follow(becomes)
