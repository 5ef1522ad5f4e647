"""The command line as a whole: its verbs, what they import, how errors are shown."""

import subprocess
import sys
from pathlib import Path

import pytest

from raysys.cli.demo import demo
from raysys.cli.main import VERBS, run
from raysys.data.mapping import LocalMapper
from raysys.data.world import WorldConfig, make_world
from raysys.errors import ConfigError


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of `raysys ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["raysys", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    return int(ended.value.code or 0)


def test_help_lists_every_verb_and_imports_none() -> None:
    code = "import sys\nfrom raysys.cli.main import run\ntry: run()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for verb in VERBS:
        assert f"│ {verb} " in shown
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(verb, "--help", monkeypatch=monkeypatch) == 0
    assert "Usage:" in capsys.readouterr().out


def test_an_error_shows_its_input_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("data[v1]", "[/deleted]"):
        assert call("data", "show", str(tmp_path / name), monkeypatch=monkeypatch) == 2
        error = capsys.readouterr().err
        assert f"error: {tmp_path / name} is no data set folder" in error


def test_a_verb_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("trian", monkeypatch=monkeypatch) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err


def test_the_demo_refuses_a_world_of_other_options(tmp_path: Path) -> None:
    config = WorldConfig(kind="food", users=60, days=20, seed=7)
    make_world(config, tmp_path / "world-food", LocalMapper())
    with pytest.raises(ConfigError, match="a world of other options"):
        demo(out=tmp_path, users=61, days=20, workers=1, seed=7, requests=1)
