"""The run folder: what was saved is what is loaded, or nothing is."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import serve_fixtures as fixtures
import torch

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.ranker import Ranker, resolve
from raysys.artifacts.run import LoadedRun, load_run, read_config, save_run, verify_run
from raysys.ctr.din import DIN, DINConfig
from raysys.data import files
from raysys.data.files import sha256_file
from raysys.errors import ArtifactError, StorageFullError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def copied(run: Path, out: Path) -> Path:
    for file in run.rglob("*"):
        if file.is_file():
            target = out / file.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return out


def rewritten(run: Path, name: str, change: Callable[[str], str]) -> None:
    """Change a file of the run and its checksum: damage that only its reader can see."""
    file = run / name
    file.write_text(change(file.read_text()))
    sums = json.loads((run / "checksums.json").read_text())
    sums[name] = sha256_file(file)
    (run / "checksums.json").write_text(json.dumps(sums))


def saved(run: LoadedRun, model: Ranker, out: Path, options: DINConfig | None = None) -> Path:
    save_run(
        out,
        model=model,
        model_options=options or DINConfig.model_validate(run.config.model_options),
        features=run.features,
        items=run.items,
        vectors={},
        vector_specs={},
        recipe=run.config.recipe,
        recipe_options={},
        data_card=run.data_card,
        card_text="again",
        histories=run.histories,
    )
    return out


@pytest.mark.parametrize("kind", ["ctr", "news"])
def test_a_loaded_run_scores_as_the_model_that_was_saved(root: Path, kind: str) -> None:
    make = {"ctr": fixtures.ctr_run, "news": fixtures.news_run}[kind]
    run = load_run(make(root))
    torch.manual_seed(0)
    options = type(run.model).Config.model_validate(run.config.model_options)
    model = type(run.model).from_config(options, run.features)  # as the fixture made it
    requests = fixtures.requests(20)
    expected = Predictor(replace(run, model=model)).score(requests)
    assert Predictor(run).score(requests).equals(expected)
    assert Predictor.load(make(root)).score(requests).equals(expected)
    assert len(expected) == sum(len(r.candidates) for r in requests)


def test_the_model_id_names_weights_and_config(root: Path, tmp_path: Path) -> None:
    run = load_run(fixtures.ctr_run(root))
    ids = [read_config(saved(run, run.model, tmp_path / "same")).model_id]
    with torch.no_grad():
        next(run.model.parameters()).add_(1e-3)
    ids.append(read_config(saved(run, run.model, tmp_path / "weights")).model_id)
    options = DINConfig.model_validate(run.config.model_options | {"dropout": 0.5})
    ids.append(read_config(saved(run, run.model, tmp_path / "options", options)).model_id)
    assert ids[0] == run.config.model_id
    assert len(set(ids)) == 3


def test_no_flipped_byte_goes_unnoticed(root: Path, tmp_path: Path) -> None:
    run = copied(fixtures.ctr_run(root), tmp_path / "run")
    names = list(json.loads((run / "checksums.json").read_text()))
    there = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert {*names, "checksums.json"} == there
    for name in names:
        file = run / name
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArtifactError, match=rf"{name}: damaged, its sha256"):
                Predictor.load(run)
        file.write_bytes(whole[:-1])
        with pytest.raises(ArtifactError, match=rf"{name}: damaged"):
            load_run(run)
        file.unlink()
        with pytest.raises(ArtifactError, match=rf"{name}: missing"):
            load_run(run)
        file.write_bytes(whole)
    verify_run(run)


def test_unfinished_and_foreign_folders_are_refused(root: Path, tmp_path: Path) -> None:
    run = copied(fixtures.ctr_run(root), tmp_path / "run")
    (run / "checksums.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"checksums.json: not valid JSON"):
        load_run(run)
    (run / "checksums.json").unlink()
    with pytest.raises(ArtifactError, match="training has not finished here"):
        load_run(run)
    with pytest.raises(ArtifactError, match="no such run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"is no run folder: config.json is missing"):
        read_config(tmp_path)


def test_a_config_of_another_format_or_shape_is_refused(root: Path, tmp_path: Path) -> None:
    for name, change, message in (
        ("format", lambda c: c | {"format": 99}, "run format 99, this raysys reads 1"),
        (
            "more",
            lambda c: c | {"surprise": 1},
            r"config.json: surprise: Extra inputs are not permitted; damaged, or written",
        ),
        (
            "options",
            lambda c: c | {"model_options": {"depth": 5}},
            r"config.json: depth: Extra inputs",
        ),
        ("list", lambda c: [c], r"config.json: a JSON object was expected"),
        (
            "sizes",
            lambda c: c | {"model_options": c["model_options"] | {"embedding_dim": 5}},
            r"model.safetensors: does not fit config.json",
        ),
    ):
        run = copied(fixtures.ctr_run(root), tmp_path / name)
        rewritten(
            run, "config.json", lambda text, change=change: json.dumps(change(json.loads(text)))
        )
        with pytest.raises(ArtifactError, match=message):
            load_run(run)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("os:system", "only raysys.* classes"),
        ("raysystem.evil:Model", "only raysys.* classes"),
        ("raysys.ctr.din:Absent", "does not exist in this version"),
        ("raysys.absent:DIN", "does not exist in this version"),
        ("raysys.ctr.din", "does not exist in this version"),
        ("raysys.ctr.din:DINConfig", "is no ranker"),
        ("raysys.artifacts.run:os", "is no ranker"),
    ],
)
def test_only_rankers_of_ours_are_built(
    root: Path, tmp_path: Path, reference: str, message: str
) -> None:
    run = copied(fixtures.ctr_run(root), tmp_path / "run")
    ours = "raysys.ctr.din:DIN"
    assert resolve(ours) is DIN
    rewritten(run, "config.json", lambda text: text.replace(f'"{ours}"', f'"{reference}"'))
    with pytest.raises(ArtifactError, match=message):
        load_run(run)


def test_saving_again_replaces_the_whole(root: Path, tmp_path: Path) -> None:
    run = load_run(fixtures.ctr_run(root))
    out = saved(run, run.model, tmp_path / "run")
    (out / "checkpoints").mkdir()
    saved(replace(run, histories=None), run.model, out)
    again = load_run(out)
    assert again.histories is None
    assert not (out / "snapshot" / "histories").exists()
    assert (out / "checkpoints").is_dir()


def test_a_crash_while_saving_leaves_a_folder_that_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(fixtures.ctr_run(root))
    out = saved(run, run.model, tmp_path / "run")
    before = sorted(p.name for p in out.iterdir())
    moves = len(before)
    move, left = os.replace, 0

    def killed(source: object, target: object) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        move(source, target)  # type: ignore[arg-type]

    for after in range(moves):
        with monkeypatch.context() as patch:
            left = after
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                saved(run, run.model, out)
        with pytest.raises(ArtifactError, match="training has not finished here"):
            load_run(out)
    saved(run, run.model, out)
    assert sorted(p.name for p in out.iterdir()) == before
    verify_run(out)


def test_a_full_disk_leaves_the_run_as_it_was(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(fixtures.ctr_run(root))
    out = saved(run, run.model, tmp_path / "run")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(StorageFullError, match=r"no space left on the disk of .*run"):
            saved(run, run.model, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
