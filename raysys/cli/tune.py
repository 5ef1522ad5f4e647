"""`raysys tune SPACE`: a hyper-parameter sweep, or the rest of one."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raysys.errors import ConfigError
from raysys.options import flat, nested, parse_overrides, resolve
from raysys.recipes.registry import recipe_of
from tune_spaces import open_space
from tune_spaces.runner.sweep import Options
from tune_spaces.runner.sweep import tune as run


def tune(
    space: Annotated[str, typer.Argument(help="Name of a module in tune_spaces, e.g. din.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value options of the recipe; what the space varies is fixed."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data set folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Suggestions; default: the space's.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Training seeds of each; default: the space's.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the recipe's options.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --out.")
    ] = False,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Most trials at once; 1: the same on every machine.")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(help="Memory to reserve per training process.")
    ] = None,
    allow_code_change: Annotated[
        bool, typer.Option("--allow-code-change", help="Go on although raysys itself changed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Search good options of a recipe on the validation split, many trials side by side on Ray."""
    found = open_space(space)
    if data is None or out is None:
        missing = "--data" if data is None else "--out"
        raise ConfigError(f"tune: {missing} is missing; see raysys tune --help")
    given = overrides or []
    base = resolve(
        recipe_of(found.recipe),
        config,
        given,
        {**nested(found.defaults), "data": str(data.resolve())},
    )
    varied = found.fixed(flat(parse_overrides(given)))
    options = Options(
        name=space,
        space=varied,
        base=base,
        samples=samples or (found.samples if varied.search else 1),
        seeds=seeds or found.seeds,
        max_concurrent=max_concurrent,
        memory_gb=memory_gb,
        allow_code_change=allow_code_change,
    )
    words = [word for word in sys.argv[1:] if word != "--resume"]
    summary = run(options, out, resume=resume, again=shlex.join(["raysys", *words, "--resume"]))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _show(summary)
    if summary["failed"]:
        raise typer.Exit(1)


def _show(summary: dict[str, Any]) -> None:
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{summary['trials']} trials: {summary['completed']} completed, {summary['stopped']} "
        f"stopped early, {summary['failed']} failed"
    )
    for trial, message in summary["failures"].items():
        say(f"  {trial} failed: {message}")
    if best := summary["best"]:
        say(f"best {summary['metric']} {best[summary['metric']]:.4f}  {' '.join(best['trials'])}")
        for key, value in best["parameters"].items():
            say(f"  {key}={value}")
        say(f"run folder{'s' if len(best['runs']) > 1 else ''}: {' '.join(best['runs'])}")
    say(f"results: {summary['results']}")
    for image in summary["images"]:
        say(f"  {image}")
