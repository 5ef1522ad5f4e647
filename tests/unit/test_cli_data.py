"""`raysys data`: exit codes, machine output, and options that reach the library."""

import errno
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys.cli.data import app
from raysys.cli.main import run
from raysys.data.dataset import Dataset
from raysys.errors import ConfigError, DataError

RUN = CliRunner()
BING = "\n".join(f"u{n % 5}\tstory {n}\t{n % 3 % 2}\t{n}:Name" for n in range(100))


@pytest.fixture
def bing(tmp_path: Path) -> Path:
    (tmp_path / "raw_train.txt").write_text(BING + "\n")
    return tmp_path / "raw_train.txt"


def test_import_check_and_show_speak_json(bing: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    made = RUN.invoke(
        app,
        ["import", "bing-news", "--src", str(bing), "--out", out, "--folds", "4", "--fold", "1",
         "slate=3", "--json"],
    )  # fmt: skip
    assert made.exit_code == 0
    card = json.loads(made.stdout)["data_card"]
    assert "fold 1 of 4" in card["split_rule"]
    assert card["notes"]["slate"] == 3
    checked = RUN.invoke(app, ["check", out, "--json"])
    assert checked.exit_code == 0
    assert json.loads(checked.stdout)["ok"] is True
    shown = RUN.invoke(app, ["show", out, "--json"])
    assert json.loads(shown.stdout)["data_card_id"] == Dataset(out).manifest.data_card_id
    assert "card" in RUN.invoke(app, ["show", out]).stdout


def test_check_exits_with_one_on_a_fault(bing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    RUN.invoke(app, ["import", "bing-news", "--src", str(bing), "--out", str(out)])
    part = out / "events" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-8])
    checked = RUN.invoke(app, ["check", str(out)])
    assert checked.exit_code == 1
    assert "faults 1" in checked.stdout


def test_errors_reach_the_command_line_as_they_are(bing: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for arguments, kind in (
        (["import", "bing-news", "--src", str(tmp_path / "no"), "--out", out], DataError),
        (["import", "bing", "--src", str(bing), "--out", out], ConfigError),
        (["import", "mind", "--src", str(tmp_path), "--out", out, "--folds", "5"], ConfigError),
        (["make", "world", "--out", out, "--users", "20", "userz=3"], ConfigError),
    ):
        assert isinstance(RUN.invoke(app, arguments).exception, kind)
    assert not Path(out).exists()


def test_make_world_takes_effects_and_overrides(tmp_path: Path) -> None:
    out = tmp_path / "w"
    made = RUN.invoke(
        app,
        ["make", "world", "--users", "20", "--days", "8", "--seed", "3", "--out", str(out),
         "--effects.context", "0", "--kind", "news", "food.kappa=0.4", "--json"],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    config = Dataset(out).manifest.world["config"]
    assert (config["users"], config["seed"], config["kind"]) == (20, 3, "news")
    assert config["effects"]["context"] is False
    assert config["effects"]["words"] is True
    assert config["food"]["kappa"] == 0.4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("raysys.cli.main.make_app", lambda asked: full)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no space left on the disk; free some and run again\n"
