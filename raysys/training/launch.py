"""Starting a run, in this process or on Ray: the same command resumes it and never forks it."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from raysys.data.files import full_disk, write_text
from raysys.dist.cluster import ensure_ray
from raysys.errors import ArtifactError, RaysysError, ResumeError
from raysys.training.checkpoints import CheckpointStore
from raysys.training.config import TrainConfig
from raysys.training.identity import RunRecord, check_current, claim
from raysys.training.reporter import InProcessReporter, InterruptedRunError, Reporter
from raysys.training.rng import seed_everything
from raysys.training.session import Session
from raysys.training.world import World

log = logging.getLogger(__name__)
# Called on every worker with equal arguments; builds task and loader, calls `fit`, lets rank 0
# write the artefacts into `session.run_dir`, and gives a small JSON result.
TrainFunction = Callable[[Any, Session], dict[str, Any]]
# Raises ArtifactError unless what `train` wrote into this run folder is still whole.
Verify = Callable[[Path], None]


@dataclass(frozen=True)
class Outcome:
    """Result of a run; `ran` is False if it had been finished by an earlier launch."""

    result: dict[str, Any]
    ran: bool


@dataclass(frozen=True)
class RunFiles:
    """The harness's own files in a run folder."""

    run_dir: Path

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def record(self) -> Path:
        return self.checkpoints / "run.json"

    @property
    def done(self) -> Path:
        return self.checkpoints / "done.json"

    @property
    def stop(self) -> Path:
        return self.checkpoints / "stop"

    @property
    def failure(self) -> Path:
        return self.checkpoints / "failure.json"

    @property
    def metrics(self) -> Path:
        return self.run_dir / "metrics.jsonl"

    def full_disk(self) -> AbstractContextManager[None]:
        """Puts a full disk into words, in the launching process and in workers."""
        return full_disk(
            f"no space left on the disk of {self.run_dir}: free some space and run the same "
            "command again"
        )


def launch(
    train: TrainFunction,
    config: BaseModel,
    settings: TrainConfig,
    run_dir: Path,
    *,
    data_card_id: str,
    verify: Verify | None = None,
    allow_code_change: bool = False,
    show_progress: bool = True,
    reporter: Reporter | None = None,
    wait_s: float = 0.0,
) -> Outcome:
    """Run `train(config, session)` to its end, continuing what an earlier launch began.

    Args:
        train: a module-level function of an importable module (workers import it by name).
        config: the recipe's whole frozen config; together with the data it names the run.
        settings: the part of `config` that says how to train; `workers` decides where.
        run_dir: the run folder; with workers on several machines, on storage they share.
        data_card_id: of the data set trained on.
        verify: asked when the run is found finished; if it fails, the run goes on from its newest
            valid checkpoint, which writes the artefacts anew.
        allow_code_change: go on although the package's sources changed since the run began.
        reporter: hears of steps and epochs in place of the terminal; without workers only.
        wait_s: how long to wait for a launch that is still at work in the folder.

    Raises:
        ResumeError: the folder holds another run, other code, a launch still at work, or files
            that are no run at all.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was written.
        StorageFullError: the disk is full.
        RaysysError: whatever `train` raised. If nothing was there before and no checkpoint was
            written, the folder is removed again; after an OSError too.
    """
    files = RunFiles(Path(run_dir).absolute())
    absent = not files.run_dir.exists()
    if not absent and not files.checkpoints.is_dir() and any(files.run_dir.iterdir()):
        raise ResumeError(f"{files.run_dir} is not empty and no run folder; choose another --out")
    files.checkpoints.mkdir(parents=True, exist_ok=True)
    with _sole(files, wait_s):
        # Only the owner of the lock may say that nobody else has begun here, or clean up.
        fresh = absent and not files.record.exists()
        try:
            with files.full_disk():
                record = claim(files.checkpoints, config, data_card_id, allow_code_change)
                if (result := _finished(files, verify)) is not None:
                    log.info("%s is finished", files.run_dir)
                    return Outcome(result, ran=False)
                for path in (files.done, files.stop, files.failure):
                    path.unlink(missing_ok=True)
                if settings.workers == 0:
                    own_reporter = nullcontext(reporter) if reporter else None
                    with own_reporter or InProcessReporter(show_progress) as using:
                        run_here(train, config, settings, files, record, using)
                else:
                    own = ensure_ray()
                    # Only now: a run in this process needs no Ray, and Ray reads its
                    # authentication mode when it is imported.
                    from raysys.training.ray_train import run_on_ray

                    run_on_ray(
                        train,
                        config,
                        settings,
                        files,
                        record,
                        allow_code_change,
                        show_progress,
                        own,
                    )
                return Outcome(json.loads(files.done.read_bytes()), ran=True)
        except (RaysysError, OSError) as error:
            if fresh and not isinstance(error, InterruptedRunError) and not _has_checkpoint(files):
                shutil.rmtree(files.run_dir, ignore_errors=True)
            raise


def _finished(files: RunFiles, verify: Verify | None) -> dict[str, Any] | None:
    """The result of a run that was finished and is still whole; None if there is work to do."""
    if not files.done.exists():
        return None
    try:
        if verify:
            verify(files.run_dir)
        return json.loads(files.done.read_bytes())
    except (ArtifactError, ValueError) as error:
        log.warning("a finished run is damaged; mending it from its checkpoints: %s", error)
        return None


def run_here(
    train: TrainFunction,
    config: BaseModel,
    settings: TrainConfig,
    files: RunFiles,
    record: RunRecord,
    reporter: Reporter,
) -> None:
    """Run `train` in this process as one worker; rank 0 leaves its result in `files.done`."""
    store = CheckpointStore(
        files.checkpoints,
        keep=settings.keep_checkpoints,
        fence=lambda: check_current(files.record, record.attempt),
    )
    seed_everything(settings.seed)
    result = train(config, Session(files.run_dir, reporter, store, record.name))
    if World.current("cpu").leads:
        write_text(files.done, json.dumps(result))


@contextmanager
def _sole(files: RunFiles, wait_s: float) -> Iterator[None]:
    lock = FileLock(files.checkpoints / "run.lock")
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise ResumeError(
            f"another process is training in {files.run_dir}; wait for it, or stop it with Ctrl-C"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _has_checkpoint(files: RunFiles) -> bool:
    return any(files.checkpoints.glob("**/step-*"))
