"""Every kind of bad input at the command line: one clear error, exit 2, no output folder."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from baselines_fixtures import Log, random_log, untrained_run, write
from safetensors.numpy import load_file, save_file

from raysys.cli.main import run
from raysys.data.files import sha256_file
from raysys.data.prepared import Prepared

EVENTS = ["who,what,at,did,weather"] + [
    f"u{n % 5},i{n % 7},2024-05-{1 + n // 5:02d} 10:{n % 5:02d}:00,{'buy' if n % 2 else 'see'},sun"
    for n in range(100)
]
MAPPING = {
    "dataset": "shop",
    "events": {
        "files": "events.csv",
        "user": "who",
        "item": "what",
        "time": {"column": "at", "form": "%Y-%m-%d %H:%M:%S"},
        "behaviour": {"column": "did", "values": {"see": "view", "buy": "order"}},
    },
    "contexts": {"weather": {"column": "weather"}},
    "impressions": {"kind": "derived", "positive": "order", "negatives": {"count": 2}},
    "history": ["view", "order"],
}


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Runs a verb that must fail with one line of error and without an output folder."""
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["raysys", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run()
        shown = capsys.readouterr()
        assert ended.value.code == 2
        assert shown.out == ""
        error = shown.err[shown.err.rindex("error: ") :].strip()
        assert "\n" not in error
        assert not (tmp_path / "out").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        return error

    return call


def log_files(folder: Path, lines: list[str] = EVENTS) -> tuple[object, ...]:
    """The import command for a CSV log in `folder`."""
    folder.mkdir()
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "mapping.yaml").write_text(yaml.safe_dump(MAPPING))
    mapping = ("--mapping", folder / "mapping.yaml")
    return ("data", "import", "mapped", "--src", folder, *mapping, "--out", folder.parent / "out")


def test_a_good_log_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["raysys", *map(str, log_files(tmp_path / "src"))])
    with pytest.raises(SystemExit) as ended:
        run()
    assert not ended.value.code
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_row_with_too_few_columns(refused: Callable[..., str], tmp_path: Path) -> None:
    lines = [*EVENTS[:40], "u1,i1,2024-05-08 10:00:00", *EVENTS[40:]]
    error = refused(*log_files(tmp_path / "src", lines))
    assert "events.csv" in error
    assert "line 41" in error


def test_a_truncated_parquet_file(refused: Callable[..., str], tmp_path: Path) -> None:
    command = log_files(tmp_path / "src")
    import pandas as pd

    pd.read_csv(tmp_path / "src" / "events.csv").to_parquet(tmp_path / "src" / "events.parquet")
    whole = (tmp_path / "src" / "events.parquet").read_bytes()
    (tmp_path / "src" / "events.parquet").write_bytes(whole[: len(whole) // 2])
    changed = MAPPING | {"events": MAPPING["events"] | {"files": "events.parquet"}}
    (tmp_path / "src" / "mapping.yaml").write_text(yaml.safe_dump(changed))
    assert "events.parquet" in refused(*command)


def test_an_unknown_context_column(refused: Callable[..., str], tmp_path: Path) -> None:
    command = log_files(tmp_path / "src")
    changed = MAPPING | {"contexts": {"weather": {"column": "wether"}}}
    (tmp_path / "src" / "mapping.yaml").write_text(yaml.safe_dump(changed))
    error = refused(*command)
    assert "wether" in error
    assert "weather" in error


def test_events_in_the_future(refused: Callable[..., str], tmp_path: Path) -> None:
    lines = [*EVENTS, "u1,i1,2199-05-08 10:00:00,buy,sun"]
    error = refused(*log_files(tmp_path / "src", lines))
    assert "future" in error
    assert "events.csv" in error


def train(folder: Path, *options: str) -> tuple[object, ...]:
    """The training command for a data set."""
    return ("train", "ctr/din", "--data", folder, "--out", folder.parent / "out", *options)


def bad_folder(folder: Path, change: Callable[[Log], None]) -> tuple[object, ...]:
    """The training command for a log that `change` has spoilt."""
    log = random_log(3, users=8, impressions=60)
    change(log)
    # `write` opens what it wrote, which is what training refuses: the data set is there by then.
    try:
        write(log, folder)
    except Exception:
        assert (folder / "data" / "manifest.json").is_file()
    shutil.move(folder / "data", folder.parent / "data")
    return train(folder.parent / "data")


def test_unsorted_events(refused: Callable[..., str], tmp_path: Path) -> None:
    def change(log: Log) -> None:
        log.events.reverse()

    assert "sort" in refused(*bad_folder(tmp_path / "made", change))


def test_a_click_that_is_not_among_the_candidates(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    def change(log: Log) -> None:
        log.impressions[7]["clicks"] = ["stranger"]

    error = refused(*bad_folder(tmp_path / "made", change))
    assert "click" in error
    assert "candidates" in error


def test_duplicate_impression_ids(refused: Callable[..., str], tmp_path: Path) -> None:
    def change(log: Log) -> None:
        log.impressions[7]["impression_id"] = log.impressions[5]["impression_id"]

    error = refused(*bad_folder(tmp_path / "made", change))
    assert "twice" in error or "duplicate" in error


def test_constant_labels(refused: Callable[..., str], tmp_path: Path) -> None:
    def change(log: Log) -> None:
        for impression in log.impressions:
            impression["clicks"] = []

    assert "constant labels" in refused(*bad_folder(tmp_path / "made", change))


def sound(folder: Path) -> Prepared:
    """A data set in folder/data."""
    folder.mkdir(exist_ok=True)
    return write(random_log(3, users=8, impressions=60), folder)


def test_an_unknown_recipe_key(refused: Callable[..., str], tmp_path: Path) -> None:
    sound(tmp_path)
    error = refused(*train(tmp_path / "data", "model.embeding_dim=4"))
    assert "model.embeding_dim" in error
    assert "did you mean model.embedding_dim" in error


def test_another_schema_version(refused: Callable[..., str], tmp_path: Path) -> None:
    sound(tmp_path)
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    assert "schema version 99" in refused(*train(tmp_path / "data"))


def test_a_run_with_a_flipped_byte(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = untrained_run(sound(tmp_path), tmp_path / "run")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    asked = request_file(tmp_path)
    for command in (
        ("evaluate", folder, "--data", tmp_path / "data"),
        ("score", folder, "--requests", asked, "--out", tmp_path / "out"),
        ("export", folder, "--out", tmp_path / "out.pt2"),
    ):
        error = refused(*command)
        assert "model.safetensors" in error
        assert not (folder / "metrics.json").exists()


def request_file(folder: Path) -> Path:
    """A file with one good request."""
    file = folder / "requests.jsonl"
    rows = pq.read_table(folder / "data" / "impressions").slice(0, 1).to_pylist()
    asked = {"request_id": "r1", "user_id": rows[0]["user_id"], "candidates": rows[0]["candidates"]}
    file.write_text(json.dumps(asked) + "\n")
    return file


def test_a_score_that_is_not_finite(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = untrained_run(sound(tmp_path), tmp_path / "run")
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({name: np.full_like(value, np.nan) for name, value in weights.items()}, path)
    sums = json.loads((folder / "checksums.json").read_text())
    text = json.dumps(sums).replace(sums_of(sums, "model.safetensors"), sha256_file(path))
    (folder / "checksums.json").write_text(text)
    asked = request_file(tmp_path)
    for command in (
        ("evaluate", folder, "--data", tmp_path / "data"),
        ("score", folder, "--requests", asked, "--out", tmp_path / "out"),
    ):
        assert "finite" in refused(*command) or "nan" in refused(*command)
        assert not (folder / "metrics.json").exists()
        assert not (folder / "scores").exists()


def sums_of(sums: dict, name: str) -> str:
    """The checksum of a file in a run's list."""
    found = sums.get("files", sums)[name]
    return found if isinstance(found, str) else found["sha256"]


def test_no_space_left(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every table goes to a device that is always full."""
    command = log_files(tmp_path / "src")
    written = pq.write_table

    def full(table: object, where: object, **options: object) -> None:
        with Path("/dev/full").open("wb") as device:
            written(table, device, **options)

    monkeypatch.setattr(pq, "write_table", full)
    assert "no space left" in refused(*command)
