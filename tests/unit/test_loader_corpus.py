"""`corpus`: text files, tables and GLUE folders become documents, split by document."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset
from raysys.data.prepared import prepare
from raysys.errors import ConfigError, DataError

WIKI = """\ufeff
 = Lobster =

 The lobster lives in the sea and is blue .

 = = Size = =

 It may grow to a length of 60 cm .

 = Bridge =
 A bridge of stone over a small river .
"""


def documents(out: Path) -> list[dict[str, str | None]]:
    return Dataset(out).table("documents").to_pylist()


def test_wikitext_is_cut_at_its_headings_alone(tmp_path: Path) -> None:
    source = tmp_path / "wiki"
    source.mkdir()
    (source / "valid.txt").write_text(WIKI, encoding="utf-8")
    (source / "wiki.test.txt").write_text(" = Sea =\nWaves and wind and salt and sand .\n")
    (source / ".hidden.txt").write_text("this is not to be read at all\n")
    manifest = import_dataset("corpus", source, tmp_path / "out")
    assert manifest.kind == "corpus" and check(tmp_path / "out").ok
    found = documents(tmp_path / "out")
    assert [(d["doc_id"], d["split"], d["title"]) for d in found] == [
        ("valid.txt#1", "valid", "Lobster"), ("valid.txt#2", "valid", "Bridge"),
        ("wiki.test.txt#1", "test", "Sea"),
    ]  # fmt: skip
    assert "= = Size = =" in (found[0]["text"] or "")
    import_dataset("corpus", source, tmp_path / "p", {"unit": "paragraph", "min_words": 8})
    assert len(documents(tmp_path / "p")) == 4
    with pytest.raises(DataError, match="is a corpus: nobody's behaviour is in it"):
        prepare(Dataset(tmp_path / "out"))
    import_dataset("corpus", source / "valid.txt", tmp_path / "f", {"unit": "file"})
    assert len(documents(tmp_path / "f")) == 1


def test_tables_give_a_document_a_row_and_a_hash_decides_the_part(tmp_path: Path) -> None:
    source = tmp_path / "t"
    source.mkdir()
    rows = {"body": [f"Text number {n} of a long table of texts" for n in range(400)],
            "title": [f"T{n}" for n in range(400)]}  # fmt: skip
    pq.write_table(pa.table(rows), source / "news.parquet")
    options = {"text": "body", "valid_share": 0.1, "test_share": 0.2}
    import_dataset("corpus", source, tmp_path / "a", options)
    found = documents(tmp_path / "a")
    counts = {s: sum(d["split"] == s for d in found) for s in ("train", "valid", "test")}
    assert sum(counts.values()) == 400
    assert 50 < counts["test"] < 110 and 20 < counts["valid"] < 65
    assert found[7]["title"] == "T7"
    import_dataset("corpus", source, tmp_path / "b", options)
    assert documents(tmp_path / "b") == found
    with pytest.raises(DataError, match="no column 'text'; there are body, title"):
        import_dataset("corpus", source, tmp_path / "c")


def test_glue_sentences_are_read_unquoted_and_once(tmp_path: Path) -> None:
    pair = tmp_path / "MRPC"
    pair.mkdir()
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (pair / "train.tsv").write_text(
        head + '1\t1\t2\tHe said " stop it now\tThe one who stopped it\n', encoding="utf-8"
    )
    (pair / "dev.tsv").write_text(
        head + "0\t3\t4\tthe one WHO  stopped it\tA wholly new sentence here\n", encoding="utf-8"
    )
    import_dataset("corpus", pair, tmp_path / "m")
    assert {(d["split"], d["text"]) for d in documents(tmp_path / "m")} == {
        ("train", 'He said " stop it now'),
        # Equal but for case and blanks: only where it is tested.
        ("valid", "the one WHO  stopped it"), ("valid", "A wholly new sentence here"),
    }  # fmt: skip
    mnli = tmp_path / "QQP"
    mnli.mkdir()
    head = "id\tquestion1\tquestion2\tis_duplicate\n"
    (mnli / "dev_matched.tsv").write_text(
        head + "1\tHow deep is the sea\tWhat is it there for\t0\n"
    )
    (mnli / "validation-00000.jsonl").write_text('{"text": "A line of five words"}\n')
    import_dataset("corpus", mnli, tmp_path / "q")
    assert [d["split"] for d in documents(tmp_path / "q")] == ["valid"] * 3
    cola = tmp_path / "CoLA"
    cola.mkdir()
    (cola / "train.tsv").write_text("gj04\t1\t\tOur friends will not buy this\n")
    import_dataset("corpus", cola, tmp_path / "c")
    assert [d["text"] for d in documents(tmp_path / "c")] == ["Our friends will not buy this"]


def test_folders_without_text_and_bad_files_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "e"
    empty.mkdir()
    (empty / "image.png").write_bytes(b"\x89")
    with pytest.raises(DataError, match=r"no text in it; looked for \*\.txt"):
        import_dataset("corpus", empty, tmp_path / "o")
    (empty / "a.txt").write_text("too short\n")
    with pytest.raises(DataError, match="none of 1 documents has 5 words"):
        import_dataset("corpus", empty, tmp_path / "o")
    (empty / "a.txt").write_bytes("caf\xe9 au lait for everybody here\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 .* at byte 3"):
        import_dataset("corpus", empty, tmp_path / "o")
    (empty / "a.txt").unlink()
    (empty / "train.tsv").write_text("x\ty\n1\t2\n")
    with pytest.raises(DataError, match=r"no column sentence, .* in x, y"):
        import_dataset("corpus", empty, tmp_path / "o")
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        import_dataset("corpus", empty, tmp_path / "o", {"valid_share": 0.5, "test_share": 0.6})
