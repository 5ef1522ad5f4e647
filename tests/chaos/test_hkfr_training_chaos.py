"""A worker of instruction tuning dies behind a checkpoint: the weights are as if it had not."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hkfr_language import planted_samples, write_samples

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
OPTIONS = [
    "backbone={layers: 2, width: 32, heads: 1, vocab: 400}", "max_tokens=96", "row_tokens=96",
    "batch_rows=4", "train.lr=0.01", "train.warmup_steps=2", "train.epochs=9",
    "tuning.method=lora", "tuning.lora={rank: 4, dropout: 0.1, targets: attention}",
    "train.workers=2", "train.max_steps=40", "train.checkpoint_every_steps=7",
    "train.keep_checkpoints=50", "train.log_every_steps=1", "rank_limit=8", "held_limit=8",
]  # fmt: skip


def start(data: Path, out: Path) -> subprocess.Popen[str]:
    raysys = [sys.executable, "-m", "raysys.cli.main", "train", "llm/instruct"]
    return subprocess.Popen(
        [*raysys, "--data", str(data), "--out", str(out), "--json", *OPTIONS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(driver: subprocess.Popen[str]) -> Any:
    out, err = driver.communicate()
    assert driver.returncode == 0, err[-3000:]
    return json.loads(out[out.index("{") :])


def steps(out: Path) -> list[int]:
    log = out / "metrics.jsonl"
    found = []
    for line in log.read_text().splitlines() if log.is_file() else []:
        try:
            found.append(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError):
            continue  # the last line may be half written
    return found


def test_a_killed_worker_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    data = write_samples(tmp_path / "samples", planted_samples())
    calm = finish(start(data, tmp_path / "calm"))
    driver = start(data, tmp_path / "hurt")
    while not any(step >= 9 for step in steps(tmp_path / "hurt")):  # behind the checkpoint at 7
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
    assert hurt["metrics"]["after"] == calm["metrics"]["after"]
    calm_weights, hurt_weights = (
        (tmp_path / name / "hf" / "model.safetensors").read_bytes() for name in ("calm", "hurt")
    )
    assert calm_weights == hurt_weights
