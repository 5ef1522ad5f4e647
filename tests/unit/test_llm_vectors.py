"""The vector table: append-only, duplicate-free, resumable, one writer, verified."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import ConfigError, DataError
from raysys.llm.embed import fill
from raysys.llm.keys import VectorIdentity, text_keys
from raysys.llm.vectors import BINDINGS, HEADER, INDEX, TableHeader, VectorTable, part_paths
from raysys.llm.writer import TableWriter

IDENTITY = VectorIdentity(
    weights="00" * 32, pooling="mean", max_tokens=8, normalise=False, template="plain@1"
)
WIDTH = 3
HEADER3 = TableHeader(width=WIDTH)
ENCODER = {"backbone": "test"}


def toy(texts: list[str]) -> np.ndarray:
    """A vector that tells its text: length, first and last character."""
    rows = [[len(t), ord(t[0]), ord(t[-1])] for t in texts]
    return np.array(rows, np.float32).reshape(-1, WIDTH)


def put(path: Path, texts: list[str], encode: Callable = toy, part: int = 4) -> int:
    with TableWriter(path, HEADER3) as writer:
        keys = text_keys(IDENTITY, texts)
        return fill(writer, keys, pa.array(texts, pa.string()), encode, rows_per_part=part)


def bind(path: Path, ids: list[str], texts: list[str | None], encoder: dict = ENCODER) -> int:
    present = np.array([text is not None for text in texts], bool)
    keys = text_keys(IDENTITY, [text or "" for text in texts])
    with TableWriter(path, HEADER3) as writer:
        return writer.bind("item", "title", pa.array(ids), keys, present, encoder)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.text("abc", min_size=1, max_size=3), max_size=12), max_size=4),
    st.integers(1, 5),
    st.sampled_from(["keep", "delete"]),
)
def test_table_behaves_like_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[str]], part: int, index: str
) -> None:
    path = tmp_path_factory.mktemp("t") / "table"
    expected: set[str] = set()
    for texts in calls:
        assert put(path, texts, part=part) == len(set(texts) - expected)
        expected |= set(texts)
        if index == "delete":
            (path / INDEX).unlink(missing_ok=True)
    if not calls:
        return
    table = VectorTable(path)
    table.check()
    assert len(table) == len(expected)
    asked = [*sorted(expected), "never stored"]
    vectors = table.get(text_keys(IDENTITY, asked))
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors[:-1], toy(asked[:-1]))
    assert not vectors[-1].any()


def test_second_run_encodes_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return toy(texts)

    texts = [f"text {i % 7}" for i in range(20)]
    assert put(tmp_path / "t", texts, counted) == 7
    assert sum(calls) == 7
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").glob("*.arrow")}
    assert put(tmp_path / "t", texts, counted) == 0
    assert sum(calls) == 7
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "t").glob("*.arrow")}


def test_killed_half_way_loses_at_most_a_part(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(30)]

    def dies(chunk: list[str]) -> np.ndarray:
        if "text 13" in chunk:
            os.kill(os.getpid(), signal.SIGKILL)
        return toy(chunk)

    child = os.fork()
    if child == 0:
        put(tmp_path / "t", texts, dies)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL

    after = VectorTable(tmp_path / "t")
    after.check()
    assert len(after) == 12  # parts of four: texts 0 to 11 were committed
    encoded: list[str] = []
    put(tmp_path / "t", texts, lambda chunk: encoded.extend(chunk) or toy(chunk))
    assert encoded == texts[12:]
    whole = VectorTable(tmp_path / "t")
    whole.check()
    assert np.array_equal(whole.get(text_keys(IDENTITY, texts)), toy(texts))
    assert not list((tmp_path / "t").glob(".*.tmp"))


def test_slow_engine_commits_by_the_clock(tmp_path: Path) -> None:
    texts = pa.array([f"text {i}" for i in range(3000)])
    keys = text_keys(IDENTITY, texts.to_pylist())
    with TableWriter(tmp_path / "t", HEADER3) as writer:
        fill(writer, keys, texts, toy, seconds_per_part=0.0)
    assert [len(part.keys) for part in VectorTable(tmp_path / "t").parts] == [1024, 1024, 952]


def test_two_writers_are_refused_and_readers_are_not(tmp_path: Path) -> None:
    put(tmp_path / "t", ["a"])
    with TableWriter(tmp_path / "t", HEADER3):
        with pytest.raises(DataError, match="another process is writing"):
            put(tmp_path / "t", ["b"])
        assert len(VectorTable(tmp_path / "t")) == 1
    assert put(tmp_path / "t", ["b"]) == 1


@pytest.mark.parametrize("header", [TableHeader(width=4), TableHeader(width=3, dtype="float16")])
def test_table_of_another_width_or_dtype_is_refused(tmp_path: Path, header: TableHeader) -> None:
    put(tmp_path / "t", ["a"])
    with pytest.raises(DataError, match="use another table folder"), TableWriter(
        tmp_path / "t", header
    ):  # fmt: skip
        pass
    assert put(tmp_path / "t", ["b"]) == 1


def test_half_precision_is_stored_and_read_as_float32(tmp_path: Path) -> None:
    keys = text_keys(IDENTITY, ["a", "b"])
    values = np.array([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]], np.float32)
    with TableWriter(tmp_path / "t", TableHeader(width=3, dtype="float16")) as writer:
        writer.append(keys, values)
    found = VectorTable(tmp_path / "t").get(keys)
    assert found.dtype == np.float32
    assert np.array_equal(found, values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("vectors", [np.zeros((1, 2)), np.zeros((2, 3)), np.full((1, 3), np.nan)])
def test_bad_vectors_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    with (
        TableWriter(tmp_path / "t", HEADER3) as writer,
        pytest.raises(DataError, match="the encoder gave"),
    ):
        writer.append(text_keys(IDENTITY, ["a"]), vectors)
    assert not part_paths(tmp_path / "t")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_damage_is_named_and_mended_by_deleting_the_part(
    tmp_path_factory: pytest.TempPathFactory, where: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("t") / "table"
    texts = [f"text {i}" for i in range(8)]
    put(path, texts)
    part = part_paths(path)[0]
    raw = bytearray(part.read_bytes())
    where %= len(raw)
    if cut:
        raw = raw[:where]
    else:
        raw[where] ^= 0x41
    part.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=part.name):
        VectorTable(path).check()
    part.unlink()
    assert put(path, texts) == 4
    VectorTable(path).check()
    assert np.array_equal(VectorTable(path).get(text_keys(IDENTITY, texts)), toy(texts))


def test_damaged_header_and_bindings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no vector table"):
        VectorTable(tmp_path)
    put(tmp_path, ["a"])
    (tmp_path / BINDINGS).write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=BINDINGS):
        VectorTable(tmp_path).check()
    (tmp_path / BINDINGS).unlink()
    (tmp_path / HEADER).write_text('{"format": 2, "width": 3}')
    with pytest.raises(DataError, match=HEADER):
        VectorTable(tmp_path)


def test_bindings_are_upserted(tmp_path: Path) -> None:
    put(tmp_path, ["one", "two", "three"])
    assert bind(tmp_path, ["i1", "i2", "i3"], ["one", "two", None]) == 0
    got = VectorTable(tmp_path).bound("item", "title", ["i2", "unknown", "i3", None, "i1"])
    assert np.array_equal(got, np.stack([toy(["two"])[0], *np.zeros((3, 3)), toy(["one"])[0]]))
    # i1 changes, i2 loses its text, i3 gains one, others stay.
    assert bind(tmp_path, ["i1", "i2", "i3"], ["three", None, "two"]) == 1
    got = VectorTable(tmp_path).bound("item", "title", ["i1", "i2", "i3"])
    assert np.array_equal(got, np.stack([toy(["three"])[0], np.zeros(3), toy(["two"])[0]]))
    assert bind(tmp_path, ["i9"], ["one"]) == 0
    assert VectorTable(tmp_path).bound("item", "title", ["i1"]).any()
    VectorTable(tmp_path).check()


def test_a_field_never_mixes_encoders(tmp_path: Path) -> None:
    put(tmp_path, ["one", "two"])
    bind(tmp_path, ["i1", "i2"], ["one", "two"])
    bind(tmp_path, ["i1"], ["two"], {"backbone": "other"})
    table = VectorTable(tmp_path)
    assert table.encoders() == {("item", "title"): {"backbone": "other"}}
    assert not table.bound("item", "title", ["i2"]).any()


def test_unbound_field_and_duplicate_owner_are_errors(tmp_path: Path) -> None:
    put(tmp_path, ["one"])
    bind(tmp_path, ["i1"], ["one"])
    with pytest.raises(ConfigError, match=r"item/abstract \(bound: item/title\)"):
        VectorTable(tmp_path).bound("item", "abstract", ["i1"])
    with pytest.raises(DataError, match="twice"):
        bind(tmp_path, ["i1", "i1"], ["one", "one"])


def test_binding_without_its_vector_is_found_by_check(tmp_path: Path) -> None:
    put(tmp_path, ["one", "two"], part=1)
    bind(tmp_path, ["i1", "i2"], ["one", "two"])
    part_paths(tmp_path)[1].unlink()
    with pytest.raises(DataError, match="item 'i2', field title"):
        VectorTable(tmp_path).check()
