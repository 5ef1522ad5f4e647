"""The one training loop. It knows no Ray; it runs the same in a process, a worker, a trial."""

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from raysys.errors import ArtifactError, ConfigError, MetricError, RaysysError, ResumeError
from raysys.training.checkpoints import Checkpoint
from raysys.training.config import TrainConfig
from raysys.training.gradients import GradientExchange, ShardedExchange
from raysys.training.memory import keep_freed_memory
from raysys.training.metrics_log import MetricsLog
from raysys.training.optim import Optimizers
from raysys.training.reporter import InterruptedRunError
from raysys.training.rng import rng_state, seed_everything, set_rng_state
from raysys.training.schedule import learning_rate
from raysys.training.session import Session
from raysys.training.sharding import shard, sliced_like, whole
from raysys.training.state import Best, TrainState
from raysys.training.task import Loader, Shrinking, Task, Validated
from raysys.training.world import World

log = logging.getLogger(__name__)
# Slots of the numbers that travel with the gradients.
_LOSS, _WEIGHT, _STOP, _SAVE, _POLL = range(5)
_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class FitResult:
    """How a run ended. The task's model holds the best weights if early stopping is on.

    `metrics` are those of the epoch whose weights the model holds; `stopped` is "completed"
    or "early".
    """

    step: int
    epochs: int
    stopped: str
    metrics: dict[str, float]
    best_step: int | None
    checkpoint: Path
    weights_sha256: str


def fit(task: Task[Any], loader: Loader[Any], config: TrainConfig, session: Session) -> FitResult:
    """Train `task.model` to the end of `config`, continuing from the newest valid checkpoint.

    Called on every worker with equal arguments. For one world size and one thread count the
    weights are, bit for bit, those of an undisturbed run; with another world size the run goes
    on from the same global batch, and weights agree to rounding.

    Raises:
        ConfigError: bf16 without a GPU; a metric for early stopping that validate lacks.
        ResumeError: the checkpoint belongs to another run or model.
        StorageFullError: no room for a checkpoint.
        MetricError: a validation metric is not finite.
        InterruptedRunError: the reporter asked to stop; a checkpoint was written.
        RaysysError: the loss or its gradient is not finite; names the step and the last good
            checkpoint.
    """
    world = World.current(config.device)
    if config.precision == "bf16" and world.device.type != "cuda":
        raise ConfigError(
            "train.precision=bf16 needs a GPU and this worker has none; use precision=fp32"
        )
    with _settings(config, world):
        return _Fit(task, loader, config, session, world).run()


def weights_sha256(model: nn.Module) -> str:
    """Hex sha256 over the names and bytes of the model's state; collective if it is sharded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(whole(model.state_dict()).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class _Fit:
    """One call of `fit`."""

    def __init__(
        self,
        task: Task[Any],
        loader: Loader[Any],
        config: TrainConfig,
        session: Session,
        world: World,
    ) -> None:
        self.task, self.loader, self.config = task, loader, config
        self.session, self.world = session, world
        self.model = task.model.to(world.device)
        world.broadcast([*self.model.parameters(), *self.model.buffers()])
        self.sharded = config.parallel == "fsdp" and world.size > 1
        if self.sharded:
            shard(self.model, world, config.precision)
        if config.compile:
            self.model.compile()
        self.total = config.total_steps(loader.steps_per_epoch)
        if self.total < 1:
            raise ConfigError("the loader has no batches: the training part of the data is empty")
        self.shrinking = task if isinstance(task, Shrinking) else None
        if self.sharded and self.shrinking is not None:
            raise ConfigError("train.parallel=fsdp: a model that becomes smaller cannot be sharded")
        self._lay_out()
        self.state = TrainState()
        self.last_checkpoint: Path | None = None

    def _lay_out(self) -> None:
        """Gradients and moments for the parameters as they are now."""
        exchange = ShardedExchange if self.sharded else GradientExchange
        self.exchange = exchange(self.model, self.world, numbers=5)
        self.optimizers = Optimizers(self.model, self.config)

    def run(self) -> FitResult:
        self._resume()
        self.log: MetricsLog | None = None
        if self.world.leads:
            self.log = MetricsLog(self.session.run_dir / "metrics.jsonl", self.state.log_bytes)
        self.started = self.saved = self.polled = time.monotonic()
        self.seconds_before, self.steps_before = self.state.seconds, self.state.step
        try:
            while self.state.finished is None:
                self._train_epoch()
                self._end_epoch()
        finally:
            if self.log:
                self.log.close()
        return self._result()

    # ------------------------------------------------------------------ steps

    def _train_epoch(self) -> None:
        state, config = self.state, self.config
        self.model.train()
        end = min(self.loader.steps_per_epoch, state.epoch_step + self.total - state.step)
        with self._batches(state.epoch, state.epoch_step, end) as batches:
            for micro_batches in batches:
                numbers = self._train_step(micro_batches)
                state.step += 1
                state.epoch_step += 1
                state.window_loss += numbers[_LOSS]
                state.window_weight += numbers[_WEIGHT]
                state.epoch_loss += numbers[_LOSS]
                state.epoch_weight += numbers[_WEIGHT]
                if state.step % config.log_every_steps == 0:
                    self._log_step()
                preempted = bool(numbers[_POLL]) and self.session.reporter.preempted()
                if numbers[_STOP]:
                    self._save()
                    raise InterruptedRunError(
                        f"interrupted at step {state.step} of {self.total}; run the same command "
                        f"again to go on from {self.last_checkpoint}"
                    )
                every = config.checkpoint_every_steps
                due = every is not None and state.step % every == 0
                # The epoch's end writes a checkpoint of its own.
                if (due or preempted or numbers[_SAVE]) and state.epoch_step < end:
                    self._save()

    def _train_step(self, micro_batches: list[Any]) -> list[float]:
        """One optimiser step; gives the numbers of `_LOSS`... summed over all workers."""
        self.optimizers.zero_grad()
        numbers = self.exchange.numbers
        numbers.copy_(torch.tensor([0.0, 0.0, *self._flags()]))
        for batch in micro_batches:
            if batch is None and self.sharded:
                raise ConfigError(
                    "train.parallel=fsdp: a global batch has fewer rows than workers × "
                    "train.accumulation; make batches larger"
                )
            if batch is None:
                continue
            with self._autocast():
                loss, weight = self.task.loss(batch)
            loss.backward()
            numbers[_LOSS] += loss.detach()
            numbers[_WEIGHT] += weight
        sums = self.exchange.sum()
        step = self.state.step
        if not math.isfinite(sums[_LOSS]) or not sums[_WEIGHT] > 0:
            self._refuse(f"the loss of step {step} is {sums[_LOSS]} over {sums[_WEIGHT]:g} rows")
        if self.shrinking is not None:
            self.shrinking.observe(1.0 / sums[_WEIGHT])
        norm = self.exchange.scale(1.0 / sums[_WEIGHT], self.config.clip_norm)
        if not math.isfinite(norm):
            self._refuse(f"the gradient of step {step} has norm {norm}")
        self.optimizers.step(learning_rate(self.config, step, self.total))
        if self.shrinking is not None:
            kept = self.shrinking.shrink(step + 1, self.total)
            if kept is not None:
                self._follow(kept)
        return sums

    def _follow(self, kept: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Go on with a smaller model: moments are sliced as its parameters were."""
        moments = self.optimizers.state()
        for key, values in moments.items():
            if values.dim():  # not the count of steps
                for dim, rows in kept.get(key.rsplit("|", 1)[0], {}).items():
                    values = values.index_select(dim, rows.to(values.device))
            moments[key] = values
        self._lay_out()
        self.optimizers.load_state(moments)

    def _flags(self) -> tuple[float, float, float]:
        """Stop, save now, poll for preemption: wishes of this rank, summed over all."""
        now = time.monotonic()
        every = self.config.checkpoint_every_seconds
        save = self.world.leads and every is not None and now - self.saved >= every
        poll = self.world.leads and now - self.polled >= _POLL_SECONDS
        if poll:
            self.polled = now
        return float(self.session.reporter.stop_requested()), float(save), float(poll)

    def _refuse(self, fault: str) -> None:
        good = self.last_checkpoint
        raise RaysysError(
            f"{fault} (epoch {self.state.epoch}, batch {self.state.epoch_step}); weights were not "
            f"changed by it; last good checkpoint: {good or 'none'}. Lower train.lr, set "
            "train.clip_norm, or look at that batch"
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _batches(self, epoch: int, start: int, end: int) -> Iterator[Iterator[list[Any]]]:
        """This rank's micro batches of the steps [start, end), read ahead by a thread."""
        micro = self.config.accumulation
        first, parts = self.world.rank * micro, self.world.size * micro
        ahead = self.config.prefetch

        def read(step: int) -> list[Any]:
            return [self.loader.batch(epoch, step, first + i, parts) for i in range(micro)]

        def direct() -> Iterator[list[Any]]:
            for step in range(start, end):
                yield _moved(read(step), self.world.device)

        def prefetched(pool: ThreadPoolExecutor) -> Iterator[list[Any]]:
            queue: list[Future[list[Any]]] = []
            for step in range(start, end):
                while len(queue) <= ahead and step + len(queue) < end:
                    queue.append(pool.submit(read, step + len(queue)))
                yield _moved(queue.pop(0).result(), self.world.device)

        if ahead == 0:
            yield direct()
            return
        pool = ThreadPoolExecutor(
            1,
            thread_name_prefix="raysys-loader",
            initializer=torch.set_num_threads,
            initargs=(self.config.threads_per_worker,),
        )
        try:
            yield prefetched(pool)
        finally:
            pool.shutdown(cancel_futures=True)

    # ------------------------------------------------------------- epoch ends

    def _end_epoch(self) -> None:
        state = self.state
        state.metrics = self._validate()
        state.epoch += 1
        state.epoch_step = 0
        if state.step >= self.total:
            state.finished = "completed"
        self._judge()
        loss = state.epoch_loss / max(state.epoch_weight, 1e-30)
        state.epoch_loss = state.epoch_weight = 0.0
        metrics = {f"val/{name}": value for name, value in state.metrics.items()}
        record = self.world.share(
            {"kind": "epoch", **self._where(loss), **metrics, "finished": state.finished}
        )
        if self.log:
            self.log.append(record)
        self._save()
        assert self.last_checkpoint is not None
        self.session.reporter.epoch(record, self.last_checkpoint)

    def _validate(self) -> dict[str, float]:
        if not isinstance(self.task, Validated):
            return {}
        # Running statistics of normalisation layers are rank 0's, in checkpoints too.
        self.world.broadcast(self.model.buffers())
        self.model.eval()
        with torch.no_grad(), self._autocast():
            values = self.task.validate(self.world)
        metrics: dict[str, float] = self.world.share({k: float(v) for k, v in values.items()})
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise MetricError(f"validation metric {name} is {value} at step {self.state.step}")
        return metrics

    def _judge(self) -> None:
        rule, state = self.config.early_stopping, self.state
        if rule is None:
            return
        if rule.metric not in state.metrics:
            raise ConfigError(
                f"train.early_stopping.metric={rule.metric}: validation gives "
                f"{sorted(state.metrics) or 'no metrics'}"
            )
        value = state.metrics[rule.metric]
        if rule.improves(value, state.best.value if state.best else None):
            state.best = Best(value=value, step=state.step, metrics=state.metrics)
            state.bad_epochs = 0
            return
        state.bad_epochs += 1
        if state.bad_epochs >= rule.patience and state.finished is None:
            state.finished = "early"

    def _log_step(self) -> None:
        state = self.state
        loss = state.window_loss / state.window_weight
        rows, state.window_loss, state.window_weight = state.window_weight, 0.0, 0.0
        if self.log:
            rate = learning_rate(self.config, state.step - 1, self.total)
            record = {"kind": "step", **self._where(loss), "lr": rate, "rows": rows}
            self.log.append(record)
            self.session.reporter.step(record)

    def _where(self, loss: float) -> dict[str, Any]:
        state = self.state
        seconds = time.monotonic() - self.started
        return {
            "step": state.step,
            "total_steps": self.total,
            "epoch": state.epoch,
            "loss": loss,
            "steps_per_s": (state.step - self.steps_before) / max(seconds, 1e-9),
            "seconds": self.seconds_before + seconds,
        }

    # ------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        state = self.state
        rng = self.world.gather_rows(rng_state(self.world.device))
        model = whole(self.model.state_dict(), self.world.leads)
        moments = whole(self.optimizers.state(), self.world.leads)
        path = self.session.checkpoints.folder(state.step)
        if self.log:
            state.seconds = self.seconds_before + time.monotonic() - self.started
            state.log_bytes = self.log.sync()
            state.world_size = self.world.size
            state.config_hash = self.session.config_hash
            self.session.checkpoints.save(
                state.step,
                {"model": model, "optimizer": moments, "rng": {"rng": rng}},
                state.model_dump(mode="json"),
                best_step=state.best.step if state.best else None,
            )
        self.last_checkpoint = path
        self.saved = time.monotonic()

    def _resume(self) -> None:
        """Load the newest valid checkpoint, which rank 0 chooses, or start afresh."""
        store, world = self.session.checkpoints, self.world
        step = None
        if world.leads:
            store.sweep()
            newest = store.latest()
            step = newest.step if newest else None
        step = world.share(step)
        if step is None:
            seed_everything(self._rank_seed(0))
            return
        checkpoint = Checkpoint.trusted(store.folder(step))
        state = TrainState.model_validate(checkpoint.state)
        wanted = self.session.config_hash
        if wanted is not None and state.config_hash not in (None, wanted):
            raise ResumeError(
                f"{checkpoint.path} belongs to the run {state.config_hash}, not to {wanted}: the "
                "config or the data changed; choose another --out"
            )
        if self.shrinking is not None:
            self.shrinking.reshape(checkpoint.tensors("model"))
            self._lay_out()
        self._load_model(checkpoint)
        self.optimizers.load_state(checkpoint.tensors("optimizer"))
        if state.world_size == world.size:
            set_rng_state(checkpoint.tensors("rng")["rng"][world.rank], world.device)
        else:
            seed_everything(self._rank_seed(step))
        self.state, self.last_checkpoint = state, checkpoint.path
        if world.leads:
            log.info("going on from %s", checkpoint.path)
        world.share(None)  # Nobody deletes old checkpoints before all have read.

    def _load_model(self, checkpoint: Checkpoint) -> None:
        stored = checkpoint.tensors("model")
        if self.sharded:
            like = self.model.state_dict()
            stored = {k: sliced_like(like[k], v) if k in like else v for k, v in stored.items()}
        try:
            self.model.load_state_dict(stored)
        except RuntimeError as error:
            raise ResumeError(f"{checkpoint.path} does not fit the model: {error}") from error

    def _rank_seed(self, step: int) -> int:
        text = f"{self.config.seed}/{step}/{self.world.rank}/{self.world.size}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _result(self) -> FitResult:
        state = self.state
        assert state.finished is not None
        assert self.last_checkpoint is not None
        path, metrics, best = self.last_checkpoint, state.metrics, state.best
        if best is not None and best.step != state.step:
            path = self.session.checkpoints.folder(best.step)
            fault = self.world.share(_fault(path) if self.world.leads else None)
            if fault is None:
                self._load_model(Checkpoint.trusted(path))
                metrics = best.metrics
            else:
                log.warning("keeping the last weights, the best are damaged: %s", fault)
                path, best = self.last_checkpoint, None
        return FitResult(
            step=state.step,
            epochs=state.epoch,
            stopped=state.finished,
            metrics=metrics,
            best_step=best.step if best else None,
            checkpoint=path,
            weights_sha256=weights_sha256(self.model),
        )


def _fault(path: Path) -> str | None:
    try:
        Checkpoint.open(path)
    except ArtifactError as error:
        return str(error)
    return None


def _moved(batches: list[Any], device: torch.device) -> list[Any]:
    """Batches on `device`: leaves with a method `to` (tensors, `raysys.data.Batch`) move."""
    if device.type == "cpu":
        return batches
    return tree_map(lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf, batches)


@contextlib.contextmanager
def _settings(config: TrainConfig, world: World) -> Iterator[None]:
    """Fixed threads and deterministic algorithms while training; as before afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(config.threads_per_worker)
    keep_freed_memory()
    # Some GPU kernels have no deterministic twin; on the CPU, where we promise equal bits, all do.
    torch.use_deterministic_algorithms(True, warn_only=world.device.type == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
