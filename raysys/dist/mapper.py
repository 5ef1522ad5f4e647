"""Map over parts with Ray Data."""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from raysys.data.mapping import progress_line
from raysys.dist.calls import call
from raysys.dist.cluster import ensure_ray

T = TypeVar("T")
R = TypeVar("R")


class RayMapper:
    """Maps over tasks with Ray Data's streaming executor, one block a task; results in order.

    At most `workers` tasks run at once (default: one per CPU of the cluster), so that memory is
    bounded by a task times the workers. A lost worker's tasks run again elsewhere, therefore `fn`
    must give the same result twice. On several machines, paths in tasks must be shared ones.

    Args:
        workers: most tasks at a time; None leaves it to Ray Data.
        num_cpus, num_gpus: what one task takes.
        memory: bytes that one task takes, for placing it; None asks for nothing.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        memory: int | None = None,
    ) -> None:
        self.workers = workers
        self.resources: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus or None}
        if memory:
            self.resources["memory"] = memory

    def __call__(self, fn: Callable[[T], R], tasks: Sequence[T], *, label: str) -> Iterator[R]:
        if not tasks:
            return
        ensure_ray()
        import ray

        # Ray Data would report on its own progress line, and on having none.
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
        logging.getLogger("ray.data._internal.execution").setLevel(logging.WARNING)
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        with ray.data.DataContext.current(context):
            rows = ray.data.from_items(
                [{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)
            ).map(
                partial(_mapped, fn),
                compute=ray.data.TaskPoolStrategy(size=self.workers),
                **self.resources,
            )
            with progress_line() as progress:
                results = progress.track(rows.iter_rows(), total=len(tasks), description=label)
                for row in results:
                    yield pickle.loads(row["outcome"]).get()  # noqa: S301 - written by _mapped


def _mapped(fn: Callable[[Any], Any], row: dict[str, bytes]) -> dict[str, bytes]:
    # Bytes, because Arrow would turn a tuple into a list.
    task = pickle.loads(row["task"])  # noqa: S301 - written by RayMapper
    return {"outcome": pickle.dumps(call(fn, task))}
