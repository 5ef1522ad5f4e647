import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_apps.merging import Merger


@settings(max_examples=30, deadline=None)
@given(
    items=st.lists(st.integers(), max_size=40),
    size=st.integers(1, 7),
    wait_s=st.sampled_from([0.0, 0.001]),
)
def test_each_item_gets_its_own_result(items: list[int], size: int, wait_s: float) -> None:
    sizes: list[int] = []

    def work(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        return [-item for item in batch]

    async def main() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            merger = Merger(work, pool, size=size, wait_s=wait_s)
            return list(await asyncio.gather(*(merger(item) for item in items)))

    assert asyncio.run(main()) == [-item for item in items]
    assert sum(sizes) == len(items)
    assert max(sizes, default=0) <= size


def test_items_that_come_while_working_form_one_list() -> None:
    begun, proceed = threading.Event(), threading.Event()
    lists: list[list[int]] = []

    def work(batch: list[int]) -> list[int]:
        lists.append(batch)
        begun.set()
        proceed.wait(10)
        return batch

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            merger = Merger(work, pool, size=8)
            first = asyncio.create_task(merger(0))
            await asyncio.to_thread(begun.wait, 10)
            rest = [asyncio.create_task(merger(item)) for item in range(1, 5)]
            gone = rest.pop(1)
            await asyncio.sleep(0)
            gone.cancel()
            proceed.set()
            await asyncio.gather(first, *rest)

    asyncio.run(main())
    assert lists == [[0], [1, 3, 4]]


def test_a_failure_reaches_its_callers_and_work_goes_on() -> None:
    def work(batch: list[int]) -> list[int]:
        if 0 in batch:
            raise ValueError("zero")
        return batch

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            merger = Merger(work, pool, size=1)
            with pytest.raises(ValueError, match="zero"):
                await merger(0)
            assert await merger(1) == 1

    asyncio.run(main())
