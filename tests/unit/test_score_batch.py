"""Batch scoring: equal to the Predictor, resumable, and strict about its input."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from baselines_fixtures import HOUR, START, Log, random_log, untrained_run, write
from serve_fixtures import ctr_run
from typer.testing import CliRunner

from raysys.artifacts.predictor import Predictor
from raysys.cli.score import score as command
from raysys.data.dataset import Dataset
from raysys.data.mapping import LocalMapper, Mapper
from raysys.data.requests import Request, Requests
from raysys.errors import ArtifactError, ConfigError, DataError
from raysys.recipes.score import ScoreReport, score


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log]:
    root = tmp_path_factory.mktemp("score")
    log_ = random_log(31)
    untrained_run(write(log_, root), root / "run")
    return root, log_


def _requests(log_: Log) -> list[Request]:
    """Every third request brings its own history."""
    requests = []
    for number, shown in enumerate(log_.impressions):
        history = None
        if number % 3 == 0:
            history = [dict(item_id=f"i{k:02d}", ts=START + k * HOUR) for k in range(number % 5)]
        requests.append(
            Request(
                request_id=shown["impression_id"],
                user_id=shown["user_id"],
                ts=shown["ts"],
                candidates=shown["candidates"],
                history=history,
            )
        )
    return requests


def _jsonl(path: Path, requests: list[Request]) -> Path:
    path.write_text("".join(r.model_dump_json() + "\n" for r in requests))
    return path


def _scores(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted(out.glob("part-*.parquet"))])


def _same(a: pa.Table, b: pa.Table) -> bool:
    ids = ["request_id", "item_id"]
    close = abs(a["score"].to_numpy() - b["score"].to_numpy()).max() < 1e-5
    return bool(close) and a.select(ids).equals(b.select(ids))


def test_lines_give_what_the_predictor_gives(made: tuple, tmp_path: Path) -> None:
    root, log_ = made
    requests = _requests(log_)
    file = _jsonl(tmp_path / "r.jsonl", requests)
    file.write_text("\n" + file.read_text().replace("\n", "\n\n", 3))
    report = score(root / "run", file, tmp_path / "out", LocalMapper(), per_part=7)
    assert _same(_scores(tmp_path / "out"), Predictor.load(root / "run").score(requests))
    assert (report.requests, report.parts, report.kept) == (60, 9, 0)
    assert report.rows == sum(len(r.candidates) for r in requests)


def test_parquet_of_impressions_gives_the_same(made: tuple, tmp_path: Path) -> None:
    root, _ = made
    table = Dataset(root / "data").table("impressions")
    pq.write_table(table, tmp_path / "r.parquet", row_group_size=11)
    score(root / "run", tmp_path / "r.parquet", tmp_path / "out", LocalMapper(), per_part=7)
    predictor = Predictor.load(root / "run")
    expected = predictor.score(Requests.of_table(table, predictor.codec))
    assert _same(_scores(tmp_path / "out"), expected)


def test_parquet_requests_keep_what_they_forget(made: tuple, tmp_path: Path) -> None:
    root, _ = made
    table = Dataset(root / "data").table("impressions")
    late = [2**55 if n % 2 else None for n in range(len(table))]
    hidden = [["Q1"] if n % 3 else None for n in range(len(table))]
    told = table.append_column("since", pa.array(late, pa.int64()))
    told = told.append_column("hidden", pa.array(hidden, pa.list_(pa.string())))
    pq.write_table(told, tmp_path / "r.parquet")
    score(root / "run", tmp_path / "r.parquet", tmp_path / "out", LocalMapper(), per_part=7)
    predictor = Predictor.load(root / "run")
    columns = Requests.of_table(told, predictor.codec)
    assert columns.hidden == {n: ("Q1",) for n in range(len(table)) if n % 3}
    strangers = ["nobody"] * len(table)
    cold = predictor.score(
        Requests.of_table(
            table.set_column(table.column_names.index("user_id"), "user_id", [strangers]),
            predictor.codec,
        )
    )
    whole = predictor.score(Requests.of_table(table, predictor.codec))
    found = _scores(tmp_path / "out")
    owner = np.repeat(np.arange(len(table)), columns.counts)
    odd = owner % 2 == 1
    for part, wanted in ((odd, cold), (~odd, whole)):
        np.testing.assert_allclose(
            found["score"].to_numpy()[part], wanted["score"].to_numpy()[part], atol=1e-6
        )


def test_complete_parts_are_kept_and_missing_ones_made(made: tuple, tmp_path: Path) -> None:
    root, log_ = made
    file, out = _jsonl(tmp_path / "r.jsonl", _requests(log_)), tmp_path / "out"
    score(root / "run", file, out, LocalMapper(), per_part=20)
    first = {p.name: p.read_bytes() for p in out.glob("part-*")}
    (out / "part-00001.parquet").unlink()
    kept = (out / "part-00000.parquet").stat().st_mtime_ns
    report = score(root / "run", file, out, LocalMapper(), per_part=20)
    assert (report.parts, report.kept) == (3, 2)
    assert (out / "part-00000.parquet").stat().st_mtime_ns == kept
    assert {p.name: p.read_bytes() for p in out.glob("part-*")} == first


def test_parts_of_another_run_or_size_are_not_mixed(made: tuple, tmp_path: Path) -> None:
    root, log_ = made
    file, out = _jsonl(tmp_path / "r.jsonl", _requests(log_)), tmp_path / "out"
    score(root / "run", file, out, LocalMapper(), per_part=30)
    with pytest.raises(ConfigError, match="another part size"):
        score(root / "run", file, out, LocalMapper(), per_part=20)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no scores"):
        score(root / "run", file, tmp_path / "notes", LocalMapper())


GOOD = '{"request_id": "a", "user_id": "u", "candidates": ["i01"]}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"request_id": "b", "user_id": "u"}', "line 3: candidates: Field required"),
        ('{"request_id": "b", "user_id": "u", "candidates": []}', "line 3: candidates: "),
        ('{"request_id": "b"', "line 3: Invalid JSON"),
        (GOOD.replace("}", ', "mealtime": "noon"}'), "line 3: mealtime: Extra inputs"),
        (GOOD.replace("}", ', "ts": 100000000000000000000}'), "line 3: ts: "),
        (GOOD.replace("}", f', "ts": {START // 1000}}}'), "line 3: ts: .*µs since 1970, UTC"),
        (GOOD.replace('"i01"', '"i01", "i01"'), r"line 3: candidates\.1: 'i01' is there twice"),
        (
            GOOD.replace("}", ', "history": [{"item_id": "a", "behaviour": "clik"}]}'),
            r"line 3: history\.0\.behaviour: unknown behaviour 'clik'; known are",
        ),
        (
            GOOD.replace("}", ', "history": [{"item_id": "a", "ts": 2}, {"item_id": "a"}]}'),
            r"line 3: history\.1: events must be oldest first",
        ),
    ],
)
def test_a_bad_line_is_named_and_nothing_written(
    made: tuple, tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(f"{GOOD}\n{GOOD}\n{line}\n")
    with pytest.raises(DataError, match=message):
        score(made[0] / "run", file, tmp_path / "out", LocalMapper())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(user_id=["u", None]), "row 1: user_id is missing or empty"),
        (dict(candidates=[["i01"], []]), "row 1: candidates is missing or empty"),
        (dict(candidates=[[None], ["i01"]]), "row 0: candidates is missing or empty"),
        (dict(ts=["now", "then"]), "column ts is string, it must be int64"),
        (dict(candidates=["i01", "i02"]), "column candidates is string"),
        (dict(history_end=[0, -1]), "row 1: history_end is less than 0"),
        (
            dict(ts=[START, START // 1000]),
            "row 1: ts: .* is 1970-.*, before the data of this model",
        ),
        (dict(candidates=[["i01"], ["i02", "i03", "i02"]]), "row 1: a candidate is there twice"),
        (dict(context=["lunch", "dinner"]), "column context is string, it must be a struct"),
    ],
)
def test_a_bad_parquet_row_is_named(
    made: tuple, tmp_path: Path, change: dict, message: str
) -> None:
    columns = dict(request_id=["a", "b"], user_id=["u", "u"], candidates=[["i01"], ["i02"]])
    pq.write_table(pa.table(columns | change), tmp_path / "r.parquet")
    with pytest.raises(DataError, match=message):
        score(made[0] / "run", tmp_path / "r.parquet", tmp_path / "out", LocalMapper())
    assert not (tmp_path / "out").exists()


def test_context_values_must_suit_the_model(tmp_path: Path) -> None:
    run = ctr_run(tmp_path)
    file = tmp_path / "r.jsonl"
    for wrong, message in (
        ({"context": {"meal": 3}}, r"context\.meal: a categorical feature takes text, not 3\.0"),
        ({"history": [{"item_id": "a", "context": {"degrees": "hot"}}]},
         r"history\.0\.context\.degrees: a numeric feature takes a number, not 'hot'"),
    ):  # fmt: skip
        file.write_text(f"{GOOD}\n{json.dumps(json.loads(GOOD) | wrong)}\n")
        with pytest.raises(DataError, match=f"line 2: {message}"):
            score(run, file, tmp_path / "out", LocalMapper())
    columns = dict(request_id=["a"], user_id=["u"], candidates=[["i01"]], context=[{"meal": 3}])
    pq.write_table(pa.table(columns), tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"column context\.meal is int64, it must be string"):
        score(run, tmp_path / "r.parquet", tmp_path / "out", LocalMapper())
    assert not (tmp_path / "out").exists()


def test_an_error_before_the_first_part_leaves_what_was_there(made: tuple, tmp_path: Path) -> None:
    root, log_ = made
    file, out = _jsonl(tmp_path / "r.jsonl", _requests(log_)), tmp_path / "out"

    def failing(after: int) -> Mapper:
        def mapper(fn: Any, tasks: Any, *, label: str) -> Iterator[Any]:
            yield from map(fn, tasks[:after])
            raise ArtifactError("non-finite score")

        return mapper

    def tried(after: int) -> list[str] | None:
        with pytest.raises(ArtifactError, match="non-finite"):
            score(root / "run", file, out, failing(after), per_part=20)
        return sorted(path.name for path in out.iterdir()) if out.exists() else None

    assert tried(0) is None
    out.mkdir()
    assert tried(0) == []
    assert tried(1) == ["_plan.json", "part-00000.parquet"]
    (out / "part-00000.parquet").unlink()
    assert tried(0) == ["_plan.json"]  # begun by another launch


def test_other_files_and_damaged_runs_are_refused(made: tuple, tmp_path: Path) -> None:
    root, log_ = made
    csv = tmp_path / "r.csv"
    csv.write_text("a,b\n")
    with pytest.raises(DataError, match=r"\.jsonl and \.parquet"):
        score(root / "run", csv, tmp_path / "out", LocalMapper())
    empty = tmp_path / "e.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match="holds no request"):
        score(root / "run", empty, tmp_path / "out", LocalMapper())
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="unreadable Parquet"):
        score(root / "run", tmp_path / "t.parquet", tmp_path / "out", LocalMapper())
    run = untrained_run(write(log_, tmp_path / "d"), tmp_path / "run")
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)
    file = _jsonl(tmp_path / "r.jsonl", _requests(log_))
    with pytest.raises(ArtifactError, match=r"model\.safetensors: damaged"):
        score(run, file, tmp_path / "out", LocalMapper())
    assert not (tmp_path / "out").exists()


def test_the_command_reports_json(made: tuple, tmp_path: Path) -> None:
    root, log_ = made
    file = _jsonl(tmp_path / "r.jsonl", _requests(log_))
    app = typer.Typer()
    app.command()(command)
    arguments = [str(root / "run"), "--requests", str(file), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, [*arguments, "--json"])
    report = ScoreReport.model_validate(json.loads(shown.stdout))
    assert report.requests == 60
    assert "60 requests" in CliRunner().invoke(app, arguments).stdout


@pytest.mark.slow
def test_two_ray_workers_give_the_same(made: tuple, tmp_path: Path) -> None:
    from raysys.dist import RayMapper

    root, log_ = made
    file = _jsonl(tmp_path / "r.jsonl", _requests(log_))
    score(root / "run", file, tmp_path / "one", LocalMapper(), per_part=20)
    score(root / "run", file, tmp_path / "two", RayMapper(2), per_part=20)
    assert _same(_scores(tmp_path / "one"), _scores(tmp_path / "two"))
