"""`raysys train RECIPE`: train a ranker, or go on where the same command stopped."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raysys.errors import ConfigError
from raysys.options import resolve
from raysys.recipes.registry import recipe_of, run


def train(
    recipe: Annotated[str, typer.Argument(help="One of docs/recipes.md, e.g. ctr/din.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. train.lr=0.01 train.workers=2")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.")] = None,
    allow_code_change: Annotated[
        bool, typer.Option("--allow-code-change", help="Go on although raysys itself changed.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the resolved options and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Train RECIPE on a data set. The same command resumes a run; it never starts a second one."""
    kind = recipe_of(recipe)
    given = {} if data is None else {"data": str(data.resolve())}
    options = resolve(kind, config, overrides or [], given)
    if show:
        typer.echo(options.model_dump_json(indent=2))
        return
    if out is None:
        raise ConfigError("train: --out is missing; name the run folder to write")
    outcome = run(options, out, allow_code_change=allow_code_change)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "ran": outcome.ran, **outcome.result}, indent=2))
        return
    console = Console(stderr=True)
    state = "trained" if outcome.ran else "was finished already"
    steps, kept = outcome.result["step"], outcome.result["kept_step"]
    ending = "stopped early" if outcome.result["stopped"] == "early" else "to the end"
    console.print(f"{recipe} {state}: {steps} steps, {ending}; weights of step {kept} kept")
    for name, value in outcome.result["validation"].items():
        console.print(f"  validation {name} {value:.4f}")
    console.print(
        f"run folder: {out}   model {outcome.result['model_id']}", markup=False, soft_wrap=True
    )
