"""Mappers: results in order, errors by name, and the same world on any number of workers."""

import filecmp
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dist_toy import refuse_three, swap

from bench import world as bench_world
from raysys.data.world import WorldConfig, make_world
from raysys.dist import LocalMapper, RayMapper, ensure_ray, run_tasks
from raysys.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One cluster for the module; its workers find `dist_toy` on their path."""
    import ray

    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        started = ensure_ray(num_cpus=2)
        yield
        if started:
            ray.shutdown()


def test_results_come_in_task_order() -> None:
    tasks = [9, 1, 7, 5, 2]
    for mapper in (LocalMapper(), RayMapper(workers=2)):
        assert list(mapper(math.sqrt, tasks, label="roots")) == [math.sqrt(t) for t in tasks]
        assert list(mapper(swap, [(1, 2), (3, 4)], label="pairs")) == [(2, 1), (4, 3)]
        assert list(mapper(math.sqrt, [], label="nothing")) == []
    assert list(run_tasks(math.sqrt, tasks, label="roots", in_flight=2)) == [
        math.sqrt(t) for t in tasks
    ]


def test_user_errors_keep_their_class_and_words() -> None:
    for run in (LocalMapper(), RayMapper(), run_tasks):
        with pytest.raises(DataError, match="row 3 of the list is a three"):
            list(run(refuse_three, [1, 2, 3, 4], label="squares"))


@pytest.mark.parametrize("kind", ["food", "news"])
def test_property_01_same_bytes_on_any_worker_count(tmp_path: Path, kind: str) -> None:
    config = WorldConfig(kind=kind, users=30, days=12, seed=4, shard_users=8, pois=150)
    make_world(config, tmp_path / "local", LocalMapper())
    for workers in (1, 2):
        out = tmp_path / f"ray-{workers}"
        make_world(config, out, RayMapper(workers=workers))
        names = [p.relative_to(out).as_posix() for p in sorted(out.rglob("*")) if p.is_file()]
        same, different, missing = filecmp.cmpfiles(tmp_path / "local", out, names, shallow=False)
        assert (different, missing) == ([], [])
        assert len(same) == sum(p.is_file() for p in (tmp_path / "local").rglob("*"))


def test_property_11_memory_is_bounded_by_shards() -> None:
    """A small run of the measurement; ten million rows are measured by `raysys bench world`."""
    figures = bench_world.run(rows=150_000, workers=2)
    assert figures["rows"] >= 120_000
    assert figures["peak_memory_gib"] < 4
