"""The knowledge store: texts under the hash of what they depend on, and who has which when.

    DIR/knowledge.json                       format
    DIR/texts/part-NNNNNN.parquet            TEXTS, appended; a key occurs once
    DIR/date=YYYY-MM-DD/knowledge.parquet    BOUND: K_u of that day, of events before it
    DIR/requests/knowledge.parquet           BOUND with request_id: K_u up to each request
    DIR/{date=..,requests}/manifest.json     `Bound`
    DIR/.lock                                held by the one writer

Renaming a part, or one of the dated folders, into its place is its commit.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from raysys.data.dataset import part_name
from raysys.data.files import new_folder, sha256_file, standing, write_text
from raysys.errors import DataError
from raysys.llm.parts import part_number, replaced

HEADER, MANIFEST, TABLE = "knowledge.json", "manifest.json", "knowledge.parquet"
REQUESTS = "requests"

TEXTS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),  # Knowledge as JSON
        pa.field("backend", pa.string(), nullable=False),  # which wrote the text
        ("fallback", pa.string()),  # why it is the template's
        pa.field("claims", pa.int32(), nullable=False),
        pa.field("dropped", pa.int32(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
    ]
)
BOUND = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        ("request_id", pa.string()),
        pa.field("key", pa.string(), nullable=False),
        pa.field("cold", pa.bool_(), nullable=False),  # no events: the text says nothing
        pa.field("events", pa.int64(), nullable=False),  # known by then; at most S are told
        ("last_ts", pa.int64()),  # of the newest of them, µs UTC
    ]
)


@dataclass(frozen=True)
class TextRow:
    """A row of TEXTS."""

    key: str
    text: str
    record: str
    backend: str
    fallback: str | None
    claims: int
    dropped: int
    tokens: int


class Bound(BaseModel):
    """`manifest.json` of a dated folder. salt: fingerprint of the salt of its pseudonyms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    data_card_id: str
    options: dict[str, Any]
    salt: str
    users: int
    sha256: str


class KnowledgeStore:
    """A store, opened for reading.

    Raises:
        DataError: no knowledge store, or one of another format.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            header = json.loads((self.path / HEADER).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is no knowledge store ({HEADER} is missing or damaged); build one with: "
                "raysys build hkfr-knowledge --data DIR --out DIR"
            ) from error
        if header != {"format": 1}:
            raise DataError(f"{self.path / HEADER}: of another format; build the store again")

    def texts(self, columns: list[str] | None = None) -> pa.Table:
        """All rows of TEXTS."""
        empty = pa.schema([TEXTS.field(name) for name in columns or TEXTS.names]).empty_table()
        return pa.concat_tables([empty, *(self.part(file, columns) for file in self.parts())])

    def parts(self) -> list[Path]:
        """The files of TEXTS, oldest first."""
        return sorted((self.path / "texts").glob("part-*.parquet"))

    def part(self, file: Path, columns: list[str] | None = None) -> pa.Table:
        """Rows of one of `parts`."""
        return _read(file, pa.schema([TEXTS.field(name) for name in columns or TEXTS.names]))

    def dates(self) -> list[date]:
        """The days there is knowledge of, ascending."""
        names = {path.name for path in self.path.glob("date=*")}
        # What a killed writer was about to replace.
        names |= {path.stem.removeprefix(".") for path in self.path.glob(".date=*.old")}
        return sorted(date.fromisoformat(name.removeprefix("date=")) for name in names)

    def bound(self, name: date | Literal["requests"]) -> tuple[Bound, pa.Table]:
        """Manifest and BOUND rows of a day, or of the requests.

        Raises:
            DataError: there is none, or it is damaged.
        """
        folder = standing(self.path / _folder(name))
        try:
            manifest = Bound.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(f"{folder}: missing or damaged; build it again") from error
        if not (folder / TABLE).is_file() or sha256_file(folder / TABLE) != manifest.sha256:
            raise DataError(f"{folder / TABLE}: not what {MANIFEST} says; build it again")
        return manifest, _read(folder / TABLE, BOUND)

    def has_requests(self) -> bool:
        """Whether there is knowledge up to each request."""
        return standing(self.path / REQUESTS).is_dir()


class StoreWriter:
    """The one writer of a store, which is made if there is none::

        with StoreWriter(path) as writer:
            if key not in writer: writer.append([row])
            writer.bind(day, rows, ...)

    What `append` has committed stays, whatever happens afterwards.

    Raises:
        DataError: another process is writing, or the folder holds something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock", timeout=0)

    def __enter__(self) -> "StoreWriter":
        if self.path.is_dir() and not (self.path / HEADER).exists():
            held = [file for file in self.path.iterdir() if file.name != ".lock"]
            if held:
                raise DataError(f"{self.path} holds other files; choose another --out")
        (self.path / "texts").mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise DataError(
                f"{self.path}: another process is writing this knowledge store; wait for it to end"
            ) from error
        try:
            self._tidy()
            if not (self.path / HEADER).exists():
                write_text(self.path / HEADER, '{"format": 1}\n')
            self._keys = set(KnowledgeStore(self.path).texts(["key"])["key"].to_pylist())
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def append(self, rows: Sequence[TextRow]) -> None:
        """Commit the rows whose keys the store lacks, as one part.

        Raises:
            StorageFullError: the disk is full; earlier parts are kept.
        """
        new = {row.key: row for row in rows if row.key not in self._keys}
        if not new:
            return
        table = pa.Table.from_pylist([asdict(row) for row in new.values()], TEXTS)
        parts = sorted((self.path / "texts").glob("part-*.parquet"))
        number = part_number(parts[-1].with_suffix("")) + 1 if parts else 0
        with replaced(self.path / "texts" / part_name(number)) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        self._keys |= new.keys()

    def bind(
        self,
        name: date | Literal["requests"],
        rows: Sequence[dict[str, Any]],
        *,
        data_card_id: str,
        options: dict[str, Any],
        salt: str,
    ) -> None:
        """Say which text each user has on a day, or at each request; replaces what was there."""
        with new_folder(self.path / _folder(name), overwrite=True) as scratch:
            pq.write_table(
                pa.Table.from_pylist(list(rows), BOUND), scratch / TABLE, compression="zstd"
            )
            manifest = Bound(
                name=str(name),
                data_card_id=data_card_id,
                options=options,
                salt=salt,
                users=len({row["user_id"] for row in rows}),
                sha256=sha256_file(scratch / TABLE),
            )
            (scratch / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")

    def _tidy(self) -> None:
        """Delete what a writer that was killed left behind."""
        for leftover in (self.path / "texts").glob(".*.tmp"):
            leftover.unlink()
        for leftover in (*self.path.glob(".date=*"), *self.path.glob(f".{REQUESTS}.*")):
            if leftover.suffix != ".old":
                shutil.rmtree(leftover)


def _folder(name: date | str) -> str:
    return f"date={name.isoformat()}" if isinstance(name, date) else name


def _read(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.ParquetFile(file).read(schema.names).cast(schema)
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{file}: damaged ({error}); delete it and build again: only its texts are made anew"
        ) from error
