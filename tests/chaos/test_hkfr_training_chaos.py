"""A worker of instruction tuning dies behind a checkpoint: the weights are as if it had not."""

from pathlib import Path

import pytest
from hkfr_language import planted_samples, write_samples
from killing import finish, kill_worker, start

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
OPTIONS = [
    "backbone={layers: 2, width: 32, heads: 1, vocab: 400}", "max_tokens=96", "row_tokens=96",
    "batch_rows=4", "train.lr=0.01", "train.warmup_steps=2", "train.epochs=9",
    "tuning.method=lora", "tuning.lora={rank: 4, dropout: 0.1, targets: attention}",
    "train.max_steps=40", "train.checkpoint_every_steps=7",
    "train.keep_checkpoints=50", "train.log_every_steps=1", "rank_limit=8", "held_limit=8",
]  # fmt: skip


def test_a_killed_worker_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    data = write_samples(tmp_path / "samples", planted_samples())
    calm_dir, hurt_dir = tmp_path / "calm", tmp_path / "hurt"
    calm = finish(start("llm/instruct", data, calm_dir, OPTIONS))
    driver = start("llm/instruct", data, hurt_dir, OPTIONS)
    killed = kill_worker(driver, hurt_dir, behind=9)
    hurt = finish(driver)
    # It went on from step 7, and did not begin anew.
    state = hurt_dir / "checkpoints" / "step-00000007" / "state.json"
    assert state.stat().st_mtime < killed
    assert hurt["weights_sha256"] == calm["weights_sha256"]
    assert hurt["metrics"]["after"] == calm["metrics"]["after"]
    a, b = ((run / "hf" / "model.safetensors").read_bytes() for run in (calm_dir, hurt_dir))
    assert a == b
