"""Jobs through Ray's Jobs API: the same command never runs twice at once or after success."""

import asyncio
import hashlib
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.auth import headers
from cluster.package import Package
from raysys.errors import ConfigError, RaysysError

# A job that failed or was stopped may be tried again, each time under the next name, since Ray
# takes a name once only.
MAX_ATTEMPTS = 100
POLL_S = 0.5


@dataclass(frozen=True)
class Submission:
    """A job on the cluster; `attached` if an earlier command had submitted it."""

    id: str
    attached: bool


@dataclass(frozen=True)
class Ending:
    """How a job ended; `exit_code` is the one of its entrypoint."""

    status: str
    exit_code: int
    message: str


class JobFailed(RaysysError):  # noqa: N818 - says what happened to the job
    """A job that ended badly; the command line exits with the job's own code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of the dashboard, e.g. http://127.0.0.1:8265.

    Raises:
        RaysysError: nothing answers there, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._check()
        self._client = self._call(JobSubmissionClient, self.address, headers=headers())

    def submit(self, verb: Sequence[str], package: Package, *, again: bool = False) -> Submission:
        """Run `raysys VERB...` in a copy of the package, or attach to the job that does.

        The id covers the command and the package, not what lies at absolute paths. `again` runs
        a job anew that has succeeded, say on data that were made anew.

        Raises:
            ConfigError: the verb's output would be lost with the copy.
            RaysysError: the cluster refuses.
        """
        check_output(verb)
        base = job_id(verb, package.digest())
        over = {JobStatus.FAILED, JobStatus.STOPPED} | ({JobStatus.SUCCEEDED} if again else set())
        for attempt in range(1, MAX_ATTEMPTS + 1):
            name = base if attempt == 1 else f"{base}-{attempt}"
            known = self.find(name)
            if known is None:
                if self._start(name, verb, package):
                    return Submission(name, attached=False)
                return Submission(name, attached=True)
            if known.status not in over:
                return Submission(name, attached=True)
        raise RaysysError(f"{base} has run {MAX_ATTEMPTS} times; look at its logs first")

    def find(self, name: str) -> JobDetails | None:
        """What Ray knows of a job; None if nothing."""
        jobs = self._call(self._client.list_jobs)
        return next((job for job in jobs if job.submission_id == name), None)

    def wait(self, name: str, write: Callable[[str], None], *, pending_s: float) -> Ending:
        """Follow the logs of a job to its end.

        Args:
            name: submission id.
            write: takes the log as it comes.
            pending_s: how long the job may wait to be started.

        Raises:
            RaysysError: still waiting after `pending_s`, or the cluster is gone.
        """
        end = time.monotonic() + pending_s
        while (info := self._info(name)).status == JobStatus.PENDING:
            if time.monotonic() > end:
                raise RaysysError(
                    f"{name} is still PENDING after {pending_s:g} s ({info.message}); it stays "
                    f"queued: the same command attaches again, {self.stop_command(name)} ends it"
                )
            time.sleep(POLL_S)
        written = 0
        while True:
            written += self._follow(name, write, written)
            info = self._info(name)
            if info.status.is_terminal():
                break
            time.sleep(POLL_S)  # the log connection broke; the job goes on
        code = info.driver_exit_code
        if info.status == JobStatus.SUCCEEDED:
            code = 0
        return Ending(info.status.value, 1 if code is None else code, info.message or "")

    def stop_command(self, name: str) -> str:
        """The command that ends a job."""
        return f"`ray job stop {name} --address {self.address}`"

    def _start(self, name: str, verb: Sequence[str], package: Package) -> bool:
        """Submit; False if another submission of the same job came first."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "working_dir.zip"
            package.write(archive)
            try:
                self._call(
                    self._client.submit_job,
                    entrypoint=shlex.join(["raysys", *verb]),
                    submission_id=name,
                    runtime_env={"working_dir": str(archive)},
                    metadata={"working_dir": str(package.root)},
                )
            except RaysysError:
                if self.find(name) is None:
                    raise
                return False
        return True

    def _info(self, name: str) -> JobDetails:
        found: JobDetails = self._call(self._client.get_job_info, name)
        return found

    def _follow(self, name: str, write: Callable[[str], None], skip: int) -> int:
        """Write the log past its first `skip` characters; how many were written."""

        async def follow() -> int:
            seen = 0
            try:
                async for text in self._client.tail_job_logs(name):
                    fresh = text[max(0, skip - seen) :]
                    seen += len(text)
                    if fresh:
                        write(fresh)
            except (RuntimeError, OSError):
                pass  # the connection broke; the caller looks at the status and comes back
            # Ctrl-C cancels this task, and libraries below may make a timeout of that.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
            return max(0, seen - skip)

        return asyncio.run(follow())

    def _check(self) -> None:
        """Ask for the version first: Ray's client turns a refusal into a stack of tracebacks."""
        try:
            answer = requests.get(f"{self.address}/api/version", headers=headers(), timeout=10)
        except requests.RequestException as error:
            raise RaysysError(
                f"no Ray dashboard answers at {self.address} ({type(error).__name__}); give its "
                "URL by --address, or start a cluster with `ray start --head`"
            ) from error
        if answer.status_code in (401, 403):
            raise RaysysError(
                f"{self.address} refuses the token (HTTP {answer.status_code}); put the "
                "cluster's token into RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH names"
            )
        if answer.status_code != 200:
            raise RaysysError(
                f"{self.address} is no Ray dashboard (HTTP {answer.status_code} for /api/version)"
            )

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except (RuntimeError, OSError) as error:
            first = str(error).strip().partition("\n")[0]
            raise RaysysError(f"{self.address}: {first}") from error


def job_id(verb: Sequence[str], digest: str) -> str:
    """Submission id: readable head, then a hash of the command and of the files it runs on."""
    text = "\0".join([*verb, digest])
    head = re.sub(r"[^a-z0-9]+", "-", "-".join(verb[:2]).lower()).strip("-")[:40]
    return f"{head}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def check_output(verb: Sequence[str]) -> None:
    """Refuse what a verb would write inside the job's copy of the working directory.

    Raises:
        ConfigError: `--out`, `--table`, `vector_table=` or the run to evaluate is relative.
    """
    written = [
        (name, value)
        for name, value in zip(verb, [*verb[1:], ""], strict=True)
        if name in ("--out", "--table")
    ]
    given = [word.partition("=") for word in verb]
    written += [(n, v) for n, _, v in given if v and n in ("--out", "--table", "vector_table")]
    if verb[0] == "evaluate":
        written += [("evaluate", word) for word in verb[1:2] if not word.startswith("-")]
    for name, path in written:
        if not Path(path).is_absolute():
            raise ConfigError(
                f"{name} {path} would be written into the job's copy of the working directory, "
                "which Ray deletes; give an absolute path on storage that the cluster shares"
            )
