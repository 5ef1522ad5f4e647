"""Build what a trained run needs beside its weights."""

from pathlib import Path
from typing import Annotated

import typer

from raysys.recipes.cofars_lists import ListsReport, build_lists
from raysys.recipes.personas import build_personas

app = typer.Typer(no_args_is_help=True, help="Build what a trained run needs beside its weights.")


@app.command("cofars-lists")
def cofars_lists(
    run: Annotated[Path, typer.Argument(help="Run folder of ctr/cofars.")],
    data: Annotated[Path, typer.Option(help="Data set folder: whose histories.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the lists; RUN/indexes/cofars by default.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Keep the lists there; add later events only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Build the contexts of each prototype for all users: the nightly job of CoFARS.

    Lists replace those in their place when they are complete, never before.
    """
    report = build_lists(run, data, out, append=append)
    typer.echo(report.model_dump_json() if as_json else _sentence(report))


@app.command("personas")
def personas(
    run: Annotated[Path, typer.Argument(help="Run folder of news/perconet.")],
    data: Annotated[
        Path | None, typer.Option(help="Data set folder: whose histories; the run's by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File; RUN/indexes/personas/cards.jsonl by default.")
    ] = None,
    user: Annotated[list[str] | None, typer.Option(help="Only this user; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Write what the ranker believes of each user as persona cards, one line of JSON each."""
    report = build_personas(run, data, out, tuple(user or ()))
    told = (
        f"{report.out}: cards of {report.users:,} users with {report.entities:,} entities, "
        f"{report.fallback:,} users without one; model {report.model_id}, {report.seconds:.1f} s"
    )
    typer.echo(report.model_dump_json() if as_json else told)


def _sentence(report: ListsReport) -> str:
    added = "" if report.added is None else f", {report.added:,} events added"
    served = (
        "" if report.served else "; the run's snapshot holds other histories, which do not use them"
    )
    return (
        f"{report.out}: lists of {report.users:,} users, {report.contexts:,} contexts, "
        f"{report.events:,} events{added}; {report.open:.1%} of contexts × prototypes belong "
        f"together; {report.bytes:,} bytes, selector {report.selector}, model {report.model_id}, "
        f"{report.seconds:.1f} s{served}"
    )
