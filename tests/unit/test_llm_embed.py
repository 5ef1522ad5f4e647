"""`raysys embed`: distinct texts of a data set, encoded once and bound to its items."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from raysys.cli.embed import embed
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.manifest import DataCard
from raysys.errors import ConfigError, DataError, RaysysError
from raysys.llm import embed as embed_module
from raysys.llm.embed import embed_items
from raysys.llm.encoder import EncoderSpec
from raysys.llm.engine import Vectors
from raysys.llm.inspect import check_table
from raysys.llm.vectors import VectorTable

WIDTH = 384
ITEMS = {
    "item_id": ["i0", "i1", "i2", "i3", "i4"],
    "name": ["rye bread", "rye bread", "pea soup", "Tea", "  "],
    "title": ["Rye bread", "Rye bread", "Pea soup", "Tea", None],
    "abstract": [None] * 5,
    "text": ["a menu", None, None, " ", None],
    "category": [["food", "bakery"], ["food"], None, [], None],
    "brand": [None, None, "Kettle", None, None],
}


class Engine:
    """Counts what it is asked; its vectors tell the text."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        return np.stack([vector_of(text) for text in texts])


def vector_of(text: str) -> np.ndarray:
    return np.full(WIDTH, len(text), np.float32)


def write(path: Path, items: dict[str, list]) -> Dataset:
    schema = pa.schema(
        [(name, pa.list_(pa.string()) if name == "category" else pa.string()) for name in items]
    )
    card = DataCard(
        dataset="toy", version="1", reader="test@1", label_rule="none", split_rule="none",
        group_key="user", history_cut="none", licence="none",
    )  # fmt: skip
    with DatasetWriter(path, contexts={"hour": "categorical"}) as writer:
        writer.write("items", pa.table(items, schema=schema))
        writer.commit(card)
    return Dataset(path)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return write(tmp_path / "data", ITEMS)


def test_distinct_texts_are_encoded_once_over_fields_and_runs(
    data: Dataset, tmp_path: Path
) -> None:
    engine = Engine()
    report = embed_items(data, tmp_path / "t", fields=("name", "title"), encode=engine)
    assert engine.texts == ["rye bread", "pea soup", "Tea", "Rye bread", "Pea soup"]
    assert (report.texts, report.distinct, report.llm_calls) == (8, 5, 5)
    assert report.widths == {"name": WIDTH, "title": WIDTH}
    assert report.encoder["licence"] == "apache-2.0"

    again = embed_items(data, tmp_path / "t", fields=("name", "title"), encode=engine)
    assert (again.llm_calls, again.rebound, len(engine.texts)) == (0, 0, 5)
    assert check_table(tmp_path / "t").ok
    table = VectorTable(tmp_path / "t")
    bound = table.bound("item", "name", ["i2", "i4", "i0"])
    assert np.array_equal(bound, [vector_of("pea soup"), np.zeros(WIDTH), vector_of("rye bread")])


def test_text_is_composed_where_an_item_has_none(data: Dataset, tmp_path: Path) -> None:
    engine = Engine()
    embed_items(data, tmp_path / "t", fields=("text",), encode=engine)
    assert engine.texts == [
        "a menu",
        "rye bread. Rye bread. food",
        "pea soup. Pea soup. Kettle",
        "Tea",
    ]


def test_changed_texts_are_rebound_and_counted(data: Dataset, tmp_path: Path) -> None:
    engine = Engine()
    embed_items(data, tmp_path / "t", fields=("title",), encode=engine)
    other = write(tmp_path / "other", {**ITEMS, "title": ["Rye bread", "Bun", None, "Tea", None]})
    report = embed_items(other, tmp_path / "t", fields=("title",), encode=engine)
    assert (report.llm_calls, report.rebound) == (1, 1)
    bound = VectorTable(tmp_path / "t").bound("item", "title", ["i1", "i2"])
    assert np.array_equal(bound, [vector_of("Bun"), np.zeros(WIDTH)])


def test_impossible_fields_leave_no_table(data: Dataset, tmp_path: Path) -> None:
    for field, message in (("titel", "did you mean title"), ("abstract", "no item has a text")):
        with pytest.raises(ConfigError, match=message):
            embed_items(data, tmp_path / "t", fields=(field,), encode=Engine())
    assert not (tmp_path / "t").exists()


def test_engine_of_another_width_is_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes width 384"):
        embed_items(data, tmp_path / "t", encode=lambda texts: np.zeros((len(texts), 5)))
    assert len(VectorTable(tmp_path / "t")) == 0


def test_the_encoder_itself_fills_the_table(data: Dataset, tmp_path: Path) -> None:
    spec = EncoderSpec(max_tokens=4)
    report = embed_items(data, tmp_path / "t", spec, fields=("text",), dtype="float16")
    assert (report.llm_calls, report.truncated) == (4, 2)
    bound = VectorTable(tmp_path / "t").bound("item", "text", ["i0", "i3"])
    assert np.allclose(np.linalg.norm(bound, axis=1), 1, atol=1e-2)


def test_a_text_without_a_vector_is_counted_and_tried_again(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(spec: EncoderSpec, texts: pa.Array, **_: object) -> Iterator[Vectors]:
        values = np.stack([vector_of(text) for text in texts.to_pylist()])
        bad = texts.to_pylist().index("pea soup")
        yield Vectors(values, {bad: "no token"}, truncated=1)

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "embed", failing)
        report = embed_items(data, tmp_path / "t", fields=("name",))
    assert (report.llm_calls, report.failed, report.truncated) == (3, 1, 1)
    assert report.faults == ("'pea soup': no token",)
    assert (report.texts, report.distinct) == (3, 2)
    assert not VectorTable(tmp_path / "t").bound("item", "name", ["i2"]).any()

    engine = Engine()
    again = embed_items(data, tmp_path / "t", fields=("name",), encode=engine)
    assert (engine.texts, again.failed, again.distinct) == (["pea soup"], 0, 3)


def test_a_vector_that_is_not_finite_costs_no_other_text_its_own(
    data: Dataset, tmp_path: Path
) -> None:
    def overflows(texts: list[str]) -> np.ndarray:
        out = np.stack([vector_of(text) for text in texts])
        out[0] = np.nan
        return out

    def infinite(texts: list[str]) -> np.ndarray:
        out = np.stack([vector_of(text) for text in texts])
        out[-1] = 1e6  # beyond float16
        return out

    for number, (encode, dtype) in enumerate(((overflows, "float32"), (infinite, "float16"))):
        table = tmp_path / f"t{number}"
        first = embed_items(data, table, fields=("title",), encode=encode, dtype=dtype)
        assert first.failed == 1 and "not finite" in first.faults[0]
        assert len(VectorTable(table)) == first.llm_calls - 1 > 0


def test_engine_that_dies_leaves_what_it_encoded(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(spec: EncoderSpec, texts: pa.Array, **_: object) -> Iterator[Vectors]:
        yield Vectors(np.stack([vector_of(text) for text in texts[:2].to_pylist()]))
        raise RaysysError("engine vllm failed: it died")

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "embed", dying)
        with pytest.raises(RaysysError, match="it died"):
            embed_items(data, tmp_path / "t", fields=("name",))
    engine = Engine()
    assert embed_items(data, tmp_path / "t", fields=("name",), encode=engine).llm_calls == 1
    assert engine.texts == ["Tea"]


def test_command_prints_one_json_object(data: Dataset, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(embed)
    command = [
        "--data",
        str(data.path),
        "--table",
        str(tmp_path / "t"),
        "--fields",
        "name, title",
        "--json",
    ]
    counts = []
    for _ in range(2):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        report = json.loads(result.stdout)
        counts.append((report["distinct"], report["llm_calls"]))
    assert counts == [(5, 5), (5, 0)]
