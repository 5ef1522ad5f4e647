"""`raysys doctor`: what is wrong with this installation, this machine or a cluster."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.doctor import examine

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS", help="Dashboard URL of a cluster to examine too."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Check the installation, the machine and, with --address, a cluster.

    Exits with 1 if something has failed; warnings alone give 0.
    """
    screen = Console(stderr=True)
    if not screen.is_terminal:
        screen.print("examining … (some ten seconds)")
    with screen.status("examining …"):
        checks = examine(address)
    counts = Counter(check.status for check in checks)
    if as_json:
        typer.echo(json.dumps(dict(counts=counts, checks=[asdict(c) for c in checks]), indent=2))
    else:
        table = Table("", "check", "found", "what to do")
        for check in checks:
            style = _STYLES[check.status]
            table.add_row(f"[{style}]{check.status}[/]", check.name, check.detail, check.advice)
        Console().print(table)
        screen.print(f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failed")
    if counts["fail"]:
        raise typer.Exit(1)
