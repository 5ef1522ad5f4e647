"""`raysys compare A B`: two systems on identical rows, with intervals and a verdict."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from raysys.errors import MetricError
from raysys.metrics import compare as metrics_compare
from raysys.metrics import load_system
from raysys.metrics.bootstrap import REPLICATES, Interval
from raysys.metrics.compare import ComparedMetric, Comparison
from raysys.metrics.seeds import EFFECT, SeedSummary

DEFAULT = "gauc_mean@impression"


def compare(
    a: Annotated[Path, typer.Argument(help="Run folder, or folder of seed-N run folders.")],
    b: Annotated[Path, typer.Argument(help="The system that A is compared with.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help=f"A claim, with a verdict; may be repeated. Default {DEFAULT}."),
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
        claims=metric or [DEFAULT],
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


def _print(result: Comparison) -> None:
    mixed = "  MIXED DATA" if result.mixed_data else ""
    title = (
        f"A = {result.a}\nB = {result.b}\n{result.split}, data {', '.join(result.data_card_ids)}"
    )
    table = Table(title=title + mixed, title_justify="left")
    for name in ("metric", "groups used", "A", "B", "Δ = A − B", "seeds", "users", "p", "verdict"):
        table.add_column(name, justify="left" if name in ("metric", "verdict") else "right")
    for row in result.metrics:
        table.add_row(
            row.name,
            f"{row.n_used:,}/{row.n_groups:,}",
            _arm(row.a),
            _arm(row.b),
            f"{row.delta:+.4f}",
            _interval(row.seeds),
            _interval(row.users),
            _p(row),
            row.verdict or "",
        )
    console = Console()
    console.print(table)
    console.print(
        f"95 % intervals; seeds {result.seeds}, {result.replicates:,} bootstrap replicates, "
        f"effect fixed at {result.effect:g}"
    )
    for row in result.metrics:
        if row.warning:
            console.print(f"warning: {row.name}: {row.warning}", style="yellow")


def _arm(arm: SeedSummary) -> str:
    return f"{arm.mean:.4f}" if arm.sd is None else f"{arm.mean:.4f} ± {arm.sd:.4f}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval.low:+.4f}, {interval.high:+.4f}]"


def _p(row: ComparedMetric) -> str:
    return "" if row.p is None else f"{row.p if row.p_holm is None else row.p_holm:.3g}"
