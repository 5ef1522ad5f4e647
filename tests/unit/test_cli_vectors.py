"""`raysys vectors check | compact | show`: what they print and how they end."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysys.cli.main import run
from raysys.llm.keys import VectorIdentity, text_keys
from raysys.llm.parts import TableHeader, part_paths
from raysys.llm.writer import TableWriter

IDENTITY = VectorIdentity(
    weights="00" * 32, pooling="last", max_tokens=8, normalise=True, template="plain@1"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three vectors in two parts, one of them bound."""
    path = tmp_path / "t"
    with TableWriter(path, TableHeader(width=2)) as writer:
        writer.append(text_keys(IDENTITY, ["a", "b"]), np.ones((2, 2), np.float32))
        writer.append(text_keys(IDENTITY, ["c"]), np.ones((1, 2), np.float32))
        keys, present = text_keys(IDENTITY, ["c"]), np.array([True])
        owner = pa.array(["weather=rain"])
        writer.bind("context", "text", owner, keys, present, {"backbone": "toy"}, IDENTITY)
    return path


def call(
    *words: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `raysys vectors WORDS`."""
    monkeypatch.setattr(sys, "argv", ["raysys", "vectors", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_json_of_every_verb(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*words: object) -> dict:
        code, out, _ = call(*words, "--json", monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0
        return json.loads(out)

    shown = answer("show", table)
    assert (shown["vectors"], shown["unbound"], shown["parts"]) == (3, 2, 2)
    assert shown["fields"]["context/text"]["identity"] == IDENTITY.model_dump()
    done = answer("compact", table, "--ttl-days", 1)
    assert (done["parts_before"], done["parts"], done["vectors"]) == (2, 1, 3)
    assert (done["dropped_vectors"], done["dropped_bindings"]) == (0, 0)
    assert answer("check", table)["rows"] == {"vectors": 3, "bindings": 1}


def test_words_for_people(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("show", "compact", "check"):
        code, out, _ = call(verb, table, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0
        assert str(table.name) in out.replace("\n", "")


def test_a_fault_ends_with_1_and_no_table_with_2(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = part_paths(table)[1]
    part.write_bytes(part.read_bytes()[:-9])
    code, out, _ = call("check", table, "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert json.loads(out)["counts"] == {"part": 1, "dangling binding": 1}
    for words in (("show", table), ("compact", table)):
        code, out, error = call(*words, monkeypatch=monkeypatch, capsys=capsys)
        assert (code, out) == (2, "")
        assert part.name in error and "delete it and run the embed command again" in error
    for verb in ("check", "show", "compact"):
        code, out, error = call(verb, table.parent, monkeypatch=monkeypatch, capsys=capsys)
        assert (code, out) == (2, "")
        assert "is no vector table" in error
    assert call("compact", table, "--ttl-days", 0, monkeypatch=monkeypatch, capsys=capsys)[0] == 2
    assert not (table.parent / "table.json").exists()
