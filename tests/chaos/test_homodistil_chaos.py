"""A worker dies between a checkpoint and an event that makes the student thinner."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from distil_toys import TINY, root

__all__ = ["root"]  # the fixture

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
# Events at 4, 8, 12 ...; checkpoints at 7, 14 ...
OVER = ["train.workers=2", "train.log_every_steps=1", "ratio=0.5",
        "train.keep_checkpoints=50"]  # fmt: skip


def start(root: Path, out: Path, teacher: str) -> subprocess.Popen[str]:
    raysys = [sys.executable, "-m", "raysys.cli.main", "train", "llm/homodistil"]
    given = ["--data", str(root / "data"), "--out", str(out), "--json"]
    options = [f"teacher=dir:{root / teacher}", *TINY, *OVER]
    return subprocess.Popen(
        [*raysys, *given, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(driver: subprocess.Popen[str]) -> Any:
    out, err = driver.communicate()
    assert driver.returncode == 0, err[-3000:]
    return json.loads(out[out.index("{") :])


def steps(out: Path) -> list[int]:
    log = out / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError):
            continue  # the last line may be half written
    return found


def test_a_killed_worker_across_an_event(root: Path, tmp_path: Path) -> None:
    calm = finish(start(root, tmp_path / "calm", "llama"))
    driver = start(root, tmp_path / "hurt", "llama")
    # Behind the checkpoint at 7 and the event at 8.
    while not any(step >= 9 for step in steps(tmp_path / "hurt")):
        assert driver.poll() is None, driver.communicate()[1][-3000:]
        time.sleep(0.02)
    mine = psutil.Process(driver.pid).children(recursive=True)
    workers = [p for p in mine if "TrainWorker" in "".join(p.cmdline()[:1])]
    assert len(workers) == 2, [p.cmdline()[:1] for p in mine]
    workers[1].kill()
    killed = time.time()
    hurt = finish(driver)
    # It went on from step 7, and did not begin anew.
    state = tmp_path / "hurt" / "checkpoints" / "step-00000007" / "state.json"
    assert state.stat().st_mtime < killed
    assert hurt["weights_sha256"] == calm["weights_sha256"]
    a, b = (
        (tmp_path / name / "hf" / "model.safetensors").read_bytes() for name in ("calm", "hurt")
    )
    assert a == b
    kept = [
        json.loads((tmp_path / name / "hf" / "pruning.json").read_text())["kept"]
        for name in ("calm", "hurt")
    ]
    assert kept[0] == kept[1]
