"""`raysys evaluate RUN`: a model beside every cheap baseline on the same rows."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raysys.metrics import MetricValue
from raysys.metrics.bootstrap import REPLICATES, Interval
from raysys.recipes.evaluate import Evaluation
from raysys.recipes.evaluate import evaluate as run_evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained ranker.")],
    data: Annotated[Path, typer.Option(help="Data set folder.")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric to show; may be repeated. The first is the headline."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Compute the cheap baselines.")
    ] = True,
    counts: Annotated[
        Literal["frozen", "streaming"],
        typer.Option(help="Item counts end at the split, or follow the impressions."),
    ] = "frozen",
    leak_tests: Annotated[
        bool,
        typer.Option("--leak-tests", help="Also score with other users' histories, and reordered."),
    ] = False,
    other_data: Annotated[
        bool, typer.Option("--other-data", help="The run was trained on another data set.")
    ] = False,
    replicates: Annotated[int, typer.Option(min=100, help="Bootstrap replicates.")] = REPLICATES,
    seed: Annotated[int, typer.Option(help="Seed of baselines and bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Measure a run and the baselines it has to beat; writes RUN/metrics.json and RUN/scores/.

    Exits with 1 if a leak or sanity test failed: the figures are then not to be trusted.
    """
    result = run_evaluation(
        run,
        data,
        split,
        metrics=metric,
        baselines=baselines,
        counts=counts,
        leak_tests=leak_tests,
        other_data=other_data,
        seed=seed,
        replicates=replicates,
    )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _print(result)
    if any(finding.passed is False for finding in result.findings):
        raise typer.Exit(1)


def _print(result: Evaluation) -> None:
    console = Console()
    console.print(result.summary, markup=False, highlight=False, style="bold")
    headline, *others = result.model
    shown = [headline, *(name for name in others if name.startswith(("auc", "ndcg@10")))][:3]
    key = f"@{result.groups['key']}"
    table = Table(f"per {key[1:]}", *(n.removesuffix(key) for n in shown), "model − this")
    table.box, table.collapse_padding, table.pad_edge = SIMPLE_HEAD, True, False
    table.add_row("model", *_cells(result.model, shown), "", style="bold", end_section=True)
    for name, values in result.baselines.items():
        interval = result.intervals.get(name, {}).get(headline)
        table.add_row(name, *_cells(values, shown), _interval(interval))
    if result.oracle:
        table.add_section()
        table.add_row("oracle", *_cells(result.oracle, shown), "")
    console.print(table)
    if result.anchors:
        console.print(_anchors(result))
    rest = [f"{name} {value.value:.4f}" for name, value in result.model.items()]
    console.print("model: " + ", ".join(rest), highlight=False)
    for name, gap in result.oracle_gap.items():
        bounds = f"[{gap.users.low:.3f}, {gap.users.high:.3f}]"
        console.print(
            f"closes {gap.share:.3f} {bounds} of the gap from {name} to the oracle",
            markup=False,
            highlight=False,
        )
    groups = result.groups
    console.print(
        f"{result.split}, data {result.data_card_id}, model {result.model_id}: "
        f"{groups['n_rows']:,} rows, {groups['n_used']:,} of {groups['n_groups']:,} groups "
        f"({groups['key']}) used; {result.counts} item counts; "
        f"{result.replicates:,} replicates over users",
        highlight=False,
    )
    for name, reason in result.left_out.items():
        console.print(f"left out: {name}, {reason}", highlight=False)
    for finding in result.findings:
        if finding.passed is not None:
            figures = ", ".join(f"{k} {v:.4g}" for k, v in finding.figures.items())
            verdict = "passed" if finding.passed else "[red]FAILED[/red]"
            console.print(f"{finding.test}: {verdict} ({figures})", highlight=False)
    for warning in result.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def _anchors(result: Evaluation) -> Table:
    """Published figures beside the run's; other splits or protocols, so no verdict follows."""
    names = [name for name in result.model if any(name in row.values for row in result.anchors)]
    title = "published elsewhere, for orientation: other splits and protocols, not our results"
    table = Table("published", "on", *(n.split("@impression")[0] for n in names), "by", title=title)
    table.box, table.collapse_padding, table.pad_edge = SIMPLE_HEAD, True, False
    table.add_row("this run", result.split, *_cells(result.model, names), "", end_section=True)
    for row in result.anchors:
        cells = [f"{row.values[name]:.4f}" if name in row.values else "" for name in names]
        table.add_row(row.model, row.where, *cells, row.source)
    return table


def _cells(values: dict[str, MetricValue], names: list[str]) -> list[str]:
    return [f"{values[name].value:.4f}" if name in values else "" for name in names]


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.delta:+.4f} \\[{interval.low:+.3f}, {interval.high:+.3f}]"
