"""The `raysys` command: registers the verbs, turns our errors into one line and an exit code."""

import ast
import errno
import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from raysys.errors import RaysysError

# One module each in raysys/cli. `data` has verbs of its own.
VERBS = (
    "data", "train", "tune", "evaluate", "compare", "score", "export", "report", "embed",
    "generate", "vectors", "build", "serve", "submit", "bench", "doctor", "demo",
)  # fmt: skip


def make_app(asked: str | None) -> typer.Typer:
    """The command line, of which only the verb asked for is imported.

    All of them together import torch, Ray and the rest, which takes seconds; the others are
    known by name and docstring.
    """
    app = typer.Typer(
        name="raysys",
        help="LLM-aided recommenders on Ray: from behaviour logs to a served, explained ranking.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for verb in VERBS:
        if verb != asked:
            app.command(verb)(_described(verb))
            continue
        module = importlib.import_module(f"raysys.cli.{verb}")
        if isinstance(group := getattr(module, "app", None), typer.Typer):
            app.add_typer(group, name=verb)
        else:
            settings = getattr(module, "CONTEXT", None)
            app.command(verb, context_settings=settings)(getattr(module, verb))
    return app


def _described(verb: str) -> Callable[[], None]:
    """A stand-in with the verb's docstring (a group's: of its module), for the list of verbs."""
    tree = ast.parse(Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8"))
    found = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == verb)

    def stand_in() -> None: ...

    stand_in.__doc__ = ast.get_docstring(next(found, tree))
    return stand_in


def run() -> None:
    """Entry point of the command."""
    console = Console(stderr=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False, show_time=False)],
    )
    try:
        make_app(sys.argv[1] if len(sys.argv) > 1 else None)()
    except RaysysError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError) as error:
        where = escape(str(error.filename))
        console.print(f"[bold red]error:[/] {where}: {error.strerror}", highlight=False)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        console.print("[bold red]error:[/] no space left on the disk; free some and run again")
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    run()
