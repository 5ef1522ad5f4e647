"""`raysys submit -- VERB ...`: run a verb as a job on a Ray cluster."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.package import package
from raysys.errors import ConfigError


def submit(
    verb: Annotated[list[str], typer.Argument(help="After --: the verb and its options.")],
    address: Annotated[
        str,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="URL of the cluster's dashboard."),
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option(help="Copied to the cluster, where the verb runs in it; 100 MiB.")
    ] = Path(),
    wait: Annotated[bool, typer.Option(help="Follow the job to its end.")] = True,
    again: Annotated[
        bool, typer.Option("--again", help="Run anew although the same job has succeeded before.")
    ] = False,
    pending_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that the job may wait to be started.")
    ] = 300.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout; the job's log goes to stderr.")
    ] = False,
) -> None:
    """Run `raysys VERB ...` on a cluster; the same command again attaches to the same job.

    Exits with the job's exit code. Ctrl-C leaves the job running.
    """
    if verb[0] in ("submit", "serve"):
        raise ConfigError(f"{verb[0]} cannot be submitted as a job")
    files = package(working_dir.absolute())
    from cluster.jobs import JobFailed, Jobs  # imports Ray, which takes seconds

    screen = Console(stderr=True, highlight=False)
    jobs = Jobs(address)
    job = jobs.submit(verb, files, again=again)
    result: dict[str, object] = dict(submission_id=job.id, attached=job.attached)
    log = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        print(text, end="", file=log, flush=True)

    try:
        did = "attached to" if job.attached else "submitted"
        screen.print(f"{did} {job.id} ({len(files.files):,} files, {files.bytes / 2**20:.1f} MiB)")
        if not wait:
            if as_json:
                typer.echo(json.dumps(result))
            return
        ending = jobs.wait(job.id, write, pending_s=pending_timeout)
    except KeyboardInterrupt:
        screen.print(
            f"\n{job.id} goes on without us: the same command attaches again, "
            f"{jobs.stop_command(job.id)} ends it"
        )
        raise typer.Exit(130) from None
    if as_json:
        result |= dict(status=ending.status, exit_code=ending.exit_code)
        typer.echo(json.dumps(result))
    if ending.exit_code:
        reason = ending.message.strip().replace(os.linesep, " ")
        raise JobFailed(f"{job.id} {ending.status}: {reason}", ending.exit_code)
    screen.print(f"{job.id} {ending.status}")
