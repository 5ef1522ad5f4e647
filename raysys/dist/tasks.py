"""Run a few heavy tasks with resources of their own."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from raysys.data.mapping import progress_line
from raysys.dist.calls import call
from raysys.dist.cluster import ensure_ray

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(
    fn: Callable[[T], R],
    tasks: Sequence[T],
    *,
    label: str,
    num_cpus: float = 1,
    num_gpus: float = 0,
    in_flight: int | None = None,
    max_retries: int = 2,
) -> Iterator[R]:
    """Run `fn` on each task as a Ray task; results in order, each in a fresh worker's memory.

    For jobs of minutes that want GPUs or many CPUs (a seed of a benchmark, a model to score
    with); for many parts of data use `RayMapper`.

    Args:
        num_cpus, num_gpus: what one task takes; fractions share a device.
        in_flight: most tasks submitted at once; default twice the tasks the CPUs can hold.
        max_retries: how often a task whose worker died runs again.

    Raises:
        RaysysError: what `fn` raised; the tasks behind it are cancelled.
    """
    ensure_ray()
    import ray

    remote: Any = ray.remote(
        num_cpus=num_cpus, num_gpus=num_gpus, max_retries=max_retries, max_calls=1
    )(call)
    limit = in_flight or max(1, int(2 * _cpus() / max(num_cpus, 0.5)))
    waiting: list[Any] = [remote.remote(fn, task) for task in tasks[:limit]]
    following = iter(tasks[limit:])
    try:
        with progress_line() as progress:
            line = progress.add_task(label, total=len(tasks))
            while waiting:
                result = ray.get(waiting[0]).get()
                waiting.pop(0)
                waiting.extend(remote.remote(fn, task) for task in islice(following, 1))
                progress.advance(line)
                yield result
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _cpus() -> float:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("CPU", 1.0)
