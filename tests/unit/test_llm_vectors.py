"""The vector table: append-only, duplicate-free, resumable, one writer, verified."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raysys.data.faults import Report
from raysys.data.split import DAY_US
from raysys.errors import ConfigError, DataError
from raysys.llm.bindings import BINDINGS, context_owner
from raysys.llm.compact import compact
from raysys.llm.embed import fill
from raysys.llm.inspect import check_table, summarise
from raysys.llm.keys import VectorIdentity, text_keys
from raysys.llm.parts import HEADER, TableHeader, part_paths, write_part
from raysys.llm.vectors import INDEX, VectorTable
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


def bind(
    path: Path,
    ids: list[str],
    texts: list[str | None],
    identity: VectorIdentity = IDENTITY,
    owner: tuple[str, str] = ("item", "title"),
) -> int:
    present = np.array([text is not None for text in texts], bool)
    keys = text_keys(IDENTITY, [text or "" for text in texts])
    with TableWriter(path, HEADER3) as writer:
        return writer.bind(*owner, pa.array(ids), keys, present, ENCODER, identity)


def sound(path: Path) -> Report:
    """The report of a table without a fault."""
    report = check_table(path)
    assert report.ok, report.faults
    return report


@pytest.mark.slow
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
    sound(path)
    table = VectorTable(path)
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

    sound(tmp_path / "t")
    after = VectorTable(tmp_path / "t")
    assert len(after) == 12  # parts of four: texts 0 to 11 were committed
    encoded: list[str] = []
    put(tmp_path / "t", texts, lambda chunk: encoded.extend(chunk) or toy(chunk))
    assert encoded == texts[12:]
    sound(tmp_path / "t")
    whole = VectorTable(tmp_path / "t")
    assert np.array_equal(whole.get(text_keys(IDENTITY, texts)), toy(texts))
    assert not list((tmp_path / "t").glob(".*.tmp"))


def test_slow_engine_commits_by_the_clock(tmp_path: Path) -> None:
    texts = pa.array([f"text {i}" for i in range(3000)])
    keys = text_keys(IDENTITY, texts.to_pylist())
    with TableWriter(tmp_path / "t", HEADER3) as writer:
        fill(writer, keys, texts, toy, seconds_per_part=0.0)
    assert [len(part.keys) for part in VectorTable(tmp_path / "t").parts] == [1024, 1024, 952]


def test_a_job_waits_for_a_writer_that_is_soon_done(tmp_path: Path) -> None:
    inside = threading.Event()

    def other() -> None:
        with TableWriter(tmp_path / "t", TableHeader(width=WIDTH)):
            inside.set()
            time.sleep(0.3)

    threading.Thread(target=other).start()
    inside.wait()
    with TableWriter(tmp_path / "t", TableHeader(width=WIDTH), wait_s=30) as writer:
        writer.append(text_keys(IDENTITY, ["a"]), toy(["a"]))
    sound(tmp_path / "t")


def test_a_few_new_vectors_do_not_rewrite_the_index_of_many(tmp_path: Path) -> None:
    put(tmp_path / "t", [f"text {n}" for n in range(400)], part=400)
    before = (tmp_path / "t" / INDEX).stat().st_mtime_ns
    put(tmp_path / "t", ["one more"])
    assert (tmp_path / "t" / INDEX).stat().st_mtime_ns == before
    table = VectorTable(tmp_path / "t")
    assert not table.indexed
    keys = text_keys(IDENTITY, ["one more", "text 7"])
    assert np.array_equal(table.get(keys), toy(["one more", "text 7"]))
    sound(tmp_path / "t")
    put(tmp_path / "t", [f"again {n}" for n in range(100)], part=100)
    assert VectorTable(tmp_path / "t").indexed


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


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
@example(584, False)  # a byte of a key, which the index has too
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
    report = check_table(path)
    assert {fault.file for fault in report.faults} == {part.name}
    part.unlink()
    assert put(path, texts) == 4
    sound(path)
    assert np.array_equal(VectorTable(path).get(text_keys(IDENTITY, texts)), toy(texts))


def test_damaged_header_and_bindings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no vector table"):
        VectorTable(tmp_path)
    put(tmp_path, ["a"])
    (tmp_path / BINDINGS).write_bytes(b"PAR1 nonsense")
    (fault,) = check_table(tmp_path).faults
    assert (fault.kind, fault.file) == ("bindings", BINDINGS)
    with pytest.raises(DataError, match=BINDINGS):
        bind(tmp_path, ["i1"], ["a"])
    (tmp_path / BINDINGS).unlink()
    (tmp_path / HEADER).write_text('{"format": 1, "width": 3}')
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
    assert sound(tmp_path).rows == {"vectors": 3, "bindings": 3}


OTHER = IDENTITY.model_copy(update={"template": "plain@2"})


def test_a_field_never_mixes_encoders(tmp_path: Path) -> None:
    put(tmp_path, ["one", "two"])
    bind(tmp_path, ["i1", "i2"], ["one", "two"])
    bind(tmp_path, ["i1"], ["two"], OTHER)
    table = VectorTable(tmp_path)
    assert table.encoders() == {("item", "title"): ENCODER}
    assert table.bindings.origins["item/title"].identity == OTHER
    assert not table.bound("item", "title", ["i2"]).any()


def test_stale_vectors_are_refused(tmp_path: Path) -> None:
    put(tmp_path, ["one"])
    bind(tmp_path, ["i1"], ["one"])
    found, there = VectorTable(tmp_path).field("item", "title", IDENTITY).gather(["i1"])
    assert there.all() and np.array_equal(found, toy(["one"]))
    with pytest.raises(DataError, match=r"stale: .* template 'plain@1', not 'plain@2'; run"):
        VectorTable(tmp_path).field("item", "title", OTHER)


def test_context_values_are_gathered_beside_items(tmp_path: Path) -> None:
    words = ["it is raining", "a clear sky", "lunch time"]
    owners = [context_owner("weather", "rain"), context_owner("weather", "clear"), "meal=lunch"]
    put(tmp_path, words, part=1)
    bind(tmp_path, owners, words, owner=("context", "text"))
    bind(tmp_path, ["weather=rain"], ["lunch time"])  # an item of that name is another owner
    scene = VectorTable(tmp_path).field("context", "text")
    vectors, found = scene.gather(["meal=lunch", "weather=hail", None, "weather=rain"])
    assert found.tolist() == [True, False, False, True]
    expected = [toy(["lunch time"])[0], np.zeros(3), np.zeros(3), toy(["it is raining"])[0]]
    assert np.array_equal(vectors, np.stack(expected))


def test_unbound_field_and_duplicate_owner_are_errors(tmp_path: Path) -> None:
    put(tmp_path, ["one"])
    bind(tmp_path, ["i1"], ["one"])
    with pytest.raises(ConfigError, match=r"item/abstract \(bound: item/title\)"):
        VectorTable(tmp_path).bound("item", "abstract", ["i1"])
    with pytest.raises(DataError, match="twice"):
        bind(tmp_path, ["i1", "i1"], ["one", "one"])


def test_check_names_every_fault(tmp_path: Path) -> None:
    put(tmp_path, ["one", "two", "three"], part=1)
    bind(tmp_path, ["i1", "i2"], ["one", "two"])
    _, second, third = part_paths(tmp_path)
    second.unlink()
    keys = text_keys(IDENTITY, ["one", "four"])
    vectors = np.array([[1, 2, 3], [1, np.nan, 3]], np.float32)
    bad = write_part(tmp_path, HEADER3, 7, keys, vectors, ((2, 0),))
    third.rename(third.with_name("part-000002-0123456789abcdef.arrow"))
    report = check_table(tmp_path)
    found = {(fault.kind, fault.file, fault.row) for fault in report.faults}
    assert found == {
        ("checksum", "part-000002-0123456789abcdef.arrow", None),
        ("non-finite vector", bad.name, 2),
        ("duplicate key", bad.name, 1),
        ("dangling binding", BINDINGS, 2),
    }
    assert any("item 'i2', field title" in fault.message for fault in report.faults)
    assert report.warnings == [f"{INDEX} is of other parts and not used; the next run renews it"]


def test_a_false_index_is_a_fault_and_is_not_believed_by_the_writer(tmp_path: Path) -> None:
    put(tmp_path / "a", ["one", "two"])
    put(tmp_path / "b", ["two", "one"])
    index = (tmp_path / "b" / INDEX).read_bytes()
    one, two = (part_paths(tmp_path / name)[0].name.encode() for name in "ab")
    (tmp_path / "a" / INDEX).write_bytes(index.replace(two, one))
    assert [fault.kind for fault in check_table(tmp_path / "a").faults] == ["index"]
    assert put(tmp_path / "a", ["one", "two"]) == 0
    sound(tmp_path / "a")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.text("abc", min_size=1, max_size=3), max_size=12), max_size=5),
    st.integers(1, 400),
)
def test_compaction_changes_no_vector_and_no_open_reader(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[str]], size: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "table"
    put(path, ["always"])
    for texts in calls:
        put(path, texts, part=3)
    texts = ["always", *{text for call in calls for text in call}]
    bind(path, [f"i{n}" for n in range(len(texts))], texts)
    reader = VectorTable(path)
    before = part_paths(path)
    report = compact(path, bytes_per_part=size)
    keys = text_keys(IDENTITY, texts)
    for table in (reader, VectorTable(path)):
        assert np.array_equal(table.get(keys), toy(texts))
        ids = [f"i{n}" for n in range(len(texts))]
        assert np.array_equal(table.bound("item", "title", ids), toy(texts))
    assert sound(path).rows == {"vectors": len(texts), "bindings": len(texts)}
    assert VectorTable(path).indexed
    assert (report.parts_before, report.parts) == (len(before), len(part_paths(path)))
    assert (report.vectors, report.dropped_vectors) == (len(texts), 0)
    rows_per_part = max(1, size // (16 + 4 * WIDTH))
    sizes = [len(part) for part in VectorTable(path).parts]
    assert sum(2 * rows <= rows_per_part for rows in sizes) <= 1  # one may be left over
    assert put(path, [*texts, "new"]) == (0 if "new" in texts else 1)


def test_only_what_is_out_of_use_is_dropped(tmp_path: Path) -> None:
    put(tmp_path, ["bound", "unbound", "rebound"], part=1)
    bind(tmp_path, ["i1", "i2"], ["bound", "rebound"])
    now = VectorTable(tmp_path).bindings.table["bound_at"][0].as_py()

    def after(days: int) -> dict[str, bool]:
        report = compact(tmp_path, 10, now=now + days * DAY_US)
        rows = VectorTable(tmp_path).rows(text_keys(IDENTITY, ["bound", "unbound", "rebound"]))
        assert report.vectors == len(VectorTable(tmp_path)) == sum(rows >= 0)
        sound(tmp_path)
        return dict(zip(["bound", "unbound", "rebound"], (rows >= 0).tolist(), strict=True))

    assert after(9) == {"bound": True, "unbound": True, "rebound": True}
    # Ten days and a bit later nothing was confirmed but i2, as if a run had bound it again.
    bindings = VectorTable(tmp_path).bindings
    later = [now if i == "i1" else now + 9 * DAY_US for i in bindings.table["owner_id"].to_pylist()]
    column = bindings.table.schema.get_field_index("bound_at")
    moved = bindings.table.set_column(column, bindings.table.schema.field(column), [later])
    type(bindings)(moved, bindings.origins).write(tmp_path)
    assert after(11) == {"bound": False, "unbound": False, "rebound": True}
    assert summarise(tmp_path).fields["item/title"].owners == 1
    assert after(20) == {"bound": False, "unbound": False, "rebound": False}
    assert summarise(tmp_path).fields == {}
    assert put(tmp_path, ["bound"]) == 1
    sound(tmp_path)


def test_a_compaction_that_was_cut_off_shows_either_side(tmp_path: Path) -> None:
    """Between the commit of the merged part and the deletion of the old ones."""
    put(tmp_path, ["one", "two"], part=1)
    old = {path.name: path.read_bytes() for path in part_paths(tmp_path)}
    compact(tmp_path)
    for name, raw in old.items():
        (tmp_path / name).write_bytes(raw)
    sound(tmp_path)
    assert len(VectorTable(tmp_path)) == 2
    assert put(tmp_path, ["one", "two"]) == 0
    assert len(part_paths(tmp_path)) == 1


def test_compaction_vouches_for_no_changed_byte(tmp_path: Path) -> None:
    put(tmp_path, ["one", "two"], part=1)
    part = part_paths(tmp_path)[0]
    raw = part.read_bytes()
    where = raw.index(toy(["one"]).tobytes())
    part.write_bytes(raw[:where] + bytes([raw[where] ^ 1]) + raw[where + 1 :])
    with pytest.raises(DataError, match=f"{part.name}: damaged .its sha256 is not"):
        compact(tmp_path)
    assert len(part_paths(tmp_path)) == 2


def test_compaction_waits_for_no_writer(tmp_path: Path) -> None:
    put(tmp_path, ["a"])
    with (
        TableWriter(tmp_path, HEADER3),
        pytest.raises(DataError, match="another process is writing"),
    ):
        compact(tmp_path)
    with pytest.raises(ConfigError, match="1 day or more"):
        compact(tmp_path, 0)
    with pytest.raises(DataError, match="no vector table"):
        compact(tmp_path / "none")


def test_summary_counts_what_is_bound(tmp_path: Path) -> None:
    put(tmp_path, ["one", "two", "free"])
    bind(tmp_path, ["i1", "i2", "i3"], ["one", "two", "one"])
    summary = summarise(tmp_path)
    assert (summary.vectors, summary.unbound, summary.parts) == (3, 1, 1)
    title = summary.fields["item/title"]
    assert (title.owners, title.vectors, title.encoder["backbone"]) == (3, 2, "test")
    assert title.oldest == title.newest
