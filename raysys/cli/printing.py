"""What several verbs print on stdout."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys.data.faults import Report


def print_pairs(title: str, pairs: dict[str, Any]) -> None:
    """A table of names and values; empty values are left out."""
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in pairs.items():
        if value not in ("", None, {}, (), []):
            plain = isinstance(value, (str, int))
            shown = str(value) if plain else json.dumps(value, ensure_ascii=False)
            table.add_row(key, escape(shown))
    Console().print(table, highlight=False)


def print_faults(report: Report) -> None:
    """The faults as a table, the warnings, or that there is none."""
    console = Console()
    if report.faults:
        table = Table(title=f"{report.path}: faults {sum(report.counts.values())}")
        for name in ("kind", "file", "row", "column", "fault"):
            table.add_column(name, overflow="fold")
        for fault in report.faults:
            row = "" if fault.row is None else str(fault.row)
            cells = (fault.kind, fault.file, row, fault.column or "", fault.message)
            table.add_row(*map(escape, cells))
        console.print(table, highlight=False)
        for kind, count in report.counts.items():
            if count > report.first:
                console.print(f"{kind}: {count} in all, the first {report.first} shown")
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    if report.ok:
        rows = ", ".join(f"{name} {count}" for name, count in report.rows.items() if count)
        console.print(f"{report.path}: no faults ({rows} rows)", markup=False, highlight=False)
