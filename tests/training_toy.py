"""A click model small enough to train in milliseconds, and ways to hurt it at a chosen step."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from raysys.dist.cluster import ensure_ray
from raysys.training import Session, TrainConfig, World, fit


class ToyConfig(BaseModel):
    """`kill_*`: the worker of that rank kills itself once, before that batch of that epoch.

    `damage`: what it does to the newest checkpoint (in `scratch`/run) before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = 120
    batch: int = 16
    dropout: float = 0.2
    sparse: bool = False
    kill_rank: int | None = None
    kill_epoch: int = 1
    kill_step: int = 3
    damage: Literal["", "truncate", "flip"] = ""
    scratch: str = ""
    step_sleep: float = 0.0
    train: TrainConfig = TrainConfig()


class ToyModel(nn.Module):
    def __init__(self, dropout: float, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4, sparse=sparse)
        self.net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.net(torch.cat([x, self.table(ids).flatten(1)], dim=1))[:, 0]


class ToyTask:
    def __init__(self, config: ToyConfig) -> None:
        self.model = ToyModel(config.dropout, config.sparse)
        self.held = toy_rows(90, seed=9)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, ids, y = batch
        logits = self.model(x, ids)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        return loss, torch.tensor(float(len(y)))

    def validate(self, world: World) -> dict[str, float]:
        x, ids, y = (column[world.rows(90)] for column in self.held)
        part = nn.functional.binary_cross_entropy_with_logits(
            self.model(x, ids), y, reduction="none"
        )
        return {"logloss": float(world.gather(part.numpy()).mean())}


class ToyLoader:
    def __init__(self, config: ToyConfig, world: World | None = None) -> None:
        self.config, self.world = config, world
        self.columns = toy_rows(config.rows, seed=1)
        self.steps_per_epoch = -(-config.rows // config.batch)

    def batch(
        self, epoch: int, step: int, part: int, parts: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        config = self.config
        time.sleep(config.step_sleep)
        if (epoch, step) == (config.kill_epoch, config.kill_step):
            self.maybe_die()
        order = np.random.default_rng([config.train.seed, epoch]).permutation(config.rows)
        rows = order[step * config.batch : (step + 1) * config.batch]
        mine = rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]
        if not len(mine):
            return None
        x, ids, y = self.columns
        return x[mine], ids[mine], y[mine]

    def maybe_die(self) -> None:
        marker = Path(self.config.scratch) / "killed"
        if self.world and self.world.rank == self.config.kill_rank and not marker.exists():
            marker.write_text(str(os.getpid()))
            if self.config.damage:
                hurt_newest(Path(self.config.scratch) / "run", self.config.damage)
            os.kill(os.getpid(), signal.SIGKILL)


def hurt_newest(run_dir: Path, damage: str) -> Path:
    """Truncate the newest checkpoint's model, or flip one bit of it."""
    path = max((run_dir / "checkpoints").glob("step-*")) / "model.safetensors"
    raw = bytearray(path.read_bytes())
    if damage == "truncate":
        del raw[-7:]
    else:
        raw[-7] ^= 16
    path.write_bytes(raw)
    return path


def toy_environment(patch: pytest.MonkeyPatch) -> None:
    """Drivers and workers find this module, meet no other cluster, and report often."""
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")


@contextmanager
def toy_ray(num_cpus: int = 2) -> Iterator[None]:
    """Ray on this machine whose workers can import this module."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        toy_environment(patch)
        ensure_ray(num_cpus)
        yield
        ray.shutdown()


def toy_rows(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    ids = rng.integers(0, 50, size=(count, 2))
    y = (x[:, 0] + (ids[:, 0] % 3 - 1) + rng.normal(size=count) > 0).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(ids), torch.from_numpy(y)


def train_toy(config: ToyConfig, session: Session) -> dict[str, Any]:
    """A recipe's train function."""
    world = World.current(config.train.device)
    result = fit(ToyTask(config), ToyLoader(config, world), config.train, session)
    if world.leads:
        with (session.run_dir / "worlds.txt").open("a") as file:
            file.write(f"{world.size}\n")
    return {
        "sha256": result.weights_sha256,
        "step": result.step,
        "stopped": result.stopped,
        "metrics": result.metrics,
        "world": world.size,
    }
