"""MIND from its own layout to an evaluated `news/perconet`, beside the published figures."""

import json
import os
from pathlib import Path

import newspaper as paper
import numpy as np
import pytest
from typer.testing import CliRunner

from raysys.artifacts.predictor import Predictor
from raysys.cli.main import make_app
from raysys.data.check import check
from raysys.data.loaders import import_dataset
from raysys.metrics.anchors import ANCHORS, anchors_of
from raysys.options import resolve
from raysys.perconet.ranker import Perconet
from raysys.recipes.registry import recipe_of, run

CLUBS = ("Lakers", "Yankees", "Packers", "Rangers", "Arsenal", "Bulls", "Jets", "Giants")
NEWS, USERS = 64, 40


def entity(club: int, name: str) -> str:
    """One entity in MIND's JSON."""
    found = {
        "Label": name, "Type": "O", "WikidataId": f"Q{100 + club}", "Confidence": 0.99,
        "OccurrenceOffsets": [0], "SurfaceForms": [name],
    }  # fmt: skip
    return json.dumps([found])


def write(folder: Path) -> Path:
    """Users follow two clubs each; impressions of four news on six days, the last one is dev."""
    rng = np.random.default_rng(5)
    club_of = rng.integers(len(CLUBS), size=NEWS)
    news = [
        f"N{n}\tsports\tball\t{CLUBS[club]} win game {n}\tA night for {CLUBS[club]} fans\t"
        f"https://example.org/{n}\t{entity(club, CLUBS[club])}\t[]"
        for n, club in enumerate(club_of.tolist())
    ]
    parts: dict[str, list[str]] = {"train": [], "dev": []}
    liked = [rng.choice(len(CLUBS), 2, replace=False) for _ in range(USERS)]
    mine = [np.flatnonzero(np.isin(club_of, clubs)) for clubs in liked]
    for day in range(6):
        part = "dev" if day == 5 else "train"
        for user in range(USERS):
            history = " ".join(f"N{n}" for n in mine[user][:6])
            good = rng.choice(mine[user][6:], 1)
            bad = rng.choice(np.setdiff1d(np.arange(NEWS), mine[user]), 3, replace=False)
            shown = [f"N{n}-1" for n in good] + [f"N{n}-0" for n in bad]
            order = rng.permutation(len(shown))
            parts[part].append(
                f"{len(parts[part]) + 1}\tU{user}\t11/{9 + day:02d}/2019 9:{user:02d}:00 AM\t"
                f"{history}\t{' '.join(shown[place] for place in order)}"
            )
    vectors = [
        "\t".join([f"Q{100 + club}", *(f"{x:.4f}" for x in rng.normal(size=100))])
        for club in range(len(CLUBS))
    ]
    for part, lines in parts.items():
        place = folder / f"MINDsmall_{part}"
        place.mkdir(parents=True)
        (place / "behaviors.tsv").write_text("\n".join(lines) + "\n")
        (place / "news.tsv").write_text("\n".join(news) + "\n")
        (place / "entity_embedding.vec").write_text("\n".join(vectors) + "\n")
    return folder


def end_to_end(source: Path, out: Path, over: list[str]) -> tuple[Path, str]:
    """Import, train and evaluate; the run folder and what the evaluation printed."""
    import_dataset("mind", source, out / "data")
    assert check(out / "data").ok
    config = resolve(recipe_of("news/perconet"), None, over, {"data": str(out / "data")})
    run(config, out / "run", show_progress=False)
    app = make_app("evaluate")
    told = CliRunner().invoke(app, ["evaluate", str(out / "run"), "--data", str(out / "data")],
                              env={"COLUMNS": "160"})  # fmt: skip
    assert told.exit_code in (0, 1), told.output
    return out / "run", told.output


@pytest.mark.slow
def test_mind_trains_and_evaluates_from_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    tiny = [one for one in paper.TINY if not one.startswith("train.epochs")]
    folder, told = end_to_end(write(tmp_path / "src"), tmp_path, [*tiny, "train.epochs=8"])
    model = Predictor.load(folder).model
    assert isinstance(model, Perconet)
    assert model.table is not None
    assert model.table.vectors.shape == (1 + len(CLUBS), 100)
    assert sorted(model.table.labels) == sorted(CLUBS)
    found = json.loads((folder / "metrics.json").read_text())
    # Readers follow clubs, which titles name and entities are.
    assert found["model"]["gauc_mean@impression"]["value"] > 0.7
    assert [row["model"] for row in found["anchors"]] == [a.model for a in ANCHORS["mind"]]
    assert "not our results" in told
    line = next(line for line in told.splitlines() if "NRMS GloVe" in line)
    assert "small dev" in line and "0.6667" in line and "0.4184" in line


@pytest.mark.slow
@pytest.mark.skipif("RAYSYS_MIND" not in os.environ, reason="RAYSYS_MIND names no MIND folder")
def test_a_real_mind_folder(tmp_path: Path) -> None:
    over = ["train.epochs=1", "train_limit=2000", "valid_limit=500"]
    folder, told = end_to_end(Path(os.environ["RAYSYS_MIND"]), tmp_path, over)
    assert "NRMS GloVe" in told
    assert (folder / "scores" / "test.parquet").is_file()


def test_anchors_are_of_public_sets_alone() -> None:
    assert anchors_of("world-news") == ()
    for rows in ANCHORS.values():
        for row in rows:
            assert row.source
            assert all(0.2 < value < 0.8 for value in row.values.values())
    nrms = next(a for a in anchors_of("mind") if a.model == "NRMS")
    assert nrms.values["ndcg@10@impression"] == 0.4163
    assert list(next(a for a in anchors_of("mind") if a.model == "CAUM").values) == [
        "gauc_mean@impression"
    ]
