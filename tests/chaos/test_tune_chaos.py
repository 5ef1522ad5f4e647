"""Drivers and trials of a sweep die: the same trials end with the same results."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from training_toy import toy_environment
from tune_toy import tiny_world

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

# Runs a sweep as the command would, with a space of the tests' own.
SCRIPT = """
import sys
from pathlib import Path
from tune_toy import cofars_options, options
from raysys.dist import ensure_ray
from raysys.errors import RaysysError
from tune_spaces.runner.sweep import tune
if __name__ == "__main__":
    ensure_ray(num_cpus=2)
    world, out, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"
    toy = {"toy": lambda: options(world, samples=5, **{"train.epochs": 8}),
           "cofars": lambda: cofars_options(world)}
    given = toy[sys.argv[4]]()
    try:
        tune(given, out, resume=resume, again="THE COMMAND --resume")
    except RaysysError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        toy_environment(patch)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("tune") / "world")


def start(world: Path, out: Path, how: str = "begin", which: str = "toy") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(world), str(out), how, which],
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def finish(driver: subprocess.Popen[str]) -> None:
    _, err = driver.communicate()
    assert driver.returncode == 0, err


def rows(out: Path) -> list[dict[str, Any]]:
    """The results without the clock's."""
    table = pq.read_table(out / "results.parquet").drop_columns("seconds")
    return table.to_pylist()


def weights(out: Path) -> dict[str, bytes]:
    found = sorted((out / "trials").glob("*/model.safetensors"))
    return {path.parent.name: path.read_bytes() for path in found}


def wait_for(driver: subprocess.Popen[str], out: Path, text: str) -> None:
    ledger = out / "ledger.jsonl"
    while not (ledger.exists() and text in ledger.read_text()):
        assert driver.poll() is None, driver.stderr and driver.stderr.read()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def calm(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody hurt."""
    out = tmp_path_factory.mktemp("calm") / "sweep"
    finish(start(world, out))
    assert {row["status"] for row in rows(out)} == {"completed", "stopped"}
    return out


def check_equal(out: Path, calm: Path) -> None:
    assert rows(out) == rows(calm)
    assert weights(out) == weights(calm)


def test_a_killed_driver_and_resume(world: Path, calm: Path, tmp_path: Path) -> None:
    """Killed in the first trial, and again, resumed, in a later one."""
    out = tmp_path / "sweep"
    driver = start(world, out)
    wait_for(driver, out, '"epoch": 3')
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    first = (out / "ledger.jsonl").read_bytes()
    assert not (out / "results.parquet").exists()

    driver = start(world, out, "resume")
    wait_for(driver, out, '"trial": "p002", "epoch": 1')
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    done = {p: p.stat().st_mtime_ns for p in (out / "trials").glob("*/model.safetensors")}
    assert done

    finish(start(world, out, "resume"))
    check_equal(out, calm)
    # What was decided stays decided, and what had ended was not trained again.
    assert (out / "ledger.jsonl").read_bytes().startswith(first[: first.rfind(b"\n") + 1])
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_a_stopped_driver_says_how_to_go_on(world: Path, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    driver = start(world, out)
    wait_for(driver, out, '"trial": "p001", "epoch": 1')
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate()
    assert driver.returncode == 130, err
    assert "of 5 trials ended; go on with: THE COMMAND --resume" in err
    assert len(rows(out)) >= 2
    finish(start(world, out, "resume"))
    check_equal(out, calm)


def test_a_killed_trial_goes_on_by_itself(world: Path, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    driver = start(world, out)
    wait_for(driver, out, '"epoch": 2')
    mine = psutil.Process(driver.pid).children(recursive=True)
    titles = ("ray::ImplicitFunc", "ray::trial")  # at work, and between two reports
    trials = [process for process in mine if "".join(process.cmdline()[:1]).startswith(titles)]
    assert len(trials) == 1, [process.cmdline() for process in mine]
    trials[0].kill()
    finish(driver)
    check_equal(out, calm)


def test_a_killed_driver_of_trials_in_several_stages(world: Path, tmp_path: Path) -> None:
    """Killed in the selector of the first trial, and again in the curve of the best one."""
    calm, out = tmp_path / "calm", tmp_path / "sweep"
    finish(start(world, calm, which="cofars"))
    wanted = [f"p{name}" for name in ("000", "001", "002-g0", "002-g1")]
    assert [row["trial"] for row in rows(calm)] == wanted

    driver = start(world, out, which="cofars")
    stage = out / "trials" / "p000" / "checkpoints" / "warm-up"
    while not list(stage.glob("step-*")):
        assert driver.poll() is None, driver.stderr and driver.stderr.read()
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    driver = start(world, out, "resume", "cofars")
    wait_for(driver, out, '"trial": "p002-g0", "epoch": 1')
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    finish(start(world, out, "resume", "cofars"))
    check_equal(out, calm)
    ledgers = [(folder / "ledger.jsonl").read_text().splitlines() for folder in (calm, out)]
    told = [[json.loads(line) for line in lines] for lines in ledgers]
    # Only the ranker's epochs, each once.
    for events in told:
        epochs = [(e["trial"], e["epoch"]) for e in events if e["kind"] == "report"]
        assert epochs == [(name, epoch) for name in wanted for epoch in (1, 2)]
    assert (out / "report" / "curve.png").is_file()
