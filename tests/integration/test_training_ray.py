"""The Ray adapters end to end: Train with one and two workers, Ctrl-C at the driver."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from pydantic import BaseModel
from training_toy import ToyConfig, toy_ray, train_toy

from raysys.errors import ConfigError, DataError, StorageFullError
from raysys.training import Session, TrainConfig, World, launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with toy_ray():
        yield


def start(folder: Path, workers: Any, train: Any = train_toy, **changes: Any) -> Any:
    config = ToyConfig(train=TrainConfig(epochs=3, workers=workers, **changes))
    return launch(train, config, config.train, folder, data_card_id="card", show_progress=False)


def test_one_ray_worker_is_this_process_bit_for_bit(tmp_path: Path) -> None:
    here = start(tmp_path / "here", workers=0)
    there = start(tmp_path / "there", workers=1)
    assert there.result == here.result
    lines = [
        [(r["kind"], r["step"], r["loss"]) for r in map(json.loads, text.splitlines())]
        for text in ((tmp_path / d / "metrics.jsonl").read_text() for d in ("here", "there"))
    ]
    assert lines[0] == lines[1]


def test_two_workers_and_the_same_command_again(tmp_path: Path) -> None:
    first = start(tmp_path, workers=2)
    assert (first.ran, first.result["world"], first.result["step"]) == (True, 2, 24)
    again = start(tmp_path, workers=2)
    assert (again.ran, again.result) == (False, first.result)


def faulty_shard(config: BaseModel, session: Session) -> dict[str, Any]:
    if World.current().rank == 1:
        raise DataError("part-3.parquet: row 7: no user")
    return train_toy(config, session)


def test_a_fault_in_one_worker_ends_the_run_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"part-3\.parquet: row 7"):
        start(tmp_path / "run", workers=2, train=faulty_shard)
    assert not (tmp_path / "run").exists()


def full_disk(config: BaseModel, session: Session) -> dict[str, Any]:
    raise OSError(28, "No space left on device")


def test_a_full_disk_under_a_worker_ends_the_run_with_one_message(tmp_path: Path) -> None:
    with pytest.raises(StorageFullError, match=r"no space left on the disk of .*run: free some"):
        start(tmp_path / "run", workers=1, train=full_disk)
    assert not (tmp_path / "run").exists()


SCRIPT = """
import sys
from pathlib import Path
from training_toy import ToyConfig, train_toy
from raysys.errors import RaysysError
from raysys.training import launch
config = ToyConfig.model_validate_json(sys.argv[2])
try:
    launch(train_toy, config, config.train, Path(sys.argv[1]), data_card_id="card")
except RaysysError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_a_signal_to_the_driver_saves_and_resumes(tmp_path: Path) -> None:
    config = ToyConfig(step_sleep=0.05, train=TrainConfig(epochs=3, workers=1, log_every_steps=1))
    folder = tmp_path / "run"
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), config.model_dump_json()],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert driver.poll() is None
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate()
    assert driver.returncode == 130, err
    assert "run the same command again to go on from" in err
    options = {"data_card_id": "card", "show_progress": False}
    resumed = launch(train_toy, config, config.train, folder, **options)
    calm = ToyConfig(train=TrainConfig(epochs=3))
    whole = launch(train_toy, calm, calm.train, tmp_path / "whole", **options)
    assert resumed.result == whole.result


def test_a_machine_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package has a function of the module's name.
    monkeypatch.setattr(
        importlib.import_module("raysys.training.launch"), "ensure_ray", lambda: True
    )
    with pytest.raises(ConfigError, match=r"workers=9 .* need 9 CPUs, this machine gives Ray 2"):
        start(tmp_path, workers=9)
