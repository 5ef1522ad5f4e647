"""A sweep from its options to its results: refused before anything starts, or resumable."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import tune_spaces
from raysys.data.files import full_disk, write_text
from raysys.dist.cluster import ensure_ray, worker_env
from raysys.errors import ArtifactError, ConfigError, DataError, ResumeError
from raysys.recipes.ranker import RankerRecipe
from raysys.recipes.registry import card_of, ready, validates
from raysys.training import InterruptedRunError, code_fingerprint
from raysys.training.identity import differences, identity
from tune_spaces.runner.ledger import Book
from tune_spaces.runner.plan import Plan, make_plan
from tune_spaces.runner.progress import Progress
from tune_spaces.runner.results import RESULTS, winner, write_report, write_results
from tune_spaces.runner.space import Space

log = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class Options:
    """Of one sweep; samples and seeds as in `Space`."""

    name: str
    space: Space
    base: RankerRecipe
    samples: int
    seeds: int
    max_concurrent: int | None = None
    memory_gb: float | None = None
    allow_code_change: bool = False

    @property
    def trials(self) -> int:
        """How many trials the sweep has in all."""
        return self.space.trials(self.samples, self.seeds)

    def check(self) -> None:
        """Raises ConfigError for what can never run."""
        self.space.check(self.base)
        if self.samples > 1 and not self.space.search:
            raise ConfigError(
                f"--samples {self.samples}, but nothing is left to search in {self.name}: leave "
                "--samples out, and give --seeds for more trials"
            )
        if not self.space.search and self.trials == 1:
            raise ConfigError(f"{self.name}: every parameter is fixed; raysys train does that")


def tune(options: Options, out: Path, *, resume: bool, again: str) -> dict[str, Any]:
    """Run a sweep, or what is left of it, and write its results.

    Args:
        out: folder of the sweep; new unless `resume`.
        again: the command that goes on, for the messages.

    Returns:
        A summary for people and machines, as OUT/sweep.json holds it.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM; everything is kept.
        RaysysError: refused, nothing was begun; or a fault of the place, everything is kept.
    """
    options.check()
    out = out.absolute()
    _check_folder(out, resume)
    data = ready(options.base)
    if not validates(data):
        raise DataError(f"{options.base.data} has no validation split for a sweep to look at")
    name = _identity(options, card_of(data).id)
    before = _begun(out / "sweep.json", name, options.allow_code_change) if resume else {}
    book = Book.open(out / "ledger.jsonl")
    left = options.trials - book.ended()
    plan = _plan(options, left) if left else None
    out.mkdir(parents=True, exist_ok=True)
    with _sole(out), full_disk(f"no space left on the disk of {out}: free some, then {again}"):
        line = before.get("plan") if plan is None else plan.line()
        if plan is not None:
            _write_summary(out, {"identity": name, "state": "running", "plan": line})
            log.info("plan: %s", line)
            whole = _drive(options, book, plan, out)
            if not whole:
                write_results(out, list(book.trials.values()), options.space)
                raise InterruptedRunError(
                    f"stopped with {book.ended()} of {options.trials} trials ended; go on with: "
                    f"{again}"
                )
        return _finish(options, book, out, {"identity": name, "ran": left, "plan": line})


def _drive(options: Options, book: Book, plan: Plan, out: Path) -> bool:
    # Only now: Ray reads its authentication mode when it is imported.
    from tune_spaces.runner.drive import drive
    from tune_spaces.runner.search import Search
    from tune_spaces.runner.trial import Job

    space = options.space
    search = Search(
        space,
        samples=options.samples,
        seeds=options.seeds,
        seed=options.base.train.seed,
        epochs=options.base.train.epochs,
        book=book,
    )
    job = Job(
        base=options.base,
        metric=space.metric,
        folder=out / "trials",
        stop=out / "stop",
        allow_code_change=options.allow_code_change,
    )
    job.folder.mkdir(exist_ok=True)
    show = Progress(book, space.metric, space.mode, options.trials)
    return drive(search, job, plan, out, show)


def _plan(options: Options, left: int) -> Plan:
    """Connect to Ray and fit the trials that are left into what it has."""
    settings = options.base.train
    ensure_ray(env=worker_env(settings.threads_per_worker))
    import ray

    plan = make_plan(
        [node["Resources"] for node in ray.nodes() if node["Alive"]],
        settings,
        trials=left,
        memory_gb=options.memory_gb or options.space.memory_gb,
        max_concurrent=options.max_concurrent,
    )
    if plan.workers:
        _check_dashboard()
    return plan


def _check_dashboard() -> None:
    """A stopped trial's Ray Train workers are released only after Ray has asked the dashboard
    whether the trial lives; without one their CPUs are lost and the sweep waits for ever.

    Raises:
        ConfigError: the cluster has none.
    """
    import ray
    from ray.util.state import list_nodes

    # Without an address Ray looks for "the" cluster of this machine, and there may be several.
    address = ray.get_runtime_context().gcs_address
    try:
        list_nodes(address, limit=1, timeout=10)
    except Exception as error:
        raise ConfigError(
            "the cluster's dashboard does not answer, and a sweep whose trials run Ray Train "
            "would hang without it: start Ray with --include-dashboard=true, unset RAY_ADDRESS "
            "to let raysys start a cluster, or train each trial in one process (train.workers=0)"
        ) from error


def _identity(options: Options, data_card_id: str) -> dict[str, Any]:
    """What must stay the same for a sweep to go on."""
    runner = code_fingerprint(Path(tune_spaces.__file__).parent)
    return {
        "format": FORMAT,
        "name": options.name,
        "space": options.space.model_dump(mode="json", exclude={"memory_gb", "samples", "seeds"}),
        "recipe": identity(options.base),
        "data_card_id": data_card_id,
        "samples": options.samples,
        "seeds": options.seeds,
        "code": f"{code_fingerprint()[:12]}-{runner[:12]}",
        "optuna": version("optuna"),
        "ray": version("ray"),
    }


def _check_folder(out: Path, resume: bool) -> None:
    known = (out / "sweep.json").is_file()
    if resume and not known:
        raise ResumeError(f"{out} holds no sweep; leave out --resume to start one there")
    if not resume and known:
        raise ConfigError(f"{out} holds a sweep already; add --resume to go on, or choose another")
    if not resume and out.exists():
        raise ConfigError(f"{out} exists already; choose another --out")


def _begun(path: Path, now: dict[str, Any], allow_code_change: bool) -> dict[str, Any]:
    """The summary an earlier driver left, which must be of the same sweep."""
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
        begun = dict(body["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); choose another --out") from error
    if allow_code_change:
        begun["code"] = now["code"]
    # As the file gives it back: tuples are lists there.
    now = json.loads(json.dumps(now))
    if begun != now:
        code = (
            "go on with changed code by --allow-code-change, or "
            if begun["code"] != now["code"]
            else ""
        )
        raise ResumeError(
            f"{path.parent} holds another sweep; different: {differences(begun, now)}. "
            f"To go on, give the options it began with; else {code}choose another --out"
        )
    return body


@contextmanager
def _sole(out: Path) -> Iterator[None]:
    lock = FileLock(out / "sweep.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ResumeError(f"another process is tuning in {out}; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def _finish(options: Options, book: Book, out: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Write what the sweep has come to; gives the summary, `known` included."""
    trials = list(book.trials.values())
    count = {
        status: sum(trial.status == status for trial in trials)
        for status in ("completed", "stopped", "failed")
    }
    write_results(out, trials, options.space)
    images = write_report(out, trials, options.space)
    summary = {
        **known,
        "out": str(out),
        "state": "finished",
        "name": options.name,
        "metric": options.space.metric,
        "trials": len(trials),
        **count,
        "best": winner(trials, options.space, out / "trials"),
        "failures": {t.id: t.message for t in trials if t.status == "failed"},
        "results": str(out / RESULTS),
        "images": [str(path) for path in images],
    }
    _write_summary(out, summary)
    return summary


def _write_summary(out: Path, body: dict[str, Any]) -> None:
    write_text(out / "sweep.json", json.dumps(body, indent=1) + "\n")
