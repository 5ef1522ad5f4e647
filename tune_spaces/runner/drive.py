"""Running what is left of a sweep with Ray Tune, until it ends or somebody stops it."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raysys import errors
from raysys.errors import RaysysError
from tune_spaces.runner.plan import Plan, tune_resources
from tune_spaces.runner.progress import Progress
from tune_spaces.runner.search import Search
from tune_spaces.runner.trial import Job, trainable

log = logging.getLogger(__name__)


class Stop:
    """Whether the sweep is to end early: a file that the trials, on any machine, look for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault: RaysysError | None = None
        path.unlink(missing_ok=True)

    def __call__(self) -> bool:
        return self.path.exists()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first Ctrl-C lets every trial write a checkpoint; the second does not wait."""
        if self():
            raise KeyboardInterrupt
        self.path.touch()

    def on_fault(self, fault: RaysysError) -> None:
        """A fault of the place: other trials would meet it too."""
        self.fault = self.fault or fault
        self.path.touch()


class _Suggestions(Searcher):
    """Tune's searcher: hands out our trials under Tune's ids."""

    def __init__(self, search: Search, stop: Stop) -> None:
        super().__init__()
        self._search = search
        self._stop = stop
        self._names: dict[str, str] = {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self._stop():
            return Searcher.FINISHED
        trial = self._search.next()
        if trial is None:
            # None makes Tune ask again.
            return None if self._search.waits else Searcher.FINISHED
        self._names[trial_id] = trial.id
        return {"trial": trial.id, "parameters": trial.parameters, "seed": trial.seed}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error:
            self._search.end(self._names[trial_id], "its process died too often")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its parts into a file that nobody ever reads.
        return {}


class _Decisions(FIFOScheduler):
    """Tune's scheduler: brings what trials tell to the search and its decision back."""

    def __init__(self, search: Search, stop: Stop, job: Job) -> None:
        super().__init__()
        self._search = search
        self._stop = stop
        self._job = job

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name, kind = trial.config["trial"], result["kind"]
        if kind == "epoch":
            stop = self._search.report(
                name, result["epoch"], result["value"], result["seconds"], result["finished"]
            )
            if stop and self._job.nested:
                # Tune would kill the trial, and Ray does not always give back the CPUs of the
                # workers that the trial's own training had: it is asked to end by itself.
                self._job.halt(name).touch()
                return str(TrialScheduler.CONTINUE)
            return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)
        if kind == "broken":
            self._stop.on_fault(getattr(errors, result["error"])(result["message"]))
        elif kind in ("end", "failed"):
            self._search.end(name, result.get("message"))
        return str(TrialScheduler.CONTINUE)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def drive(search: Search, job: Job, plan: Plan, out: Path, show: Progress) -> bool:
    """Train all trials that have not ended; False if Ctrl-C or SIGTERM came first.

    Raises:
        RaysysError: a fault of the place (a full disk), or Ray gave up.
    """
    stop = Stop(job.stop)
    scratch = out / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    # The ledger is the memory; what else Tune writes, nobody reads.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    # Its newer display writes to stdout, whatever it is told.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(trainable(job), tune_resources(plan)),
        tune_config=tune.TuneConfig(
            num_samples=plan.trials,
            max_concurrent_trials=plan.at_once,
            search_alg=_Suggestions(search, stop),
            scheduler=_Decisions(search, stop, job),
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=job.base.train.max_failures),
        ),
    )
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            raised.append(error)

    # In a thread, because Tune itself would answer Ctrl-C by killing the trials.
    thread = threading.Thread(target=fit, name="raysys-tune", daemon=True)
    with _signals(stop), show:
        thread.start()
        while thread.is_alive():
            thread.join(0.3)
            show.update()
    stopped = stop()
    if stop.fault:
        raise stop.fault
    if raised:
        fault = raised[0]
        raise (
            fault
            if isinstance(fault, RaysysError | OSError)
            else RaysysError(
                f"Ray Tune gave up: {fault}. What the sweep had decided is kept; --resume goes on"
            )
        ) from fault
    shutil.rmtree(scratch, ignore_errors=True)
    stop.path.unlink(missing_ok=True)
    return not stopped


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    old: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            old[int(number)] = signal.signal(number, stop.on_signal)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
