"""An exported program: the run's scores without raysys, from what lies beside it."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serve_fixtures
import torch
from typer.testing import CliRunner

from raysys.artifacts import export
from raysys.artifacts.export import check_export, export_run
from raysys.artifacts.predictor import SCORES, Predictor
from raysys.ctr.retrievers.config import (
    ETA,
    SDIM,
    TWIN,
    Exact,
    RetrieverConfig,
    SIMHard,
    SIMSoft,
)
from raysys.data.batch import Batch
from raysys.errors import ArtifactError, StorageFullError

# Each program is traced and compiled.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Path]:
    return {"ctr": serve_fixtures.ctr_run(root), "news": serve_fixtures.news_run(root)}


@pytest.fixture(scope="module")
def exported(root: Path, runs: dict[str, Path]) -> dict[str, Path]:
    files = {kind: root / f"{kind}.pt2" for kind in runs}
    for kind, file in files.items():
        exported = export_run(runs[kind], file)
        assert exported.max_difference <= 1e-6
        assert exported.events == "newest"
    return files


def test_inputs_are_the_batch_without_masks_labels_owners_and_edits() -> None:
    derived = {"history_mask", "candidate_mask", "clicks", "orders", "owner"}
    derived |= {"hidden"}  # what a reader has hidden is edited where the model is served
    derived |= {"dated"}  # runs that read dated features are refused
    assert {*export.INPUTS} == {field.name for field in fields(Batch)} - derived


@pytest.mark.parametrize("kind", ["ctr", "news"])
def test_a_user_with_the_three_files_gets_the_predictors_scores(
    kind: str, runs: dict[str, Path], exported: dict[str, Path]
) -> None:
    """By the code of the document: torch, Arrow and JSON only, one request at a time."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M)
    assert "raysys" not in code
    there: dict[str, Any] = {}
    exec(code, there)
    score = there["open_ranker"](str(exported[kind]))
    predictor = Predictor.load(runs[kind])
    asked = [r for r in serve_fixtures.requests(40) if r.history is not None]
    cold = asked[0].model_copy(update={"history": ()})
    for request in [*asked, cold]:
        events = [event.model_dump() for event in request.history]
        got = score(request.ts, request.context, events, request.candidates)
        expected = predictor.score([request])
        assert list(got) == [n for n in SCORES.names[2:] if not expected[n].null_count]
        for name, values in got.items():
            np.testing.assert_allclose(values.numpy(), expected[name].to_numpy(), atol=1e-6)


def test_only_the_frozen_table_of_the_items_is_inside(exported: dict[str, Path]) -> None:
    program = torch.export.load(exported["news"])
    held = {*program.state_dict, *program.constants}
    assert "ranker.items.table" in held
    assert not [name for name in held if "items" in name and name != "ranker.items.table"]


ARMS = [SIMHard(k=4, category="brand"), SIMSoft(k=4), ETA(k=4), SDIM(), TWIN(k=4), Exact(k=4)]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.kind)
def test_every_retriever_is_exported(root: Path, arm: RetrieverConfig) -> None:
    """With windows shorter and longer than the list each candidate attends to."""
    run = serve_fixtures.ctr_run(root, retriever=arm)
    exported = export_run(run, root / f"{arm.kind}.pt2")
    assert exported.max_difference <= 1e-6
    # Whoever calls the program has to know that its events are not the newest.
    assert exported.events == ("chosen" if arm.kind == "exact" else "newest")


def test_check_finds_files_that_are_not_the_run(
    tmp_path: Path, runs: dict[str, Path], exported: dict[str, Path]
) -> None:
    names = [exported["ctr"].with_suffix(end).name for end in (".pt2", ".json", ".arrow")]

    def copied() -> Path:
        for name in names:
            (tmp_path / name).write_bytes((exported["ctr"].parent / name).read_bytes())
        return tmp_path / names[0]

    assert check_export(runs["ctr"], copied()).max_difference <= 1e-6
    for name in names:
        file = copied()
        (tmp_path / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name}: missing; export the run"):
            check_export(runs["ctr"], file)
    for name in (names[0], names[2]):
        file = copied()
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
        with pytest.raises(ArtifactError, match=f"{name}: its sha256 is not the one in"):
            check_export(runs["ctr"], file)
    file = copied()
    with pytest.raises(ArtifactError, match=r"ctr.pt2 is model \w{12}, .*news is \w{12}"):
        check_export(runs["news"], file)
    file.with_suffix(".json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"ctr.json: damaged"):
        check_export(runs["ctr"], file)


def test_nothing_is_written_where_scores_differ_or_the_disk_is_full(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ranker.pt2"
    with pytest.raises(ArtifactError, match=r"ranker: the name .* ends in .pt2"):
        export_run(runs["ctr"], tmp_path / "ranker")
    with monkeypatch.context() as patch:
        patch.setattr(export, "TOLERANCE", -1.0)
        with pytest.raises(ArtifactError, match=r"ranker.pt2: score differs from the run by"):
            export_run(runs["ctr"], out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "fsync_tree", full)
        with pytest.raises(StorageFullError, match="no space left"):
            export_run(runs["ctr"], out)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path, runs: dict[str, Path]) -> None:
    import typer

    from raysys.cli.export import export as command

    app = typer.Typer()
    app.command()(command)
    out = tmp_path / "ranker.pt2"
    for more in ([], ["--check"]):
        line = CliRunner().invoke(app, [str(runs["news"]), "--out", str(out), *more])
        assert line.exit_code == 0
        assert "differs from the run by at most" in line.stdout
    answer = CliRunner().invoke(app, [str(runs["news"]), "--out", str(out), "--check", "--json"])
    assert json.loads(answer.stdout)["inputs"]["candidates"]["shape"] == ["B", "C"]
