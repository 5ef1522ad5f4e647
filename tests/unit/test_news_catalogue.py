"""A trained news ranker over newer news, without training; its vectors for retrieval elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import newspaper as paper
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import serve_fixtures as fixtures
import torch
from data_fixtures import CARD
from typer.testing import CliRunner

from raysys.artifacts.predictor import Predictor
from raysys.cli.build import app
from raysys.data.contexts import FIRST
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.requests import Request
from raysys.errors import ConfigError, DataError
from raysys.recipes.catalogue import build_catalogue, write_news_vectors

LATER = 20 * paper.DAY


def later(data: Path, out: Path) -> Path:
    """Two further news, of known, unknown and no entities, and a click on the first of them."""
    old = Dataset(data)
    items, events = old.table("items").to_pylist(), old.table("events").to_pylist()
    known = next(e for row in items for e in row["entities"] or ())
    for name, entities in (("x0", [known, {**known, "id": "Q-new"}]), ("x1", [])):
        items.append(
            {**items[0], "item_id": name, "title": f"Later {name}", "abstract": f"Much {name}",
             "entities": entities}
        )  # fmt: skip
    first = [row for row in events if row["user_id"] == "u00"]
    events.append({**first[-1], "seq": first[-1]["seq"] + 1, "ts": LATER, "item_id": "x0"})
    events.sort(key=lambda row: (row["user_id"], row["seq"]))
    with DatasetWriter(out, contexts={}) as writer:
        for name, rows in (("items", items), ("events", events)):
            writer.write(name, pa.Table.from_pylist(rows, writer.schemas[name]))
        for name in ("impressions", "entities"):
            writer.write(name, old.table(name))
        writer.commit(CARD, history_behaviours=("click",))
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("catalogue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(folder / "cache"))
        data = paper.write(folder / "data")
        table = f"vector_table={folder / 'table'}"
        paper.train_run(data, folder / "run", "train.epochs=2", table)
        later(data, folder / "later")
        yield folder


def test_the_same_model_knows_newer_news_and_clicks(root: Path, tmp_path: Path) -> None:
    report = build_catalogue(root / "run", root / "later", tmp_path / "new", root / "table")
    old, new = Predictor.load(root / "run"), Predictor.load(tmp_path / "new")
    assert (report.news, report.new, report.model_id) == (paper.NEWS + 2, 2, old.model_id)
    assert new.model_id == old.model_id
    assert report.llm_calls == 4  # two titles and two abstracts
    asked = [
        Request(request_id=f"r{n}", user_id=f"u{n:02d}", ts=12 * paper.DAY,
                candidates=("n1", "n2", "n3", "x0", "x1"))
        for n in range(8)
    ]  # fmt: skip
    before, after = (p.score(asked)["score"].to_numpy().reshape(8, 5) for p in (old, new))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3] == before[:, 4]).all()  # unknown then
    assert (after[:, 3] != after[:, 4]).all()
    assert old.unknown["items"] == 16 and new.unknown["items"] == 0
    # Known entities of new news are known; others are left out. The later click is there.
    table = new.model.table
    row = int(new.run.catalogue.rows(["x0"])[0])
    assert [table.ids[e - 1] for e in table.news[row] if e] != []
    assert "Q-new" not in table.ids and table.ids == old.model.table.ids
    late = asked[0].model_copy(update={"ts": LATER + 1})
    assert new.score([late])["score"].to_pylist() != new.score([asked[0]])["score"].to_pylist()
    assert old.score([late])["score"].to_pylist() == old.score([asked[0]])["score"].to_pylist()


@pytest.mark.slow
def test_the_command_line_and_what_it_refuses(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    given = ["catalogue", str(root / "run"), "--data", str(root / "later"), "--out", str(out)]
    told = CliRunner().invoke(app, given)
    assert told.exit_code == 0, told.output
    assert "42 news, 2 of them new" in told.output
    again = CliRunner().invoke(app, given)
    assert isinstance(again.exception, DataError) and "exists already" in str(again.exception)
    with pytest.raises(ConfigError, match="the catalogue of ctr/din cannot be renewed"):
        build_catalogue(fixtures.ctr_run(tmp_path / "ctr"), root / "later", tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_histories_stay_out_where_they_were_left_out(root: Path, tmp_path: Path) -> None:
    paper.train_run(root / "data", tmp_path / "run", "train.epochs=1", "with_histories=false")
    report = build_catalogue(tmp_path / "run", root / "later", tmp_path / "new")
    assert report.users == 0
    assert not (tmp_path / "new" / "snapshot" / "histories").exists()


def test_a_placebo_cannot_be_renewed(root: Path, tmp_path: Path) -> None:
    paper.train_run(root / "data", tmp_path / "x1", "train.epochs=1", "preset=X1")
    with pytest.raises(ConfigError, match="a placebo's personas"):
        build_catalogue(tmp_path / "x1", root / "later", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("recipe", ["news/kred", "news/nrms"])
def test_rivals_are_renewed_too(root: Path, tmp_path: Path, recipe: str) -> None:
    from raysys.options import resolve
    from raysys.recipes.registry import recipe_of, run

    over = ["model.width=16", "train.epochs=1", "features.vectors=[title]"]
    config = resolve(recipe_of(recipe), None, over, {"data": str(root / "data")})
    run(config, tmp_path / "run", show_progress=False)
    build_catalogue(tmp_path / "run", root / "later", tmp_path / "new")
    asked = [Request(request_id="r", user_id="u01", ts=12 * paper.DAY, candidates=("n1", "x0"))]
    before, after = (
        Predictor.load(tmp_path / name).score(asked)["score"].to_pylist() for name in ("run", "new")
    )
    assert before[0] == after[0] and before[1] != after[1]


def test_vectors_for_retrieval_are_those_of_the_ranker(root: Path, tmp_path: Path) -> None:
    assert write_news_vectors(root / "run", tmp_path / "vectors.parquet") == paper.NEWS
    found = pq.read_table(tmp_path / "vectors.parquet")
    predictor = Predictor.load(root / "run")
    model, ids = predictor.model, predictor.run.catalogue.item_ids
    assert found["news_id"].to_pylist() == ids.to_pylist()
    assert set(found["encoder_hash"].to_pylist()) == {predictor.model_id}
    rows = torch.arange(FIRST, FIRST + paper.NEWS)
    r = np.array(found["r"].to_pylist(), np.float32)
    np.testing.assert_allclose(r, model.items(rows).numpy(), atol=2e-3)
    named = [[model.table.ids[e - 1] for e in row if e] for row in model.table.news[FIRST:]]
    assert found["entity_ids"].to_pylist() == named
    title, abstract = found["z_t"].to_pylist(), found["z_a"].to_pylist()
    assert None not in title
    assert [row is None for row in abstract] == [n % 7 == 0 for n in range(paper.NEWS)]
    assert all(abs(np.linalg.norm(np.array(z, np.float32)) - 1) < 1e-2 for z in title)
