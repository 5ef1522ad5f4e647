"""Texts without behaviour: files of text, tables with a text column, folders of GLUE tasks.

    *.txt, *.md            a document a file; or one for each ` = Heading = ` (WikiText), or each
                           paragraph
    *.parquet, *.jsonl, *.csv   a document a row: the columns text and, if it is there, title
    train.tsv, dev.tsv …   GLUE: a document for each distinct sentence or question

Files whose names tell train, valid (dev) or test are that part; of the others a hash of the
document decides. Equal texts count once, in the part that is tested last.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from raysys.data.loaders.base import ImportedCorpus, Options
from raysys.data.loaders.reading import RAW_TSV, read_any, read_text
from raysys.data.manifest import DataCard
from raysys.data.schema import DOCUMENTS, SPLITS
from raysys.data.split import percent, stable_hash
from raysys.errors import DataError

_PROSE = (".txt", ".md")
_TABLES = (".parquet", ".jsonl", ".csv")
_HEADING = re.compile(r"\s*= (?!=)(.+?) =\s*")
_PARTS = {
    "train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test",
}  # fmt: skip
_SENTENCES = (
    "sentence", "sentence1", "sentence2", "#1 String", "#2 String", "question", "question1",
    "question2",
)  # fmt: skip
_COLA = ("source", "label", "star", "sentence")


class CorpusOptions(Options):
    """unit: what is a document in a file of text; `auto`: what stands under a heading where there
    are any, else the file. Shorter documents than `min_words` are left out. valid_share,
    test_share: of the documents in files whose names tell no part."""

    text: str = "text"  # column
    title: str = "title"  # column, may be missing
    unit: Literal["auto", "file", "heading", "paragraph"] = "auto"
    min_words: int = Field(default=5, ge=1)
    valid_share: float = Field(default=0.05, ge=0, lt=1)
    test_share: float = Field(default=0.05, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _something_to_train(self) -> "CorpusOptions":
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share and test_share leave nothing to train on")
        return self


@dataclass(frozen=True)
class _Document:
    name: str
    title: str | None
    text: str
    part: str | None  # told by the file's name


class Corpus:
    """Loader of a folder of texts, or of one file."""

    name = "corpus"
    version = "1"
    options = CorpusOptions

    def files(self, src: Path, options: CorpusOptions) -> list[Path]:
        """Every file below `src` that may hold text, or `src` itself."""
        if src.is_file():
            return [src]
        found = [
            path
            for path in sorted(src.rglob("*"))
            if path.is_file()
            and not any(step.startswith(".") for step in path.relative_to(src).parts)
            and (path.suffix in (*_PROSE, *_TABLES) or _is_glue(path))
        ]
        if not found:
            raise DataError(
                f"{src}: no text in it; looked for {', '.join('*' + s for s in _PROSE + _TABLES)} "
                "and GLUE's train.tsv, dev.tsv"
            )
        return found

    def load(self, src: Path, options: CorpusOptions) -> ImportedCorpus:
        """Read; documents are in the order of the files."""
        root = src if src.is_dir() else src.parent
        kept: dict[str, _Document] = {}
        count = short = 0
        for path in self.files(src, options):
            for document in _documents(path, path.relative_to(root).as_posix(), options):
                count += 1
                if len(document.text.split()) < options.min_words:
                    short += 1
                    continue
                key = " ".join(unicodedata.normalize("NFKC", document.text).casefold().split())
                # What is tested must not be learned from another file.
                if key not in kept or _later(document, kept[key]):
                    kept[key] = document
        if not kept:
            raise DataError(f"{src}: none of {count} documents has {options.min_words} words")
        documents = list(kept.values())
        table = pa.table(
            {
                "doc_id": [document.name for document in documents],
                "split": _splits(documents, options),
                "title": pa.array([document.title for document in documents], pa.string()),
                "text": [document.text for document in documents],
            },
            schema=DOCUMENTS,
        )
        return ImportedCorpus(
            documents=table,
            card=DataCard(
                dataset="corpus",
                version=src.name,
                reader=self.name,
                filters=(f"documents of under {options.min_words} words", "equal texts once"),
                label_rule="none: nobody's clicks are in this set",
                split_rule="by the names of files; of the others "
                f"{percent(options.valid_share)} valid, {percent(options.test_share)} test, by "
                f"hash with seed {options.seed}",
                group_key="impression",
                history_cut="none",
                counts={
                    "source_documents": count,
                    "short": short,
                    "equal": count - short - len(documents),
                },
                licence="that of the texts",
            ),
        )


def _is_glue(path: Path) -> bool:
    return path.suffix == ".tsv" and _part(path) is not None


def _part(path: Path) -> str | None:
    """The part that a file's name tells: train.txt, wiki.valid.txt, test-00000.parquet."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((_PARTS[word] for word in words if word in _PARTS), None)


def _later(a: _Document, b: _Document) -> bool:
    order = (None, *SPLITS)
    return order.index(a.part) > order.index(b.part)


def _splits(documents: list[_Document], options: CorpusOptions) -> list[str]:
    keys = np.array([document.name for document in documents], object)
    draw = stable_hash(keys, options.seed) / 2.0**64
    by_hash = np.where(
        draw < options.test_share,
        "test",
        np.where(draw < options.test_share + options.valid_share, "valid", "train"),
    )
    return [d.part or str(split) for d, split in zip(documents, by_hash, strict=True)]


def _documents(path: Path, name: str, options: CorpusOptions) -> Iterator[_Document]:
    part = _part(path)
    if path.suffix in _PROSE:
        pairs = _prose(path, options)
    elif path.suffix == ".tsv":
        pairs = ((None, text) for text in _glue(path))
    else:
        pairs = _rows(path, options)
    for number, (title, text) in enumerate(pairs):
        yield _Document(f"{name}#{number}", title, text.strip(), part)


def _prose(path: Path, options: CorpusOptions) -> Iterator[tuple[str | None, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    headed = any(_HEADING.fullmatch(line) for line in text.splitlines())
    if options.unit == "paragraph":
        yield from ((None, paragraph) for paragraph in re.split(r"\n\s*\n", text))
    elif options.unit == "heading" or (options.unit == "auto" and headed):
        title: str | None = None
        lines: list[str] = []
        for line in text.splitlines():
            heading = _HEADING.fullmatch(line)
            if heading is None:
                lines.append(line)
                continue
            yield title, "\n".join(lines)
            title, lines = heading.group(1), []
        yield title, "\n".join(lines)
    else:
        yield None, text


def _rows(path: Path, options: CorpusOptions) -> Iterator[tuple[str | None, str]]:
    source = read_any(path)
    texts = source.strings(options.text).to_pylist()  # names the columns there are
    titles = [None] * len(texts)
    if options.title in source.names:
        titles = source.strings(options.title).to_pylist()
    yield from ((title, text or "") for title, text in zip(titles, texts, strict=True))


def _glue(path: Path) -> Iterator[str]:
    """Sentences of a GLUE task, unquoted as they are written."""
    with path.open(encoding="utf-8-sig") as lines:
        head = lines.readline().rstrip("\n").split("\t")
    if any(name in _SENTENCES for name in head):
        table = read_text(path, RAW_TSV, head)
        columns = [name for name in head if name in _SENTENCES]
        start = 1
    elif len(head) == len(_COLA):  # CoLA has no header
        table, columns, start = read_text(path, RAW_TSV, _COLA), ["sentence"], 0
    else:
        raise DataError(f"{path}: no column {', '.join(_SENTENCES)} in {', '.join(head)}")
    for column in columns:
        yield from (text or "" for text in table.strings(column).to_pylist()[start:])
