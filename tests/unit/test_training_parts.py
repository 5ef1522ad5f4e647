"""Checkpoints, schedule, optimisers, config, identity: each against a few lines of reference."""

import contextlib
import hashlib
import importlib
import json
import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from training_toy import ToyConfig, train_toy

from raysys.errors import ArtifactError, ConfigError, RaysysError, ResumeError, StorageFullError
from raysys.layers.embedding import FieldEmbedding
from raysys.training import (
    CheckpointStore,
    EarlyStopping,
    TrainConfig,
    World,
    launch,
    run_name,
)
from raysys.training.checkpoints import Checkpoint
from raysys.training.gradients import GradientExchange
from raysys.training.optim import Optimizers, RowAdam
from raysys.training.schedule import learning_rate
from raysys.training.tensorfile import read_tensors, write_tensors

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def some_tensors() -> dict[str, dict[str, Tensor]]:
    return {"model": {"w": torch.arange(12.0).reshape(3, 4)}, "rng": {"rng": torch.zeros(0)}}


# ------------------------------------------------------------------ tensor files


def test_tensor_files_are_read_by_safetensors(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.rand(2, 3).mul(5).to(dtype) for i, dtype in enumerate(DTYPES)}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "t": torch.rand(4, 2).T}
    size, sha = write_tensors(tmp_path / "x.safetensors", tensors)
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert (size, sha) == (len(raw), hashlib.sha256(raw).hexdigest())
    for back in (load_file(tmp_path / "x.safetensors"), read_tensors(tmp_path / "x.safetensors")):
        assert set(back) == set(tensors)
        assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())


# ------------------------------------------------------------------- checkpoints


def test_newest_and_best_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(1, 8):
        store.save(step, some_tensors(), {"step": step}, best_step=3 if step >= 3 else None)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["3", "6", "7"]
    newest = store.latest()
    assert newest is not None
    assert (newest.step, newest.state) == (7, {"step": 7})
    assert torch.equal(newest.tensors("model")["w"], some_tensors()["model"]["w"])


FILES = ["model.safetensors", "rng.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("hurt", ["truncate", "flip", "remove", "extend", "empty"])
def test_a_damaged_checkpoint_is_skipped_by_name(
    tmp_path: Path, name: str, hurt: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, some_tensors(), {"step": 1})
    store.save(2, some_tensors(), {"step": 2})
    victim = tmp_path / "step-00000002" / name
    raw = victim.read_bytes()
    middle = len(raw) // 2
    flipped = raw[:middle] + bytes([raw[middle] ^ 4]) + raw[middle + 1 :]
    if hurt == "remove":
        victim.unlink()
    else:
        victim.write_bytes(
            {"truncate": raw[:-3], "flip": flipped, "extend": raw + b"\n ", "empty": b""}[hurt]
        )
    if (name, hurt) == ("manifest.json", "extend"):
        return  # White space after JSON changes nothing that is read.
    newest = store.latest()
    assert newest is not None
    assert newest.step == 1
    assert str(victim) in caplog.text


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = CheckpointStore(folder).save(1, some_tensors(), {"a": [1, 2]})
    victim = path / data.draw(st.sampled_from(FILES))
    before = victim.read_bytes()
    raw = bytearray(before)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(raw)
    # A bit may turn one kind of white space in the manifest into another: nothing that is read.
    still_json = False
    if victim.name == "manifest.json":
        with contextlib.suppress(ValueError):
            still_json = json.loads(raw) == json.loads(before)
    if still_json:
        assert Checkpoint.open(path).state == {"a": [1, 2]}
    else:
        with pytest.raises(ArtifactError, match=re.escape(str(victim))):
            Checkpoint.open(path)


def test_a_later_checkpoint_that_was_damaged_gives_way(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(1, some_tensors(), {})
    store.save(9, some_tensors(), {})
    (tmp_path / "step-00000009" / "state.json").unlink()
    store.save(2, some_tensors(), {})
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_failed_commit_leaves_nothing(tmp_path: Path) -> None:
    def fenced() -> None:
        raise ResumeError("taken over")

    CheckpointStore(tmp_path).save(1, some_tensors(), {"step": 1})
    with pytest.raises(ResumeError):
        CheckpointStore(tmp_path, fence=fenced).save(2, some_tensors(), {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        CheckpointStore(tmp_path).save(2, some_tensors(), {"x": math.nan})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.slow
def test_a_killed_writer_leaves_only_what_is_swept(tmp_path: Path) -> None:
    code = """
import os, signal, sys, torch
from pathlib import Path
from raysys.training import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), fence=lambda: os.kill(os.getpid(), signal.SIGKILL))
store.save(2, {"model": {"w": torch.ones(9)}}, {})
"""
    store = CheckpointStore(tmp_path)
    store.save(1, some_tensors(), {})
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    newest = store.latest()
    assert newest is not None
    assert newest.step == 1
    store.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_no_space_left(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, some_tensors(), {})
    # The kernel refuses to let any file grow beyond 64 KiB: a quota, to the writer.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(StorageFullError, match=r"newest checkpoint is .*step-00000001"):
            store.save(2, {"model": {"w": torch.zeros(1 << 16)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# ------------------------------------------------------------ schedule, optimiser


@settings(deadline=None)
@given(
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
    warmup=st.integers(0, 20),
    total=st.integers(1, 200),
    floor=st.floats(0, 1),
)
def test_learning_rate(schedule: Any, warmup: int, total: int, floor: float) -> None:
    config = TrainConfig(lr=0.5, schedule=schedule, warmup_steps=warmup, final_lr_fraction=floor)
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert all(0 <= rate <= 0.5 + 1e-12 for rate in rates)
    rise, fall = rates[:warmup], rates[warmup:]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    if fall:
        assert fall[0] == pytest.approx(0.5)
    if len(fall) > 1 and schedule != "constant":
        assert fall[-1] == pytest.approx(0.5 * floor)


def test_a_rate_that_falls_late() -> None:
    config = TrainConfig(lr=0.5, schedule="late", warmup_steps=10, final_lr_fraction=0.2)
    rates = [learning_rate(config, step, 101) for step in range(101)]
    assert rates[:10] == sorted(rates[:10]) and set(rates[9:71]) == {0.5}
    assert rates[85] == pytest.approx(0.3) and rates[100] == pytest.approx(0.1)


@settings(deadline=None)
@given(steps=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=5))
def test_row_adam_is_torch_sparse_adam(steps: list[list[int]]) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Embedding(6, 3, sparse=True), nn.Embedding(6, 3, sparse=True)
    theirs.load_state_dict(ours.state_dict())
    a = RowAdam(ours.parameters(), 0.1, (0.9, 0.99), 1e-6)
    b = torch.optim.SparseAdam(list(theirs.parameters()), 0.1, (0.9, 0.99), 1e-6)
    for rows in steps:
        for table, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            table(torch.tensor(rows)).pow(2).sum().backward()
            table.weight.grad = table.weight.grad.coalesce()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-5)


def test_rows_that_are_looked_up_and_masked_are_not_in_use() -> None:
    table = FieldEmbedding((4, 3), 2, sparse=True)
    exchange = GradientExchange(table, World.current("cpu"), numbers=1)
    table(torch.tensor([[0, 2], [3, 0]])).sum().backward()
    exchange.sum()
    assert table.weight.grad is not None
    assert table.weight.grad._indices().tolist() == [[3, 4 + 2]]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_is_decoupled_and_of_matrices_only(optimizer: Any) -> None:
    """Gradients of zero leave the decay alone, whatever the optimiser makes of gradients."""
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    momentum = 0.9 if optimizer == "sgd" else 0.0
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1, momentum=momentum)
    optimizers = Optimizers(model, config)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizers.step(lr=0.5)
    for name, p in model.named_parameters():
        factor = (1 - 0.5 * 0.1) ** 2 if name == "1.weight" else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_momentum_is_refused_for_sparse_tables() -> None:
    config = TrainConfig(optimizer="sgd", momentum=0.9)
    with pytest.raises(ConfigError, match=r"train\.momentum does not go with sparse"):
        Optimizers(nn.Embedding(3, 2, sparse=True), config)


# --------------------------------------------------------------- config, identity


def test_unknown_and_impossible_settings_are_refused() -> None:
    for bad in (
        {"learning_rate": 1},
        {"workers": (0, 2)},
        {"workers": (3, 2)},
        {"workers": -1},
        {"momentum": 0.9},
        {"optimizer": "sgd", "betas": (0.9, 0.99)},
        {"optimizer": "sgd", "eps": 1e-6},
        {"early_stopping": {"metric": "auc", "patients": 3}},
    ):
        with pytest.raises(ValidationError):
            TrainConfig.model_validate(bad)


def test_a_run_is_named_by_what_decides_its_result() -> None:
    def name(card: str = "d", **changes: Any) -> str:
        return run_name(ToyConfig(train=TrainConfig(**changes)), card)

    assert name() == name(workers=(1, 4), keep_checkpoints=9, checkpoint_every_steps=3)
    others = [name(lr=0.2), name(seed=1), name("other"), name(epochs=2)]
    others.append(name(early_stopping=EarlyStopping(metric="auc")))
    assert len({name(), *others}) == 6


# ------------------------------------------------------------------------- launch


def start(folder: Path, config: ToyConfig, **options: Any) -> Any:
    options = {"data_card_id": "card", "show_progress": False, **options}
    return launch(train_toy, config, config.train, folder, **options)


def test_the_same_launch_twice_does_nothing(tmp_path: Path) -> None:
    config = ToyConfig(train=TrainConfig(epochs=2))
    first = start(tmp_path / "run", config)
    second = start(tmp_path / "run", config)
    assert (first.ran, second.ran) == (True, False)
    assert first.result == second.result
    assert first.result["step"] == 16


def test_another_config_or_data_or_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    config = ToyConfig(train=TrainConfig(epochs=2))
    start(folder, config)
    with pytest.raises(ResumeError, match=r"train\.lr \(0\.001 → 0\.5\)\. Choose another --out"):
        start(folder, ToyConfig(train=TrainConfig(epochs=2, lr=0.5)))
    with pytest.raises(ResumeError, match=r"data_card_id \(card → new\)"):
        start(folder, config, data_card_id="new")
    monkeypatch.setattr("raysys.training.identity.code_fingerprint", lambda: "f" * 64)
    with pytest.raises(ResumeError, match="begun with other code"):
        start(folder, config)
    assert not start(folder, config, allow_code_change=True).ran


def failing(config: ToyConfig, session: Any) -> dict[str, Any]:
    raise RaysysError("row 3: bad")


def test_a_fault_before_the_first_checkpoint_leaves_no_folder(tmp_path: Path) -> None:
    config = ToyConfig()
    with pytest.raises(RaysysError, match="row 3"):
        launch(failing, config, config.train, tmp_path / "run", data_card_id="card")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (OSError(28, "No space left on device"), StorageFullError),
        (OSError(5, "I/O error"), OSError),
    ],
)
def test_a_fault_of_the_disk_leaves_no_folder_either(
    tmp_path: Path, fault: OSError, raised: type[Exception]
) -> None:
    def stuck(config: ToyConfig, session: Any) -> dict[str, Any]:
        raise fault

    config = ToyConfig()
    with pytest.raises(raised, match=r"no space left on the disk of .*run: free|I/O error"):
        launch(stuck, config, config.train, tmp_path / "run", data_card_id="card")
    assert not (tmp_path / "run").exists()


def test_a_launch_that_comes_second_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("raysys.training.launch")
    sole = module._sole

    @contextlib.contextmanager
    def after_another(files: Any, wait_s: float) -> Iterator[None]:
        with FileLock(files.checkpoints / "run.lock"):
            files.record.write_text("of the first")
            with sole(files, wait_s):
                yield

    monkeypatch.setattr(module, "_sole", after_another)
    with pytest.raises(ResumeError, match="another process is training"):
        start(tmp_path / "run", ToyConfig())
    assert (tmp_path / "run" / "checkpoints" / "run.json").read_text() == "of the first"


def test_a_finished_run_that_was_damaged_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def verify(folder: Path) -> None:
        if not (folder / "worlds.txt").exists():
            raise ArtifactError("worlds.txt: missing")

    folder, config = tmp_path / "run", ToyConfig(train=TrainConfig(epochs=2))
    first = start(folder, config, verify=verify)
    assert not start(folder, config, verify=verify).ran
    done = folder / "checkpoints" / "done.json"
    for hurt in (lambda: (folder / "worlds.txt").unlink(), lambda: done.write_text("{")):
        log = (folder / "metrics.jsonl").read_bytes()
        hurt()
        mended = start(folder, config, verify=verify)
        assert (mended.ran, mended.result) == (True, first.result)
        assert (folder / "metrics.jsonl").read_bytes() == log  # no step was done again
        assert (folder / "worlds.txt").exists()
    assert "damaged; mending it from its checkpoints: worlds.txt: missing" in caplog.text


SCRIPT = """
import sys
from pathlib import Path
from training_toy import ToyConfig, train_toy
from raysys.errors import RaysysError
from raysys.training import launch
config = ToyConfig.model_validate_json(sys.argv[2])
try:
    print(launch(train_toy, config, config.train, Path(sys.argv[1]), data_card_id="card").result)
except RaysysError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def begin(folder: Path, config: ToyConfig) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), config.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], folder: Path) -> None:
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
        assert process.poll() is None


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    slow = ToyConfig(train=TrainConfig(epochs=3, log_every_steps=1), step_sleep=0.05)
    process = begin(tmp_path / "run", slow)
    wait_for_step(process, tmp_path / "run")
    with pytest.raises(ResumeError, match="another process is training"):
        start(tmp_path / "run", slow)
    process.send_signal(2)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "run the same command again to go on from" in err
    resumed = start(tmp_path / "run", slow)
    whole = start(tmp_path / "whole", slow)
    assert resumed.result == whole.result


@pytest.mark.slow
def test_kill_9_and_the_same_command_give_the_same_bits(tmp_path: Path) -> None:
    config = ToyConfig(
        train=TrainConfig(epochs=3, checkpoint_every_steps=3),
        kill_rank=0,
        kill_epoch=2,
        scratch=str(tmp_path),
    )
    process = begin(tmp_path / "run", config)
    process.communicate()
    assert process.returncode == -9
    done = json.loads((tmp_path / "run" / "checkpoints" / "run.json").read_text())
    assert done["name"] == run_name(config, "card")
    resumed = start(tmp_path / "run", config)
    whole = start(tmp_path / "whole", config)
    assert resumed.result == whole.result
