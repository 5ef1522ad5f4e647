"""The loop in one process and in two: determinism, resumption, global batches, stopping."""

import json
import math
import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from training_toy import ToyConfig, ToyLoader, ToyTask

from raysys.errors import ConfigError, MetricError, RaysysError, ResumeError
from raysys.training import (
    CheckpointStore,
    EarlyStopping,
    FitResult,
    InterruptedRunError,
    Session,
    TrainConfig,
    World,
    fit,
    weights_sha256,
)
from raysys.training.rng import rng_state, seed_everything, set_rng_state
from raysys.training.sharding import whole

# Workers of the group tests are forked from a process that has imported torch already.
multiprocessing.set_forkserver_preload(["raysys.training"])


class Listener:
    """A reporter that remembers, and can ask to stop after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.asked = stop_after, 0
        self.epochs: list[dict[str, Any]] = []

    def step(self, record: dict[str, Any]) -> None:
        pass

    def epoch(self, record: dict[str, Any], checkpoint: Path) -> None:
        assert World.current().rank or checkpoint.is_dir()
        self.epochs.append(record)

    def stop_requested(self) -> bool:
        self.asked += 1
        return self.stop_after is not None and self.asked > self.stop_after

    def preempted(self) -> bool:
        return False


def settings(**changes: Any) -> TrainConfig:
    base = {"epochs": 3, "lr": 0.01, "log_every_steps": 3, "keep_checkpoints": 50}
    return TrainConfig(**{**base, **changes})


def run(
    folder: Path,
    config: ToyConfig,
    listener: Listener | None = None,
    task: Any = None,
    loader: Any = None,
    hash_: str = "toy",
) -> FitResult:
    seed_everything(config.train.seed)
    store = CheckpointStore(folder / "checkpoints", config.train.keep_checkpoints)
    session = Session(folder, listener or Listener(), store, hash_)
    return fit(task or ToyTask(config), loader or ToyLoader(config), config.train, session)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def where(folder: Path) -> list[tuple[Any, ...]]:
    return [(line["kind"], line["step"], line["loss"]) for line in lines(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_stopped_anywhere_and_resumed_is_bitwise_undisturbed(
    tmp_path: Path, sparse: bool, accumulation: int
) -> None:
    train = settings(
        accumulation=accumulation, schedule="cosine", warmup_steps=4, clip_norm=0.5, prefetch=2
    )
    config = ToyConfig(sparse=sparse, train=train)
    whole = run(tmp_path / "whole", config)
    broken = tmp_path / "broken"
    for stop_after in (2, 5, 6, 3, 1):
        with pytest.raises(InterruptedRunError, match="run the same command again"):
            run(broken, config, Listener(stop_after))
    resumed = run(broken, config)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.metrics == whole.metrics
    assert where(broken) == where(tmp_path / "whole")


def test_a_crash_between_checkpoints_repeats_no_line(tmp_path: Path) -> None:
    class Crashing(ToyLoader):
        def batch(self, epoch: int, step: int, part: int, parts: int) -> Any:
            if (epoch, step) == (1, 6):
                raise OSError("power cut")
            return super().batch(epoch, step, part, parts)

    config = ToyConfig(train=settings(checkpoint_every_steps=5, prefetch=0))
    whole = run(tmp_path / "whole", config)
    with pytest.raises(OSError, match="power cut"):
        run(tmp_path / "cut", config, loader=Crashing(config))
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    assert run(tmp_path / "cut", config).weights_sha256 == whole.weights_sha256
    assert where(tmp_path / "cut") == where(tmp_path / "whole")


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_steps_not_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ToyConfig(train=settings(checkpoint_every_steps=3))
    whole = run(tmp_path / "whole", config)
    broken = tmp_path / "broken"
    with pytest.raises(InterruptedRunError):
        run(broken, config, Listener(12))
    newest = sorted((broken / "checkpoints").glob("step-*"))[-1] / "optimizer.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-5] ^= 1
    newest.write_bytes(raw)
    assert run(broken, config).weights_sha256 == whole.weights_sha256
    assert str(newest) in caplog.text
    assert where(broken) == where(tmp_path / "whole")


def test_a_preempted_machine_is_saved_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doomed(Listener):
        def preempted(self) -> bool:
            return self.asked == 11

    monkeypatch.setattr("raysys.training.loop._POLL_SECONDS", 0.0)
    config = ToyConfig(train=settings(epochs=2))
    run(tmp_path, config, Doomed())
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == [8, 11, 16]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = ToyConfig(train=settings())
    first = run(tmp_path, config)
    assert run(tmp_path, config) == first


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    shas = [
        run(tmp_path / str(i), ToyConfig(train=settings(seed=seed))).weights_sha256
        for i, seed in enumerate([5, 5, 6])
    ]
    assert shas[0] == shas[1] != shas[2]


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_accumulation_does_not_change_the_gradient(tmp_path: Path, sparse: bool) -> None:
    weights = []
    for accumulation in (1, 2, 5, 40):
        config = ToyConfig(dropout=0, sparse=sparse, train=settings(accumulation=accumulation))
        seed_everything(3)
        task = ToyTask(config)
        run(tmp_path / str(accumulation), config, task=task)
        weights.append(nn.utils.parameters_to_vector(task.model.parameters()).detach())
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-5)


def _in_group(rank: int, world: int, folder: str, config: ToyConfig, stop: int | None) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    # Workers start apart; the loop takes rank 0's weights.
    seed_everything(config.train.seed + rank)
    task = ToyTask(config)
    session = Session(
        Path(folder), Listener(stop if rank else None), CheckpointStore(Path(folder) / "c"), "toy"
    )
    try:
        result = fit(task, ToyLoader(config), config.train, session)
    except InterruptedRunError:
        assert stop is not None
    else:
        assert World.current().share(result) == result
        weights = whole(task.model.state_dict())
        if rank == 0:
            torch.save(weights, f"{folder}/weights.pt")
            Path(folder, "sha").write_text(result.weights_sha256)
    dist.destroy_process_group()


def in_group(world: int, folder: Path, config: ToyConfig, stop: int | None = None) -> Tensor:
    folder.mkdir(exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    mp.start_processes(
        _in_group, (world, str(folder), config, stop), nprocs=world, start_method="forkserver"
    )
    if stop is not None:
        return torch.empty(0)
    state = torch.load(folder / "weights.pt", weights_only=True)
    return torch.cat([value.flatten() for value in state.values()])


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_two_workers_equal_one_on_one_global_batch(tmp_path: Path, sparse: bool) -> None:
    # 120 rows in batches of 16: the last batch is odd for 2 × 3 micro batches.
    train = settings(clip_norm=0.5, weight_decay=0.1, accumulation=3)
    config = ToyConfig(dropout=0, sparse=sparse, rows=115, train=train)
    seed_everything(config.train.seed)
    task = ToyTask(config)
    run(tmp_path / "one", config, task=task)
    one = torch.cat([value.flatten() for value in task.model.state_dict().values()])
    two = in_group(2, tmp_path / "two", config)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("one", "two")]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


@pytest.mark.slow
def test_two_workers_with_half_a_model_each_equal_one(tmp_path: Path) -> None:
    train = settings(clip_norm=0.5, weight_decay=0.1, accumulation=3, parallel="fsdp")
    config = ToyConfig(dropout=0, rows=118, train=train)
    seed_everything(config.train.seed)
    task = ToyTask(config)
    run(tmp_path / "one", config, task=task)
    one = torch.cat([value.flatten() for value in task.model.state_dict().values()])
    two = in_group(2, tmp_path / "two", config)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_run_goes_on_unsharded_from_its_checkpoint(tmp_path: Path) -> None:
    config = ToyConfig(dropout=0, train=settings(parallel="fsdp"))
    whole = in_group(2, tmp_path / "whole", config)
    in_group(2, tmp_path / "broken", config, stop=10)
    unsharded = ToyConfig(dropout=0, train=settings())
    torch.testing.assert_close(
        in_group(1, tmp_path / "broken", unsharded), whole, rtol=0, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicate", "fsdp"])
def test_two_workers_stopped_and_resumed_are_bitwise_undisturbed(
    tmp_path: Path, parallel: str
) -> None:
    config = ToyConfig(train=settings(parallel=parallel))
    in_group(2, tmp_path / "whole", config)
    in_group(2, tmp_path / "broken", config, stop=10)
    in_group(2, tmp_path / "broken", config)
    assert (tmp_path / "broken" / "sha").read_text() == (tmp_path / "whole" / "sha").read_text()


@pytest.mark.slow
def test_another_world_size_goes_on_from_the_same_batch(tmp_path: Path) -> None:
    config = ToyConfig(dropout=0, train=settings())
    whole = in_group(2, tmp_path / "whole", config)
    in_group(2, tmp_path / "elastic", config, stop=10)
    shrunk = in_group(1, tmp_path / "elastic", config)
    torch.testing.assert_close(shrunk, whole, rtol=0, atol=1e-5)
    steps = [(line["kind"], line["step"]) for line in lines(tmp_path / "elastic")]
    assert steps == [(line["kind"], line["step"]) for line in lines(tmp_path / "whole")]


class Scripted(ToyTask):
    """Validation values by epoch, from a list."""

    def __init__(self, config: ToyConfig, values: list[float]) -> None:
        super().__init__(config)
        self.values, self.seen, self.shas = values, 0, []

    def validate(self, world: World) -> dict[str, float]:
        self.seen += 1
        self.shas.append(weights_sha256(self.model))
        return {"auc": self.values[self.seen - 1]}


@pytest.mark.parametrize(
    ("mode", "values", "epochs", "best"),
    [
        ("max", [0.5, 0.7, 0.6, 0.65, 0.9], 4, 1),
        ("min", [0.5, 0.4, 0.45, 0.3, 0.3], 5, 3),
        ("max", [0.5, 0.4, 0.3, 0.9, 0.9], 3, 0),
    ],
)
def test_early_stopping_keeps_the_best(
    tmp_path: Path, mode: Any, values: list[float], epochs: int, best: int
) -> None:
    rule = EarlyStopping(metric="auc", mode=mode, patience=2)
    config = ToyConfig(train=settings(epochs=5, early_stopping=rule, keep_checkpoints=1))
    task = Scripted(config, values)
    result = run(tmp_path, config, task=task)
    assert result.epochs == epochs
    assert result.stopped == ("early" if epochs < 5 else "completed")
    assert result.metrics == {"auc": values[best]}
    assert result.weights_sha256 == task.shas[best] == weights_sha256(task.model)
    assert result.best_step == (best + 1) * ToyLoader(config).steps_per_epoch
    kept = {path.name for path in (tmp_path / "checkpoints").glob("step-*")}
    assert kept == {f"step-{result.best_step:08d}", f"step-{result.step:08d}"}


def test_early_stopping_goes_on_counting_after_a_resumption(tmp_path: Path) -> None:
    rule = EarlyStopping(metric="auc", patience=2)
    config = ToyConfig(train=settings(epochs=5, early_stopping=rule))
    values = [0.9, 0.5, 0.5, 0.5, 0.5]
    with pytest.raises(InterruptedRunError):
        run(tmp_path, config, Listener(18), task=Scripted(config, values))
    result = run(tmp_path, config, task=Scripted(config, values[2:]))
    assert (result.epochs, result.stopped, result.metrics) == (3, "early", {"auc": 0.9})


def test_max_steps_ends_mid_epoch_with_a_validation(tmp_path: Path) -> None:
    listener = Listener()
    result = run(tmp_path, ToyConfig(train=settings(max_steps=11)), listener)
    assert result.step == 11
    assert [record["step"] for record in listener.epochs] == [8, 11]
    assert "logloss" in result.metrics


def test_a_nan_loss_names_step_and_last_good_checkpoint(tmp_path: Path) -> None:
    class Bursting(ToyTask):
        steps = 0

        def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
            self.steps += 1
            loss, weight = super().loss(batch)
            return loss * (math.nan if self.steps == 12 else 1), weight

    config = ToyConfig(train=settings())
    with pytest.raises(RaysysError, match=r"loss of step 11 is nan.*step-00000008"):
        run(tmp_path, config, task=Bursting(config))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_nan_gradient_of_a_finite_loss_changes_nothing(
    tmp_path: Path, clip_norm: float | None, sparse: bool
) -> None:
    class Rooted(ToyTask):
        steps = 0

        def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
            self.steps += 1
            loss, weight = super().loss(batch)
            if self.steps == 12:
                loss = loss + (self.model.table(batch[1]) * 0).sqrt().sum()
            return loss, weight

    # Due right after the step at fault, which is the last one.
    train = settings(clip_norm=clip_norm, checkpoint_every_steps=1, max_steps=12)
    config = ToyConfig(sparse=sparse, train=train)
    with pytest.raises(RaysysError, match=r"gradient of step 11 has norm nan.*step-00000011"):
        run(tmp_path, config, task=(task := Rooted(config)))
    assert all(p.isfinite().all() for p in task.model.parameters())


def test_a_nan_metric_is_an_error(tmp_path: Path) -> None:
    config = ToyConfig(train=settings())
    with pytest.raises(MetricError, match="auc is nan at step 8"):
        run(tmp_path, config, task=Scripted(config, [math.nan]))


def test_bf16_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bf16 needs a GPU"):
        run(tmp_path, ToyConfig(train=settings(precision="bf16", device="cpu")))


def test_an_unknown_stopping_metric_is_refused(tmp_path: Path) -> None:
    rule = EarlyStopping(metric="auc")
    with pytest.raises(ConfigError, match=r"metric=auc: validation gives \['logloss'\]"):
        run(tmp_path, ToyConfig(train=settings(early_stopping=rule)))


def test_a_checkpoint_of_another_run_or_model_is_refused(tmp_path: Path) -> None:
    config = ToyConfig(train=settings())
    run(tmp_path, config)
    with pytest.raises(ResumeError, match="belongs to the run toy, not to other"):
        run(tmp_path, config, hash_="other")
    task = ToyTask(config)
    task.model.net[0] = nn.Linear(12, 8, bias=False)
    with pytest.raises(ResumeError, match="does not fit the model"):
        run(tmp_path, config, task=task)


def test_training_learns(tmp_path: Path) -> None:
    config = ToyConfig(rows=3000, batch=100, dropout=0, train=settings(epochs=4, lr=0.02))
    listener = Listener()
    run(tmp_path, config, listener)
    assert listener.epochs[-1]["val/logloss"] < listener.epochs[0]["val/logloss"] - 0.01


def test_rng_state_round_trip() -> None:
    cpu = torch.device("cpu")
    seed_everything(3)
    random.gauss(0, 1)
    np.random.normal()
    torch.rand(3)

    def draw() -> list[Any]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), torch.rand(2).tolist()]

    state = rng_state(cpu)
    first = draw()
    set_rng_state(state, cpu)
    assert draw() == first
    assert len(rng_state(cpu)) == len(state)
