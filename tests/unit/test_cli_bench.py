"""`raysys bench`: options in both spellings, and clear refusals."""

import json
import sys
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from raysys.cli.bench import BENCHES
from raysys.cli.main import make_app
from raysys.errors import ConfigError


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(data: str, seeds: int = 5, max_core_hours: float = 4.0) -> dict[str, Any]:
        print("(raylet) what Ray tells while it works")
        return {"data": data, "seeds": seeds, "hours": max_core_hours}

    toy = ModuleType("toy_bench")
    toy.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_bench", toy)
    monkeypatch.setitem(BENCHES, "toy", "toy_bench")


def invoked(*words: str) -> Result:
    return CliRunner().invoke(make_app("bench"), ["bench", *words])


@pytest.mark.parametrize(
    "words",
    [
        ("data=W", "seeds=3", "max_core_hours=0.5", "--json"),
        ("--data", "W", "--seeds", "3", "--max-core-hours", "0.5", "--json"),
        ("--json", "--data=W", "seeds=3", "--max_core_hours=0.5"),
    ],
)
def test_both_spellings_of_options(words: tuple[str, ...]) -> None:
    found = invoked("toy", *words)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == {"data": "W", "seeds": 3, "hours": 0.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("toy", "data=W", "--seed", "3"), "unknown option seed; valid: data, seeds"),
        (("toy", "--data"), "--data: a value is missing"),
        (("toi", "data=W"), "did you mean toy"),
        (("toy", "seeds=3"), "data is missing"),
    ],
)
def test_clear_refusals(words: tuple[str, ...], message: str) -> None:
    found = invoked(*words)
    assert isinstance(found.exception, ConfigError)
    assert message in str(found.exception)
