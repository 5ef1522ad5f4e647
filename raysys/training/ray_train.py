"""The loop on Ray Train: workers, restarts, elastic sizes and preemption are Ray's, state ours.

Ray is given no checkpoints. Its own book of them cannot be restored once damaged and ends the
controller; ours (`raysys.training.checkpoints`) are verified on every start, by every attempt,
so that Ray's part is only to start workers again. Results, failures and progress travel through
files of the run folder, which all workers share.
"""

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from pydantic import BaseModel
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raysys import errors
from raysys.data.files import write_text
from raysys.dist.cluster import worker_env
from raysys.errors import ConfigError, RaysysError, ResumeError
from raysys.training.config import TrainConfig
from raysys.training.identity import RunRecord, check_current, code_fingerprint
from raysys.training.launch import RunFiles, TrainFunction, run_here
from raysys.training.progress import ProgressLine
from raysys.training.reporter import InterruptedRunError, Record

log = logging.getLogger(__name__)
# A worker group waits this long for resources before it is tried again, at most so many times.
_START_TIMEOUT_S, _START_ATTEMPTS = 20, 10


class RayTrainReporter:
    """Reports to Ray Train at most every `min_seconds`: each report waits for a Ray poll."""

    def __init__(self, files: RunFiles, min_seconds: float = 2.0) -> None:
        self._files = files
        self._min_seconds = min_seconds
        self._reported = float("-inf")
        self._looked = float("-inf")

    def stage(self, name: str) -> "RayTrainReporter":
        """One of its own: the clock of a stage begins anew."""
        return RayTrainReporter(self._files, self._min_seconds)

    def step(self, record: Record) -> None:
        """Nothing: the driver reads metrics.jsonl."""

    def epoch(self, record: Record, checkpoint: Path) -> None:
        # Every rank must report as often: the record's clock is rank 0's, the same everywhere.
        if record["finished"] or record["seconds"] - self._reported >= self._min_seconds:
            self._reported = record["seconds"]
            ray.train.report(record)

    def stop_requested(self) -> bool:
        now = time.monotonic()
        if now - self._looked < 0.5:
            return False
        self._looked = now
        return self._files.stop.exists()

    def preempted(self) -> bool:
        return ray.train.get_preemption_info() is not None


def run_on_ray(
    train: TrainFunction,
    config: BaseModel,
    settings: TrainConfig,
    files: RunFiles,
    record: RunRecord,
    allow_code_change: bool,
    show_progress: bool,
    own: bool,
) -> None:
    """Run `train` on `settings.workers` Ray Train workers; see `raysys.training.launch`.

    Ray is connected; `own` says that to a cluster started by this process.

    Raises:
        ConfigError: our own cluster is too small for the workers.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was written.
        RaysysError: what a worker raised, or Ray gave up after too many failures.
    """
    least = settings.workers if isinstance(settings.workers, int) else settings.workers[0]
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if own and least * settings.threads_per_worker > cpus:
        raise ConfigError(
            f"train.workers={least} with train.threads_per_worker={settings.threads_per_worker} "
            f"need {least * settings.threads_per_worker} CPUs, this machine gives Ray {cpus}"
        )
    storage = files.checkpoints / "ray"
    _move_aside_snapshot(storage / record.name)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    on_gpu = settings.device == "cuda" or (
        settings.device == "auto" and ray.cluster_resources().get("GPU", 0) >= least
    )
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "train": train,
            "config": config,
            "settings": settings,
            "files": files,
            "record": record,
            "allow_code_change": allow_code_change,
        },
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=on_gpu,
            resources_per_worker={
                "CPU": settings.threads_per_worker,
                **({"GPU": 1} if on_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=record.name,
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=_START_ATTEMPTS
            ),
            worker_runtime_env={"env_vars": worker_env(settings.threads_per_worker)},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    error = _Driver(trainer, files, show_progress).run()
    if files.done.exists():
        return
    if files.failure.exists():
        raise _failure(files)
    raise RaysysError(
        f"Ray gave up training in {files.run_dir}: {_last_words(error)}. The same command goes "
        "on from the newest checkpoint"
    ) from error


class _Driver:
    """Runs the trainer in a thread; this thread shows progress and passes on signals."""

    def __init__(self, trainer: TorchTrainer, files: RunFiles, show_progress: bool) -> None:
        self._trainer = trainer
        self._files = files
        self._line = ProgressLine() if show_progress else None
        self._error: BaseException | None = None
        self._tail = Tail(files.metrics)

    def run(self) -> BaseException | None:
        thread = threading.Thread(target=self._fit, name="raysys-ray-train", daemon=True)
        handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handlers[int(number)] = signal.signal(number, self._on_signal)
        try:
            thread.start()
            while thread.is_alive():
                thread.join(0.2)
                self._show()
            self._show()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self._line:
                self._line.close()
        return self._error

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self._error = error

    def _show(self) -> None:
        if self._line:
            for record in self._tail.new():
                self._line.update(record)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._files.stop.exists():
            raise KeyboardInterrupt
        self._files.stop.touch()


class Tail:
    """Whole new lines of a growing file that may be cut back by a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new(self) -> list[Record]:
        if not self._path.exists():
            return []
        self._offset = min(self._offset, self._path.stat().st_size)
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        lines = []
        for line in whole.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                # The file was cut back and grew past our place: we began mid-line.
                continue
        return lines


def _worker(job: dict[str, Any]) -> None:
    """What each Ray worker runs. A fault of the user's is filed, not raised: Ray would retry it."""
    files: RunFiles = job["files"]
    record: RunRecord = job["record"]
    settings: TrainConfig = job["settings"]
    torch.set_num_threads(settings.threads_per_worker)
    # Ray would print every report of every worker, by a logger that its own level does not reach.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("raysys").setLevel(logging.INFO)
    try:
        check_current(files.record, record.attempt)
        if code_fingerprint() != record.code and not job["allow_code_change"]:
            raise ResumeError(
                f"the worker on {ray.util.get_node_ip_address()} has other raysys sources than "
                "the run was launched with; install the same version everywhere, or allow the "
                "change with --allow-code-change"
            )
        with files.full_disk():
            reporter = RayTrainReporter(files)
            run_here(job["train"], job["config"], settings, files, record, reporter)
    except RaysysError as error:
        body = {"kind": type(error).__name__, "message": str(error)}
        write_text(files.failure, json.dumps(body))
        # Peers waiting for us in a collective fail at once instead of at its timeout.
        if dist.is_initialized():
            dist.destroy_process_group()
    except Exception:
        if not files.failure.exists():
            raise


def _move_aside_snapshot(folder: Path) -> None:
    path = folder / "checkpoint_manager_snapshot.json"
    if path.exists():
        aside = path.with_name(f"{path.name}.ignored-{time.time_ns()}")
        path.rename(aside)
        log.warning("moved Ray's record %s aside to %s: it is not needed", path, aside.name)


def _failure(files: RunFiles) -> RaysysError:
    body = json.loads(files.failure.read_bytes())
    kinds = {"InterruptedRunError": InterruptedRunError, **vars(errors)}
    kind = kinds.get(body["kind"], RaysysError)
    return kind(body["message"])


def _last_words(error: BaseException | None) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason was given"
