"""Requests that arrive while others are computed form the next batch."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Merger(Generic[Item, Result]):
    """Calls `work` with lists of items, one list at a time, in a thread of `executor`.

    Ray's `serve.batch` does the same, but keeps one queue per decorated function, which two
    rankers of a fused process would share, and works nowhere outside a replica.

    Args:
        work: one result per item, in order. An exception goes to all items of its list.
        size: longest list.
        wait_s: how long the first item of a list waits for company.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], list[Result]],
        executor: Executor,
        *,
        size: int,
        wait_s: float = 0.0,
    ) -> None:
        self._work = work
        self._executor = executor
        self._size = size
        self._wait_s = wait_s
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._runner: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The result for one item; cancelling the call takes a waiting item out of the queue."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if self._wait_s and len(self._waiting) < self._size:
                await asyncio.sleep(self._wait_s)
            batch = self._next()
            if not batch:
                continue
            items = [item for item, _ in batch]
            try:
                results = await loop.run_in_executor(self._executor, self._work, items)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    def _next(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._size:
            item, future = self._waiting.popleft()
            if not future.done():  # its caller gave up
                batch.append((item, future))
        return batch
