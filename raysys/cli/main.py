"""The `raysys` command: registers the verbs, turns our errors into one line and an exit code."""

import errno
import logging
import sys

import typer
from rich.console import Console
from rich.logging import RichHandler

from raysys.cli import data
from raysys.cli.bench import bench
from raysys.cli.compare import compare
from raysys.cli.demo import demo
from raysys.cli.doctor import doctor
from raysys.cli.embed import embed
from raysys.cli.evaluate import evaluate
from raysys.cli.export import export
from raysys.cli.report import report
from raysys.cli.score import score
from raysys.cli.serve import serve
from raysys.cli.submit import submit
from raysys.cli.train import train
from raysys.errors import RaysysError

app = typer.Typer(
    name="raysys",
    help="LLM-aided recommenders on Ray: from behaviour logs to a served, explained ranking.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data", help="Make, import, check and show data sets.")
for verb in (
    train, evaluate, compare, score, export, report, embed, serve, submit, bench, doctor, demo
):  # fmt: skip
    app.command()(verb)


def run() -> None:
    """Entry point of the command."""
    console = Console(stderr=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False, show_time=False)],
    )
    try:
        app()
    except RaysysError as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        console.print("[bold red]error:[/] no space left on the disk; free some and run again")
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    run()
