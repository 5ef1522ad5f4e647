"""`raysys score RUN --requests FILE --out DIR`: batch scoring in resumable parts."""

from pathlib import Path
from typing import Annotated

import typer

from raysys.data.mapping import LocalMapper
from raysys.dist import RayMapper
from raysys.recipes.score import REQUESTS_PER_PART
from raysys.recipes.score import score as run_scoring


def score(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained ranker.")],
    requests: Annotated[Path, typer.Option(help="Requests as .jsonl or .parquet.")],
    out: Annotated[Path, typer.Option(help="Folder of the scores; existing parts are kept.")],
    workers: Annotated[
        int, typer.Option(min=1, help="Parts scored at a time; more than one goes through Ray.")
    ] = 1,
    per_part: Annotated[int, typer.Option(min=1, help="Requests in one part.")] = REQUESTS_PER_PART,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Score a file of requests into Parquet parts, one row per candidate.

    The same command submitted again keeps what is there and scores the rest.
    """
    mapper = LocalMapper() if workers == 1 else RayMapper(workers)
    report = run_scoring(run, requests, out, mapper, per_part=per_part)
    if as_json:
        typer.echo(report.model_dump_json())
        return
    unknown = "".join(f", {count:,} unknown {name}" for name, count in report.unknown.items())
    typer.echo(
        f"{report.out}: {report.requests:,} requests, {report.rows:,} rows in {report.parts} parts "
        f"({report.kept} kept), model {report.model_id}{unknown}"
    )
