"""`raysys compare A B`: two systems on identical rows, with intervals and a verdict."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from raysys.errors import MetricError
from raysys.metrics import compare as metrics_compare
from raysys.metrics import load_system
from raysys.metrics.bootstrap import REPLICATES
from raysys.metrics.compare import ComparedMetric, Comparison
from raysys.metrics.seeds import EFFECT, MIN_SEEDS

_METRICS = "metrics.json"


def compare(
    a: Annotated[Path, typer.Argument(help="Run folder, or folder of seed-N run folders.")],
    b: Annotated[Path, typer.Argument(help="The system that A is compared with.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="A claim, with a verdict; may be repeated. Default: the headline of A's "
            "evaluation, else gauc_mean@impression."
        ),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="A metric shown without a verdict; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which scores/SPLIT.parquet to read.")] = "test",
    effect: Annotated[
        float, typer.Option(help="Smallest difference worth a claim, fixed beforehand.")
    ] = EFFECT,
    non_inferior: Annotated[
        bool, typer.Option("--non-inferior", help="Ask whether A is not worse than B.")
    ] = False,
    allow_mixed_data: Annotated[
        bool, typer.Option("--allow-mixed-data", help="Compare across data cards; marks the table.")
    ] = False,
    replicates: Annotated[int, typer.Option(min=100, help="Bootstrap replicates.")] = REPLICATES,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Compare two systems that scored the same rows.

    A difference is "supported" only if the interval over at least five shared seeds and the
    interval over users both exclude 0 and it reaches the effect size.
    """
    for folder in (a, b):
        if not folder.is_dir():
            raise MetricError(f"{folder}: no such run folder")
    result = metrics_compare(
        load_system(a, split),
        load_system(b, split),
        claims=metric or [_headline(a)],
        also=also or [],
        effect=effect,
        non_inferior=non_inferior,
        allow_mixed_data=allow_mixed_data,
        replicates=replicates,
        seed=seed,
    )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _print(result)


def _headline(run: Path) -> str:
    """What `raysys evaluate` put first for this run, or for the first of its seeds and folds."""
    for path in (run / _METRICS, *sorted(run.glob("**/" + _METRICS))):
        with suppress(OSError, ValueError, KeyError, TypeError, StopIteration):
            return str(next(iter(json.loads(path.read_text(encoding="utf-8"))["model"])))
    return "gauc_mean@impression"


def _print(result: Comparison) -> None:
    console = Console()
    console.print(f"A = {result.a}\nB = {result.b}", soft_wrap=True, markup=False, highlight=False)
    mixed = " (MIXED DATA)" if result.mixed_data else ""
    table = Table("metric", "mean ± sd over seeds", "A − B, 95 % intervals")
    for row in result.metrics:
        table.add_row(_claim(row), _arms(row), _difference(row), end_section=True)
    console.print(table)
    console.print(
        f"{result.split}, data {', '.join(result.data_card_ids)}{mixed}; seeds {result.seeds}; "
        f"{result.replicates:,} replicates; effect fixed at {result.effect:g}",
        highlight=False,
    )
    for row in result.metrics:
        if row.warning:
            console.print(f"warning: {row.name}: {row.warning}", style="yellow")


def _claim(row: ComparedMetric) -> str:
    groups = "" if row.key == "all" else f", {row.n_used:,}/{row.n_groups:,} groups"
    lines = [f"[bold]{row.name}[/bold]", f"{row.n_rows:,} rows{groups}"]
    if row.verdict:
        few = f": {row.a.n} shared seeds, {MIN_SEEDS} needed" if row.verdict == "no verdict" else ""
        lines.append(
            row.verdict + few if row.p_holm is None else f"{row.verdict}, p {row.p_holm:.3g}"
        )
    return "\n".join(lines)


def _arms(row: ComparedMetric) -> str:
    return "\n".join(
        f"{name} {arm.mean:.4f}" + ("" if arm.sd is None else f" ± {arm.sd:.4f}")
        for name, arm in (("A", row.a), ("B", row.b))
    )


def _difference(row: ComparedMetric) -> str:
    lines = [f"{row.delta:+.4f}"]
    for name, interval in (("seeds", row.seeds), ("users", row.users)):
        if interval is not None:
            lines.append(f"{name} \\[{interval.low:+.4f}, {interval.high:+.4f}]")
    return "\n".join(lines)
