"""`raysys report`: one HTML page about runs."""

from pathlib import Path
from typing import Annotated

import typer

from raysys.tracking.report import run_folders, write_report
from raysys.tracking.tensorboard import mirror


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders of seed-N run folders.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Data set to show and explain rankings of; may be repeated."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Explained rankings per run.")] = 3,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also mirror each log into RUN/tensorboard/.")
    ] = False,
) -> None:
    """Write one self-contained page: curves, baselines with intervals, calibration, figures."""
    if tensorboard:
        for run in run_folders(runs):
            typer.echo(str(mirror(run)), err=True)
    typer.echo(str(write_report(out, runs, data, examples=examples)))
