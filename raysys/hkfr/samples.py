"""The folder of instruction samples as the tuning stage reads it (§2.3).

samples.parquet    sample_id, user_id, ts, task, knowledge, instruction, answer, split
vocabulary.json    {"category": [...], "merchant": [...]}: all candidates of a task
manifest.json      data_card_id of the data set it was made of, sha256 of each file
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from raysys.data.files import sha256_file
from raysys.data.manifest import DataCard
from raysys.data.schema import SPLITS
from raysys.data.split import stable_hash
from raysys.errors import DataError

SAMPLES, VOCABULARY, MANIFEST = "samples.parquet", "vocabulary.json", "manifest.json"
SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        ("ts", pa.int64()),  # of the request, µs UTC
        pa.field("task", pa.string(), nullable=False),
        pa.field("knowledge", pa.string(), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
_TEXTS = tuple(field.name for field in SCHEMA if not field.nullable)
_AGAIN = "build the folder again"


class Sample(NamedTuple):
    """(K_u, instruction, output), and what the sample is asked about."""

    task: str
    knowledge: str
    instruction: str
    answer: str


class SamplesManifest(BaseModel):
    """What of `manifest.json` is read here; sha256 by file name."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    data_card_id: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class Samples:
    """An opened folder. vocabulary: names of all candidates by task."""

    path: Path
    manifest: SamplesManifest
    vocabulary: dict[str, tuple[str, ...]]

    @classmethod
    def open(cls, path: Path | str) -> "Samples":
        """Open and check a folder.

        Raises:
            DataError: a file is missing or damaged; names the file, and the row and column of the
                first bad value.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"{path}: no such folder of instruction samples")
        manifest = _read(path / MANIFEST, TypeAdapter(SamplesManifest))
        for name in (SAMPLES, VOCABULARY):
            file = path / name
            if not file.is_file():
                raise DataError(f"{file}: missing; {_AGAIN}")
            if manifest.sha256.get(name) != sha256_file(file):
                raise DataError(
                    f"{file}: damaged, its sha256 is not the one of {MANIFEST}; {_AGAIN}"
                )
        vocabulary = _read(path / VOCABULARY, TypeAdapter(dict[str, tuple[str, ...]]))
        for task, names in vocabulary.items():
            name, times = Counter(names).most_common(1)[0] if names else ("", 0)
            if times > 1 or "" in names:
                fault = f"{name!r} is there twice" if times > 1 else "a name is empty"
                raise DataError(f"{path / VOCABULARY}: {task}: {fault}; {_AGAIN}")
        found = cls(path, manifest, vocabulary)
        _check(path / SAMPLES, found.table)
        return found

    @cached_property
    def table(self) -> pa.Table:
        """All samples."""
        file = self.path / SAMPLES
        try:
            return pq.read_table(file).combine_chunks()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: no Parquet file ({error}); {_AGAIN}") from error

    @property
    def card(self) -> DataCard:
        """What a model that is tuned on these samples was trained on."""
        splits = self.table["split"].value_counts().to_pylist()
        return DataCard(
            dataset=f"samples-of-{self.manifest.data_card_id}",
            version="1",
            reader="hkfr/samples@1",
            source_files=dict(self.manifest.sha256),
            label_rule="an attribute of the user's next order",
            split_rule="of the samples",
            group_key="user",
            history_cut="knowledge is of earlier events",
            counts={entry["values"]: entry["counts"] for entry in splits},
            licence=f"that of the data set with card {self.manifest.data_card_id}",
        )

    def of(self, split: str, limit: int | None = None, task: str | None = None) -> list[Sample]:
        """The samples of a split, and of one task if it is named, in the order of the table.

        limit: at most so many, chosen by a hash of their ids.
        """
        wanted = pc.equal(self.table["split"], split)
        if task is not None:
            wanted = pc.and_(wanted, pc.equal(self.table["task"], task))
        table = self.table.filter(wanted)
        if limit is not None and len(table) > limit:
            drawn = np.argsort(_hash(table), kind="stable")[:limit]
            table = table.take(np.sort(drawn))
        return _samples(table)

    def lessons(self, task: str, others: float) -> list[Sample]:
        """The training samples of a task, and a share of those of the others, in their order.

        others: the share, chosen by a hash of their ids, a smaller one out of a larger one.
        """
        table = self.table.filter(pc.equal(self.table["split"], "train"))
        mine = pc.equal(table["task"], task).to_numpy()
        drawn = _hash(table) <= others * 2.0**64
        return _samples(table.filter(pa.array(mine | drawn)))


def _hash(table: pa.Table) -> npt.NDArray[np.uint64]:
    return stable_hash(table["sample_id"].to_numpy(), 0)


def _samples(table: pa.Table) -> list[Sample]:
    columns = (table[name].to_pylist() for name in Sample._fields)
    return [Sample(*row) for row in zip(*columns, strict=True)]


def _read(file: Path, kind: TypeAdapter[Any]) -> Any:
    try:
        return kind.validate_python(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); {_AGAIN}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid JSON ({error}); {_AGAIN}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"{file}: {where}: {first['msg']}; {_AGAIN}") from error


def _check(file: Path, table: pa.Table) -> None:
    """Raise a DataError at the first bad column or value."""
    for name in _TEXTS:
        if name not in table.column_names:
            raise DataError(f"{file}: column {name} is missing; {_AGAIN}")
    for name in _TEXTS:
        if not pa.types.is_string(table.schema.field(name).type):
            raise DataError(f"{file}: column {name} holds no strings; {_AGAIN}")
        filled = pc.greater(pc.utf8_length(table[name]), 0).fill_null(False)
        _refuse(file, name, filled.to_numpy(), "empty")
    known = pc.is_in(table["split"], value_set=pa.array(SPLITS))
    _refuse(file, "split", known.to_numpy(), f"none of {', '.join(SPLITS)}")
    codes = table["sample_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.zeros(len(table), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    _refuse(file, "sample_id", first, "there twice")


def _refuse(file: Path, column: str, fine: npt.NDArray[np.bool_], fault: str) -> None:
    if not fine.all():
        raise DataError(
            f"{file}: row {int(np.argmin(fine)) + 1}, column {column}: {fault}; {_AGAIN}"
        )
