"""`raysys bench NAME`: side-by-side measurements; one JSON each."""

import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.record import record as write_record
from raysys.errors import ConfigError
from raysys.options import parse_overrides

# The options of a bench are not those of this verb.
CONTEXT = {"ignore_unknown_options": True}
BENCHES = {
    "cofars-fair": "bench.cofars_fair",
    "cofars-cost": "bench.cofars_cost",
    "ctr-train": "bench.ctr_train",
    "embed": "bench.embed",
    "gap": "bench.gap",
    "hkfr-cost": "bench.hkfr_cost",
    "hkfr-fair": "bench.hkfr_fair",
    "homodistil-cost": "bench.homodistil_cost",
    "homodistil-fair": "bench.homodistil_fair",
    "homodistil-probes": "bench.homodistil_probes",
    "larr-fair": "bench.larr_fair",
    "longctr": "bench.longctr",
    "metrics": "bench.metrics",
    "perconet-cost": "bench.perconet_cost",
    "perconet-fair": "bench.perconet_fair",
    "serve": "bench.serve",
    "world": "bench.world",
}


def bench(
    name: Annotated[str, typer.Argument(help=", ".join(BENCHES))],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="options of the measurement: key=value, or --key value"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write the figures into docs/results.md.")
    ] = False,
) -> None:
    """Measure NAME on this machine, beside its peer where it has one."""
    if name not in BENCHES:
        near = difflib.get_close_matches(name, BENCHES, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no bench is called {name!r}; {hint}There are {', '.join(BENCHES)}")
    module = importlib.import_module(BENCHES[name])
    run = module.run
    given = parse_overrides(_pairs(options or []))
    known = inspect.signature(run).parameters
    for key in given:
        if key not in known:
            raise ConfigError(f"bench {name}: unknown option {key}; valid: {', '.join(known)}")
    for key, option in known.items():
        if option.default is option.empty and key not in given:
            raise ConfigError(f"bench {name}: {key} is missing; give {key}=…")
    # What Ray tells of its workers goes to stdout too, in between: JSON shall stand there alone.
    with redirect_stdout(sys.stderr):
        result: dict[str, Any] = run(**given)
    command = " ".join(["raysys bench", name, *(options or []), "--json"])
    if record:
        page = module.markdown(result) if hasattr(module, "markdown") else None
        write_record(name, command, result, page)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    table = Table("figure", "value", title=command)
    for key, value in result.items():
        table.add_row(key, json.dumps(value) if isinstance(value, dict | list) else str(value))
    Console().print(table)


def _pairs(words: Sequence[str]) -> list[str]:
    """key=value of each option, also of those that are spelt `--key value`."""
    out, rest = [], iter(words)
    for word in rest:
        if not word.startswith("--"):
            out.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            given = next(rest, None)
            if given is None:
                raise ConfigError(f"{word}: a value is missing; write {word} VALUE")
            value = given
        out.append(f"{key.replace('-', '_')}={value}")
    return out
