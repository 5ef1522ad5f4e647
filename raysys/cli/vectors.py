"""Check, compact and show vector tables."""

import json
from pathlib import Path
from typing import Annotated

import typer

from raysys.cli.printing import print_faults, print_pairs
from raysys.data.faults import FIRST_FAULTS
from raysys.llm.compact import compact as compact_table
from raysys.llm.inspect import check_table, summarise

app = typer.Typer(no_args_is_help=True, help="Check, compact and show vector tables.")

TableFolder = Annotated[Path, typer.Argument(metavar="TABLE", help="Vector table folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command("check")
def check(
    table: TableFolder,
    first: Annotated[int, typer.Option(min=1, help="Faults shown per kind.")] = FIRST_FAULTS,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a table; exits with 1 if there is a fault."""
    report = check_table(table, first=first)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        print_faults(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command("compact")
def compact(
    table: TableFolder,
    ttl_days: Annotated[
        int | None,
        typer.Option(min=1, help="Also drop what no run has bound for so many days."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Merge small parts; with a time to live, drop bindings and vectors out of use."""
    report = compact_table(table, ttl_days)
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        print_pairs(f"compacted {table}", report.model_dump(mode="json", exclude={"table"}))


@app.command("show")
def show(table: TableFolder, as_json: AsJson = False) -> None:
    """Print what a table holds and what is bound to it."""
    summary = summarise(table)
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
        return
    print_pairs(str(table), summary.model_dump(mode="json", exclude={"table", "fields"}))
    for name, field in summary.fields.items():
        print_pairs(name, field.model_dump(mode="json"))
