"""Workers die, machines go, checkpoints rot: the weights come out the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from training_toy import ToyConfig, toy_environment, toy_ray, train_toy

from raysys.errors import RaysysError
from raysys.training import CheckpointStore, TrainConfig, launch, run_name

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


def settings(**changes: Any) -> TrainConfig:
    base = {"epochs": 3, "workers": 2, "checkpoint_every_steps": 3, "keep_checkpoints": 50}
    return TrainConfig(**{**base, **changes})


def start(folder: Path, config: ToyConfig) -> Any:
    return launch(train_toy, config, config.train, folder, data_card_id="card", show_progress=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with toy_ray():
        yield


@pytest.fixture(scope="module")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """sha256 of the weights of a run of two Ray workers that nobody hurt."""
    outcome = start(tmp_path_factory.mktemp("calm") / "run", ToyConfig(train=settings()))
    return outcome.result["sha256"]


def check_equal(name: str, sha: str, undisturbed: str) -> None:
    print(f"\n{name}: weights sha256 {sha}\nundisturbed: weights sha256 {undisturbed}")
    assert sha == undisturbed


def written_before(run_dir: Path, moment: float) -> set[int]:
    """Steps of the checkpoints that were not written again after `moment`.

    Equal weights alone would also come out of a run that began anew.
    """
    folders = (run_dir / "checkpoints").glob("step-*")
    return {int(f.name[5:]) for f in folders if (f / "state.json").stat().st_mtime < moment}


@pytest.mark.parametrize(("rank", "damage"), [(1, ""), (0, "truncate"), (1, "flip")])
def test_a_killed_worker_and_a_damaged_checkpoint(
    tmp_path: Path, undisturbed: str, rank: int, damage: Any
) -> None:
    config = ToyConfig(kill_rank=rank, damage=damage, scratch=str(tmp_path), train=settings())
    outcome = start(tmp_path / "run", config)
    died = (tmp_path / "killed").stat().st_mtime
    kept = written_before(tmp_path / "run", died)
    # Due at 3, 6, 8 (epoch), 9; the batch of death is read while step 10 is computed. A damaged
    # newest checkpoint is passed over, and written again when the run comes by.
    assert kept == ({3, 6, 8} if damage else {3, 6, 8, 9})
    check_equal(f"SIGKILL rank {rank} {damage}", outcome.result["sha256"], undisturbed)


def test_a_damaged_record_of_rays_own(
    tmp_path: Path, undisturbed: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = ToyConfig(kill_rank=0, scratch=str(tmp_path), train=settings(max_failures=0))
    with pytest.raises(RaysysError, match="same command goes on from the newest checkpoint"):
        start(tmp_path / "run", config)
    own = tmp_path / "run" / "checkpoints" / "ray" / run_name(config, "card")
    own.mkdir(exist_ok=True)
    (own / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.6')
    outcome = start(tmp_path / "run", config)
    assert "moved Ray's record" in caplog.text
    assert {3, 6} <= written_before(tmp_path / "run", (tmp_path / "killed").stat().st_mtime)
    check_equal("damaged snapshot", outcome.result["sha256"], undisturbed)


SCRIPT = """
import sys
from pathlib import Path
from training_toy import ToyConfig, train_toy
from raysys.training import launch
config = ToyConfig.model_validate_json(sys.argv[2])
launch(train_toy, config, config.train, Path(sys.argv[1]), data_card_id="card")
"""


def test_a_killed_driver_and_the_same_command(tmp_path: Path, undisturbed: str) -> None:
    config = ToyConfig(step_sleep=0.05, train=settings(log_every_steps=1))
    folder = tmp_path / "run"
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), config.model_dump_json()],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )
    while not any((folder / "checkpoints").glob("step-*")):
        assert driver.poll() is None
    driver.send_signal(signal.SIGKILL)
    killed = time.time()
    driver.wait()
    outcome = start(folder, config)
    assert 3 in written_before(folder, killed)
    check_equal("SIGKILL driver", outcome.result["sha256"], undisturbed)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two machines of one CPU each."""
    toy_environment(monkeypatch)
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def drive(cluster: Cluster, folder: Path, config: ToyConfig) -> subprocess.Popen[bytes]:
    """A driver of `config` on the cluster, which has begun to train."""
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), config.model_dump_json()],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size):
        assert driver.poll() is None
        time.sleep(0.05)
    return driver


def test_a_preempted_node_is_saved_in_time(tmp_path: Path, two_nodes: Cluster) -> None:
    """Ray says that a node will go: a checkpoint is written although none was due."""
    train = settings(checkpoint_every_steps=None, log_every_steps=1)
    driver = drive(two_nodes, tmp_path, ToyConfig(dropout=0, step_sleep=0.5, train=train))
    node = two_nodes.worker_nodes.copy().pop().node_id
    drain = [Path(sys.executable).with_name("ray"), "drain-node", "--node-id", node]
    drain += ["--address", two_nodes.address, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    drain += ["--reason-message", "spot", "--deadline-remaining-seconds", "60"]
    subprocess.run(drain, check=True)
    assert driver.wait() == 0
    steps = {int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*")}
    print(f"\ncheckpoints of the preempted run: {sorted(steps)}, epochs end at 8, 16, 24")
    assert steps > {8, 16, 24}


def test_two_machines_become_one(tmp_path: Path, two_nodes: Cluster) -> None:
    """The second of two nodes goes away; the run shrinks and goes on from the same batch."""
    train = settings(workers=(1, 2), checkpoint_every_steps=2, log_every_steps=1)
    config = ToyConfig(dropout=0, step_sleep=0.2, train=train)
    driver = drive(two_nodes, tmp_path / "run", config)
    while not any((tmp_path / "run" / "checkpoints").glob("step-*")):
        assert driver.poll() is None
        time.sleep(0.05)
    two_nodes.remove_node(two_nodes.worker_nodes.copy().pop(), allow_graceful=False)
    assert driver.wait() == 0
    done = json.loads((tmp_path / "run" / "checkpoints" / "done.json").read_text())
    assert (done["world"], done["step"]) == (1, 24)
    # A run that had begun anew on one worker would have written all of these with world size 1.
    folders = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    sizes = [json.loads((path / "state.json").read_text())["world_size"] for path in folders]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {1, 2}
    calm = ToyConfig(dropout=0, train=settings(workers=0))
    start(tmp_path / "calm", calm)
    weights = []
    for name in ("run", "calm"):
        newest = CheckpointStore(tmp_path / name / "checkpoints").latest()
        assert newest is not None
        weights.append(torch.cat([value.flatten() for value in newest.tensors("model").values()]))
    difference = float((weights[0] - weights[1]).abs().max())
    print(f"\nelastic, world sizes at the checkpoints {sizes}: largest difference to one worker")
    print(f"undisturbed: {difference:.2g}")
    assert difference <= 1e-5
