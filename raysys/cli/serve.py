"""`raysys serve CONFIG`: the graph over HTTP until Ctrl-C."""

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_apps.client import Client
from serve_apps.config import load_config
from serve_apps.server import check_runs, running


def serve(
    config: Annotated[Path, typer.Argument(help="YAML file, e.g. serve_apps/configs/local.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as http.port=8001 models.ctr.run=runs/R.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Verify config and run folders, start nothing.")
    ] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Print the YAML for `serve deploy`, start nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line on stdout when ready.")
    ] = False,
) -> None:
    """Serve trained runs over HTTP: POST /v1/ctr/rank, /v1/news/rank, /v1/answer and others.

    Runs until Ctrl-C or SIGTERM; requests that are being answered are finished first.
    """
    settings = load_config(config, overrides or ())
    screen = Console(stderr=True)
    if check or render:
        runs = check_runs(settings)
        from serve_apps.app import render as rendered

        text = rendered(settings)
        if render:
            typer.echo(text, nl=False)
        elif as_json:
            typer.echo(json.dumps({name: run.model_id for name, run in runs.items()}))
        else:
            for name, run in runs.items():
                screen.print(f"{name}: {run.recipe}, model {run.model_id}, verified")
            if settings.models.llm is not None:
                screen.print(f"llm: {settings.models.llm.model or 'knowledge alone'}, verified")
        return
    stopped = threading.Event()
    with screen.status("starting Ray and the replicas …") as status, running(settings) as url:
        status.stop()
        with Client(url) as client:
            cards = client.models()
        if as_json:
            models = {name: card.model_dump() for name, card in cards.items()}
            typer.echo(json.dumps(dict(url=url, models=models)))
        else:
            table = Table("ranker", "model", "recipe", "items", "histories", "data card")
            for name, card in cards.items():
                table.add_row(
                    name,
                    card.model_id,
                    card.recipe,
                    f"{card.items:,}",
                    f"{card.users:,}",
                    card.data_card_id,
                )
            screen.print(table)
            paths = [f"{name}/rank" for name in cards]
            if settings.models.llm is not None:
                paths += ["explain/user", "answer"]
            for path in paths:
                screen.print(f"POST {url}/v1/{path}", highlight=False, soft_wrap=True)
            screen.print(f"also {url}/healthz and {url}/v1/models; stop with Ctrl-C")
        # Set only now: Ray puts its own handlers in place when it starts.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()
        screen.print("finishing open requests …")
