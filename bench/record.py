"""Writes the figures of a bench into docs/results.md, between two marks of its own."""

import json
from pathlib import Path
from typing import Any

from raysys.data.files import write_text
from raysys.errors import ConfigError

RESULTS = Path("docs/results.md")


def record(
    name: str,
    command: str,
    result: dict[str, Any],
    markdown: str | None = None,
    path: Path = RESULTS,
) -> None:
    """Replace the section of bench `name`: its command, and `markdown` or one row per figure.

    Raises:
        ConfigError: not called from a checkout, or the page has no marks for this bench.
    """
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    if not path.is_file():
        raise ConfigError(f"{path} is missing; run bench --record from the root of a checkout")
    text = path.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ConfigError(f"{path}: no section {begin} … {end}; add the two marks where it belongs")
    if markdown is None:
        rows = [f"| {key} | {_cell(value)} |" for key, value in result.items()]
        markdown = "\n".join(["| figure | value |", "| --- | --- |", *rows])
    body = f"`{command}`\n\n{markdown}"
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    write_text(path, f"{head}{begin}\n{body}\n{end}{tail}")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return f"`{json.dumps(value)}`".replace("|", "\\|")
    return str(value)
