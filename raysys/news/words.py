"""Words of news as numbers, for encoders that read words instead of frozen sentence vectors."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from raysys.data.columns import ColumnFolder
from raysys.data.contexts import FIRST
from raysys.data.features import training_item_counts
from raysys.data.prepared import Prepared
from raysys.errors import ArtifactError, ConfigError, DataError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]
PADDING, OTHER = 0, 1  # rows before those of words
_FOLDER = "words"
_WORD = re.compile(r"\w+(?:['’]\w+)*|[?!$%]")


class WordOptions(BaseModel):
    """Which words are read.

    pretrained: file of word vectors as GloVe has them, a line a word: `word number number …`, of
    `width` numbers; left out, vectors are learned from nothing. title, abstract: so many words of
    it at most. min_count: rarer words of the training news are one unknown word. width: of word
    vectors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pretrained: str | None = None
    title: Count = 30
    abstract: Count = 50
    min_count: Count = 2
    width: Count = 300


@dataclass(frozen=True)
class WordTable:
    """V words in rows 2..; tokens: field -> [2 + N, M] rows of the words of each catalogue row, 0
    behind the last."""

    words: list[str]
    tokens: dict[str, Ints]

    def __len__(self) -> int:
        """V."""
        return len(self.words)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words, OTHER + 1)}

    def read(self, texts: list[str | None], most: int) -> Ints:
        """[2 + N, most] rows of the words of N texts."""
        out = np.zeros((FIRST + len(texts), most), np.int64)
        for row, text in enumerate(texts, FIRST):
            found = [self._rows.get(word, OTHER) for word in words_of(text)[:most]]
            out[row, : len(found)] = found
        return out

    def save(self, snapshot: Path) -> None:
        """Write as a folder of mapped columns."""
        columns = ColumnFolder(snapshot / _FOLDER)
        columns.write("words", pa.array(self.words, pa.string()))
        for name, values in self.tokens.items():
            columns.write(name, values)

    @classmethod
    def open(cls, snapshot: Path, fields: tuple[str, ...], count: int) -> "WordTable":
        """Read what `save` wrote, for a model of `count` words.

        Raises:
            ArtifactError: another table.
        """
        columns = ColumnFolder(snapshot / _FOLDER)
        words = columns.read_strings("words").to_pylist()
        if len(words) != count:
            raise ArtifactError(f"{snapshot}: {len(words)} words, the model has {count}")
        return cls(words, {name: np.array(columns.read(name)) for name in fields})


def words_of(text: str | None) -> list[str]:
    """Words in lower case, NFKC; single marks that news writers use stand alone."""
    return _WORD.findall(unicodedata.normalize("NFKC", text or "").lower())


def fit_words(data: Prepared, options: WordOptions, fields: tuple[str, ...]) -> WordTable:
    """Words of the news that training has met, and how all news are written in them.

    fields: of title, abstract, title_abstract.

    Raises:
        ConfigError: training has met no word often enough.
    """
    texts = _texts(data, fields)
    met = training_item_counts(data)[FIRST:] > 0
    counts: Counter[str] = Counter()
    for column in texts.values():
        for text, seen in zip(column, met.tolist(), strict=True):
            if seen:
                counts.update(words_of(text))
    words = sorted(word for word, count in counts.items() if count >= options.min_count)
    if not words:
        raise ConfigError(
            f"{data.dataset.path}: no word occurs {options.min_count} times in the training news; "
            "lower words.min_count, or use encoder=frozen"
        )
    return _written(WordTable(words, {}), texts, options)


def renewed_words(known: WordTable, data: Prepared, options: WordOptions) -> WordTable:
    """The same words in the news of another data set."""
    return _written(known, _texts(data, tuple(known.tokens)), options)


def _written(
    table: WordTable, texts: dict[str, list[str | None]], options: WordOptions
) -> WordTable:
    most = {
        "title": options.title,
        "abstract": options.abstract,
        "title_abstract": options.title + options.abstract,
    }
    tokens = {name: table.read(column, most[name]) for name, column in texts.items()}
    return replace(table, tokens=tokens)


def _texts(data: Prepared, fields: tuple[str, ...]) -> dict[str, list[str | None]]:
    items = data.dataset.table("items", ["title", "abstract"])
    title, abstract = items["title"].to_pylist(), items["abstract"].to_pylist()
    both = [f"{t or ''} {a or ''}" for t, a in zip(title, abstract, strict=True)]
    every: dict[str, list[str | None]] = {
        "title": title, "abstract": abstract, "title_abstract": [*both],
    }  # fmt: skip
    return {name: every[name] for name in fields}


def pretrained_vectors(table: WordTable, options: WordOptions) -> Floats | None:
    """[2 + V, width] of the file `options.pretrained`; zeros for words it lacks, None without one.

    Raises:
        DataError: missing, a line that is no vector, or one of another width; names the line.
    """
    if options.pretrained is None:
        return None
    path = Path(options.pretrained)
    wanted = {word: row for row, word in enumerate(table.words, OTHER + 1)}
    out = np.zeros((OTHER + 1 + len(table), options.width), np.float32)
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                # Some words of the big files hold blanks.
                word, *values = line.rstrip("\n").rsplit(" ", options.width)
                if len(values) != options.width:
                    raise DataError(
                        f"{path} line {number}: {len(values)} numbers where words.width is "
                        f"{options.width}"
                    )
                if word in wanted:
                    vector = np.array(values, np.float32)
                    if not np.isfinite(vector).all():
                        raise ValueError("one of them is infinite or none")
                    out[wanted[word]] = vector
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); it is words.pretrained"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} after line {max(0, number - 1)}: no word and numbers in UTF-8 text ({error})"
        ) from error
    if not out.any():
        raise DataError(f"{path}: has a vector of none of the {len(table):,} words of the news")
    return out
