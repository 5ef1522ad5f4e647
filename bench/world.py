"""The planted world at scale: rows per second and peak memory of writing it over Ray Data."""

import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from raysys.data.world import WorldConfig, make_world
from raysys.dist import RayMapper, ensure_ray

ROWS_PER_USER = 440  # of events and impressions in 60 days, a little less than the mean


def run(
    rows: int = 10_000_000, days: int = 60, workers: int | None = None, seed: int = 0
) -> dict[str, object]:
    """Write a food world of about `rows` rows, if anything more, and throw it away.

    Memory is the peak of the sum of resident sizes of this process and all its descendants
    (Ray's daemons and workers; pages shared between them counted every time) plus the growth of
    the shared memory file system. The start of Ray is timed apart, its memory is included.
    """
    config = WorldConfig(seed=seed, days=days, users=-(-rows * 60 // (ROWS_PER_USER * days)))
    with PeakMemory() as memory, tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        ensure_ray()
        ready = time.perf_counter()
        manifest = make_world(config, Path(folder) / "world", RayMapper(workers=workers))
        seconds = time.perf_counter() - ready
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    written = manifest.tables["events"].rows + manifest.tables["impressions"].rows
    return {
        "bench": "world",
        "rows": written,
        "events": manifest.tables["events"].rows,
        "impressions": manifest.tables["impressions"].rows,
        "users": config.users,
        "days": days,
        "seed": seed,
        "shards": config.shards,
        "workers": workers,
        "cpus": psutil.cpu_count(),
        "ray_start_seconds": ready - started,
        "seconds": seconds,
        "rows_per_second": written / seconds,
        "bytes_on_disk": size,
        "peak_memory_bytes": memory.peak,
        "peak_memory_gib": memory.peak / 2**30,
    }


class PeakMemory:
    """Samples the memory of this process and its descendants ten times a second."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._shared_before = _shared_bytes()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        here = psutil.Process()
        while not self._stop.wait(self.seconds):
            total = max(0, _shared_bytes() - self._shared_before)
            for process in [here, *here.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)


def _shared_bytes() -> int:
    shm = Path("/dev/shm")
    return psutil.disk_usage(str(shm)).used if shm.is_dir() else 0
