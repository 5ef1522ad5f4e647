"""Entities from a gazetteer, and how noisy they are."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_fixtures import CARD
from typer.testing import CliRunner

from raysys.cli.data import app
from raysys.data.check import check
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.tagging import Gazetteer, read_gazetteer, tag_dataset, words_of
from raysys.errors import DataError

GIVEN = {"id": "Q1", "label": "New York", "type": "LOC", "confidence": 1.0, "field": "title"}
NEWS: list[dict[str, Any]] = [
    dict(item_id="a", title="NEW YORK City wins", abstract="The mayor of York smiled."),
    dict(item_id="b", title="Nothing here", abstract=None),
    dict(item_id="c", title="York, and New York", abstract="New York again", entities=[GIVEN]),
    dict(item_id="d", title="A win", abstract="Of Paris", entities=[GIVEN]),
]
FILE = "id,name,label,type\nQ1,New York,New York,LOC\nQ1,NYC,New York,LOC\nQ2,York,York,LOC\n"


def write(folder: Path) -> Path:
    with DatasetWriter(folder, contexts={}) as writer:
        items = pa.Table.from_pylist(NEWS, writer.schemas["items"])
        writer.write("items", items.slice(0, 2))
        writer.write("items", items.slice(2))
        events = [dict(user_id="u", seq=0, ts=1, item_id="a", behaviour="click")]
        writer.write("events", pa.Table.from_pylist(events, writer.schemas["events"]))
        shown = [dict(impression_id="i", user_id="u", ts=5, candidates=["a", "b"], clicks=["a"],
                      orders=[], split="train")]  # fmt: skip
        writer.write("impressions", pa.Table.from_pylist(shown, writer.schemas["impressions"]))
        writer.commit(CARD, history_behaviours=("click",))
    return folder


def entities(folder: Path) -> dict[str, list[tuple[str, str]]]:
    rows = Dataset(folder).table("items").to_pylist()
    return {r["item_id"]: [(e["id"], e["field"]) for e in r["entities"] or ()] for r in rows}


def test_the_longest_name_counts_and_a_name_of_two_is_nobodys() -> None:
    names = Gazetteer()
    york, city = {"id": "Q2"}, {"id": "Q1"}
    names.add("York", york)
    names.add("New York", city)
    assert names.find("new york, YORK; New") == [city, york]
    assert names.find("Yorkshire") == names.find(None) == []
    names.add("york", {"id": "Q9"})
    names.add("York", york)
    assert names.find("York and New  York") == [city]
    assert names.ambiguous == {("york",)}
    assert words_of("Café—BAR 2") == ("café", "bar", "2")


def test_news_without_entities_get_them_and_the_noise_is_measured(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text(FILE)
    out = tmp_path / "out"
    report = tag_dataset(write(tmp_path / "d"), read_gazetteer(tmp_path / "names.csv"), out)
    assert check(out).ok
    assert entities(out) == {
        "a": [("Q1", "title"), ("Q2", "abstract")], "b": [],
        "c": [("Q1", "title")], "d": [("Q1", "title")],
    }  # fmt: skip
    assert (report.news, report.tagged, report.named, report.names) == (4, 2, 1, 3)
    # c: Q1 right, Q2 wrong; d: Q1 missed.
    assert (report.compared, report.precision, report.recall) == (2, 0.5, 0.5)
    card = Dataset(out).card
    assert card.id == report.data_card_id != Dataset(tmp_path / "d").card.id
    assert "precision 0.500, recall 0.500" in card.notes["tagged"]
    for table in ("events", "impressions"):
        assert Dataset(out).table(table).equals(Dataset(tmp_path / "d").table(table))
    tag_dataset(tmp_path / "d", read_gazetteer(tmp_path / "d"), tmp_path / "again", replace=True)
    assert entities(tmp_path / "again") == {
        "a": [("Q1", "title")], "b": [], "c": [("Q1", "title")], "d": [],
    }  # fmt: skip


def test_the_command_line_and_bad_gazetteers(tmp_path: Path) -> None:
    data = write(tmp_path / "d")
    (tmp_path / "names.csv").write_text(FILE)
    given = ["tag", str(data), "--gazetteer", str(tmp_path / "names.csv"), "--out",
             str(tmp_path / "out")]  # fmt: skip
    told = CliRunner().invoke(app, [*given, "--json"])
    assert json.loads(told.stdout)["recall"] == 0.5
    assert isinstance(CliRunner().invoke(app, given).exception, DataError)
    assert "recall" in CliRunner().invoke(app, [*given, "--overwrite"]).stdout
    for text, message in (
        ("id,label\nQ1,York\n", "no column 'name'; there are id, label"),
        ("id,name\n,York\n", "line 2: column 'id' is empty"),
        ("id,name\nQ1,--\n", "no name that belongs to one entity alone"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_gazetteer(tmp_path / "bad.csv")
    with pytest.raises(DataError, match="no such file"):
        read_gazetteer(tmp_path / "none.csv")
