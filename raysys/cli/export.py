"""`raysys export RUN --out FILE.pt2`: a trained ranker as one `torch.export` program."""

from pathlib import Path
from typing import Annotated

import typer

from raysys.artifacts.export import check_export, export_run


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained ranker.")],
    out: Annotated[Path, typer.Option(help="The program; FILE.json and FILE.arrow come beside.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; compare the file that is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Export the frozen ranker, catalogue inside, and prove that it scores as the run does.

    The program runs with torch alone, on batches, histories and candidate lists of any size.
    """
    exported = check_export(run, out) if check else export_run(run, out)
    if as_json:
        typer.echo(exported.model_dump_json())
        return
    typer.echo(
        f"{out}: model {exported.model_id}, {exported.items:,} items; differs from the run by at "
        f"most {exported.max_difference:.1e} over {len(exported.sizes)} batch sizes"
    )
