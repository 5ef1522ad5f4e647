"""Trainings in a process of their own, of whose two workers one is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil


def start(recipe: str, data: Path, out: Path, options: list[str]) -> subprocess.Popen[str]:
    """`raysys train` with two Ray workers."""
    raysys = [sys.executable, "-m", "raysys.cli.main", "train", recipe]
    given = ["--data", str(data), "--out", str(out), "--json", "train.workers=2"]
    return subprocess.Popen(
        [*raysys, *given, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(driver: subprocess.Popen[str]) -> Any:
    """What it says at its end."""
    out, err = driver.communicate()
    assert driver.returncode == 0, err[-3000:]
    return json.loads(out[out.index("{") :])


def kill_worker(driver: subprocess.Popen[str], run: Path, behind: int) -> float:
    """SIGKILL for the second worker once a step >= `behind` is in the log; when that was."""
    while not any(step >= behind for step in _steps(run)):
        assert driver.poll() is None, driver.communicate()[1][-3000:]
        time.sleep(0.02)
    mine = psutil.Process(driver.pid).children(recursive=True)
    workers = [p for p in mine if "TrainWorker" in "".join(p.cmdline()[:1])]
    assert len(workers) == 2, [p.cmdline()[:1] for p in mine]
    workers[1].kill()
    return time.time()


def _steps(run: Path) -> list[int]:
    log, found = run / "metrics.jsonl", []
    for line in log.read_text().splitlines() if log.is_file() else []:
        try:
            found.append(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError):
            continue  # the last line may be half written
    return found
