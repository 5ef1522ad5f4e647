"""The tutorial on own logs works as it is printed."""

import re
from pathlib import Path

import yaml
from typer.testing import CliRunner

from raysys.cli.data import app
from raysys.data.dataset import Dataset
from raysys.data.loaders.mapping import Mapping

PAGE = Path(__file__).parents[2] / "docs" / "tutorial-own-logs.md"


def test_the_tutorial_runs_as_printed(tmp_path: Path, monkeypatch) -> None:
    text = PAGE.read_text(encoding="utf-8")
    files = re.findall(r"Save as `([^`]+)`:\n\n```\w+\n(.*?)```", text, flags=re.S)
    assert [name for name, _ in files] == [
        "shop/events.csv", "shop/dishes.csv", "shop/mapping.yaml"
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, content in files:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
    commands = re.findall(r"^raysys data (.*shop-data.*)$", text, flags=re.M)
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, (command, result.output, result.exception)
    splits = Dataset("shop-data").table("impressions", ["split"])["split"].to_pylist()
    assert set(splits) == {"train", "valid", "test"}


def test_the_other_shapes_are_valid_mappings() -> None:
    blocks = re.findall(r"```yaml\n(impressions:.*?)```", PAGE.read_text("utf-8"), flags=re.S)
    assert len(blocks) == 2
    for block in blocks:
        Mapping.model_validate({"dataset": "x", **yaml.safe_load(block)})
