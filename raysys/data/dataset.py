"""The data set folder: written once, atomically; read table by table.

DIR/manifest.json
DIR/<table>/part-00000.parquet ...
DIR/truth/...                      generated worlds only; read by metrics and tests only
"""

import json
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from raysys.data.files import new_folder, sha256_file
from raysys.data.manifest import DataCard, FileEntry, Manifest, TableEntry
from raysys.data.schema import SCHEMA_VERSION, table_schemas
from raysys.errors import DataError, StorageFullError

MANIFEST = "manifest.json"


def part_name(index: int) -> str:
    """File name of part `index` of a table."""
    return f"part-{index:05d}.parquet"


def write_part(folder: Path, index: int, table: pa.Table) -> Path:
    """Write one Parquet part with the settings that make equal tables equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / part_name(index)
    # pyarrow wraps ENOSPC in an OSError that keeps its errno; `new_folder` turns it into words.
    pq.write_table(table, path, compression="zstd", row_group_size=65_536, store_schema=False)
    return path


def _file_entry(path: Path, root: Path) -> FileEntry:
    return FileEntry(
        path=path.relative_to(root).as_posix(),
        rows=pq.read_metadata(path).num_rows,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
    )


class DatasetWriter:
    """Writes tables part by part into a temporary folder; `commit` gives it its name.

    Used as a context manager::

        with DatasetWriter(out, contexts={"mealtime": "categorical"}) as writer:
            writer.write("items", table)          # one call, one part
            writer.commit(card, history_behaviours=("click",))

    Leaving the block without `commit`, or by an error, leaves nothing behind.
    Parts of `events` must come sorted by (user_id, seq), parts in user order.
    """

    def __init__(
        self, out: Path | str, *, contexts: dict[str, str] | None = None, overwrite: bool = False
    ) -> None:
        self.out = Path(out)
        self.contexts = dict(contexts or {})
        self.schemas = table_schemas(self.contexts)
        self._folder = new_folder(self.out, overwrite=overwrite)
        self._parts: dict[str, int] = {}
        self._committed = False

    def __enter__(self) -> "DatasetWriter":
        self.root = self._folder.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool | None:
        if kind is None and not self._committed:
            error = DataError(f"the data set {self.out} was never committed")
            self._folder.__exit__(DataError, error, None)
            raise error
        return self._folder.__exit__(kind, error, trace)

    def write(self, table: str, data: pa.Table) -> None:
        """Append `data` as the next part of `table`; columns are cast to the table's schema."""
        schema = self.schemas[table]
        index = self._parts.get(table, 0)
        missing = [name for name in schema.names if name not in data.column_names]
        for name in missing:
            if not schema.field(name).nullable:
                raise DataError(f"table {table}: column {name} is missing")
            data = data.append_column(name, pa.nulls(len(data), schema.field(name).type))
        unknown = sorted(set(data.column_names) - set(schema.names))
        if unknown:
            raise DataError(f"table {table}: unknown columns {', '.join(unknown)}")
        write_part(self.root / table, index, data.select(schema.names).cast(schema))
        self._parts[table] = index + 1

    def part_folder(self, table: str) -> Path:
        """Where parallel writers put `part-NNNNN.parquet` files of `table` by `write_part`."""
        folder = self.root / table
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(
        self,
        card: DataCard,
        *,
        history_behaviours: tuple[str, ...] = (),
        kind: Literal["recommendation", "corpus"] = "recommendation",
        candidates: Literal["logged", "built"] = "logged",
        world: dict[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest; the row counts are added to the card."""
        tables: dict[str, TableEntry] = {}
        for name in sorted(self.schemas):
            folder = self.root / name
            if folder.is_dir():
                files = tuple(_file_entry(p, self.root) for p in sorted(folder.glob("*.parquet")))
                tables[name] = TableEntry(rows=sum(f.rows for f in files), files=files)
        counts = {name: entry.rows for name, entry in tables.items()}
        card = card.model_copy(update={"counts": {**counts, **card.counts}})
        manifest = Manifest.model_validate(
            dict(
                kind=kind,
                data_card_id=card.id,
                data_card=card,
                history_behaviours=history_behaviours,
                contexts=self.contexts,
                tables=tables,
                candidates=candidates,
                world=world or {},
            )
        )
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (self.root / MANIFEST).write_text(text + "\n", encoding="utf-8")
        self._committed = True
        return manifest


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of a data set folder.

    Raises:
        DataError: missing, damaged, or of another schema version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} is no data set folder: {MANIFEST} is missing")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {version}, this raysys reads version {SCHEMA_VERSION}; "
            "make or import the data set again with this version"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}") from error


def broken_parts(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(part, what is wrong with it) for every listed part that is missing or of another size."""
    for entry in manifest.tables.values():
        for file in entry.files:
            part = folder / file.path
            if not part.is_file():
                yield file.path, "missing, though the manifest lists it"
            elif (size := part.stat().st_size) != file.bytes:
                yield (
                    file.path,
                    f"{size} bytes where the manifest says {file.bytes}; the file was cut or "
                    "changed: make or import it again",
                )


class Dataset:
    """An opened data set folder.

    Opening reads only the manifest; `raysys.data.check` validates contents.

    Raises:
        DataError: no or damaged manifest, another schema version, a missing or resized part.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        for part, fault in broken_parts(self.path, self.manifest):
            raise DataError(f"{self.path / part}: {fault}")
        self.schemas = table_schemas(dict(self.manifest.contexts))

    def with_history(self, behaviours: Sequence[str]) -> "Dataset":
        """The same data set with these behaviours as its histories: a manifest, and so a cache,
        of its own. Only where events have times: `history_end` counts the stated behaviours.
        """
        found = copy(self)
        told = {"history_behaviours": tuple(behaviours)}
        found.manifest = self.manifest.model_copy(update=told)
        return found

    @property
    def card(self) -> DataCard:
        """The data card of the manifest."""
        return self.manifest.data_card

    def has(self, table: str) -> bool:
        """Whether the folder holds `table` with at least one part."""
        return table in self.manifest.tables

    def files(self, table: str) -> list[Path]:
        """Parts of `table` in order; empty if it has none."""
        entry = self.manifest.tables.get(table)
        return [self.path / file.path for file in entry.files] if entry else []

    def parts(self, table: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The table part by part, so that memory stays bounded by one part."""
        for path in self.files(table):
            try:
                data = pq.read_table(path, columns=columns, partitioning=None)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{path}: unreadable Parquet file ({error})") from error
            names = columns or self.schemas[table].names
            try:
                yield data.select(names).cast(
                    pa.schema([self.schemas[table].field(name) for name in names])
                )
            except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
                raise DataError(f"{path}: columns do not fit table {table} ({error})") from error

    def table(self, table: str, columns: list[str] | None = None) -> pa.Table:
        """The whole table; empty with the right schema if the folder has none."""
        parts = list(self.parts(table, columns))
        schema = self.schemas[table]
        names = columns or schema.names
        empty = pa.schema([schema.field(name) for name in names]).empty_table()
        return pa.concat_tables(parts) if parts else empty


__all__ = ["Dataset", "DatasetWriter", "StorageFullError", "part_name", "write_part"]
