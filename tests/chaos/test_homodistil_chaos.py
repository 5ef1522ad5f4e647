"""A worker dies between a checkpoint and an event that makes the student thinner."""

import json
from pathlib import Path

import pytest
from distil_toys import TINY, root
from killing import finish, kill_worker, start

__all__ = ["root"]  # the fixture

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
# Events at 4, 8, 12 ...; checkpoints at 7, 14 ...
OPTIONS = [*TINY, "train.log_every_steps=1", "ratio=0.5", "train.keep_checkpoints=50"]


def test_a_killed_worker_across_an_event(root: Path, tmp_path: Path) -> None:
    calm_dir, hurt_dir = tmp_path / "calm", tmp_path / "hurt"
    options = [f"teacher=dir:{root / 'llama'}", *OPTIONS]
    calm = finish(start("llm/homodistil", root / "data", calm_dir, options))
    driver = start("llm/homodistil", root / "data", hurt_dir, options)
    killed = kill_worker(driver, hurt_dir, behind=9)
    hurt = finish(driver)
    # It went on from step 7, and did not begin anew.
    state = hurt_dir / "checkpoints" / "step-00000007" / "state.json"
    assert state.stat().st_mtime < killed
    assert hurt["weights_sha256"] == calm["weights_sha256"]
    a, b = ((run / "hf" / "model.safetensors").read_bytes() for run in (calm_dir, hurt_dir))
    assert a == b
    kept = [
        json.loads((run / "hf" / "pruning.json").read_text())["kept"]
        for run in (calm_dir, hurt_dir)
    ]
    assert kept[0] == kept[1]
