"""Entities for news that come without: names of a gazetteer, looked up in title and abstract."""

import hashlib
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.loaders.reading import read_any
from raysys.data.schema import ITEMS
from raysys.errors import DataError

_WORD = re.compile(r"\w+")
_FIELDS = ("title", "abstract")
Entity = dict[str, Any]


@dataclass
class Gazetteer:
    """Names in words -> entity. A name of two entities is neither's; `ambiguous` has those."""

    names: dict[tuple[str, ...], Entity] = field(default_factory=dict)
    ambiguous: set[tuple[str, ...]] = field(default_factory=set)
    longest: int = 0

    def add(self, name: str, entity: Entity) -> None:
        """Another name of an entity; one without a word is passed over."""
        key = words_of(name)
        if not key or key in self.ambiguous:
            return
        known = self.names.get(key)
        if known is not None and known["id"] != entity["id"]:
            self.ambiguous.add(key)
            del self.names[key]
            return
        self.names[key] = entity
        self.longest = max(self.longest, len(key))

    @property
    def digest(self) -> str:
        """First 12 hex digits of the sha256 over names and ids."""
        told = sorted(f"{' '.join(key)}\t{entity['id']}" for key, entity in self.names.items())
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]

    def find(self, text: str | None) -> list[Entity]:
        """Entities whose names stand in the text, each once, in its order; of names that begin at
        one word the longest counts."""
        words, at = words_of(text), 0
        found: dict[str, Entity] = {}
        while at < len(words):
            for length in range(min(self.longest, len(words) - at), 0, -1):
                entity = self.names.get(words[at : at + length])
                if entity is not None:
                    found.setdefault(entity["id"], entity)
                    at += length - 1
                    break
            at += 1
        return list(found.values())


class TagReport(BaseModel):
    """What was tagged. news, tagged, named: all, those that were tagged now, and those of them in
    which a name was found; names, ambiguous: of the gazetteer; compared: news that had entities of
    the gazetteer, by which precision and recall are measured, null without such news."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    data_card_id: str
    news: int
    tagged: int
    named: int
    names: int
    ambiguous: int
    compared: int
    precision: float | None
    recall: float | None


def words_of(text: str | None) -> tuple[str, ...]:
    """Words without case, in NFKC."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text or "").casefold()))


def read_gazetteer(path: Path) -> Gazetteer:
    """Names from a CSV, TSV, JSON-lines or Parquet file with the columns id, name and, if it has
    them, label and type; an entity has a row for each of its names. Or from the entities that the
    news of a data set folder name.

    Raises:
        DataError: unreadable, a column is missing, or no name is in it.
    """
    gazetteer = Gazetteer()
    for name, entity in _folder(path) if path.is_dir() else _rows(path):
        gazetteer.add(name, entity)
    if not gazetteer.names:
        raise DataError(f"{path}: no name that belongs to one entity alone")
    return gazetteer


def _rows(path: Path) -> Iterator[tuple[str, Entity]]:
    source = read_any(path)
    columns = [source.required("id"), source.required("name")]
    columns += [
        source.strings(name) if name in source.names else pa.nulls(len(source), pa.string())
        for name in ("label", "type")
    ]
    for id_, name, label, kind in zip(*(c.to_pylist() for c in columns), strict=True):
        yield name, {"id": id_, "label": label or name, "type": kind}


def _folder(path: Path) -> Iterator[tuple[str, Entity]]:
    for named in Dataset(path).table("items", ["entities"])["entities"].to_pylist():
        for entity in named or ():
            if entity["label"]:
                told = {key: entity[key] for key in ("id", "label", "type")}
                yield entity["label"], told


def tag_dataset(
    data: Path, gazetteer: Gazetteer, out: Path, *, replace: bool = False, overwrite: bool = False
) -> TagReport:
    """Write the data set `data` with entities in its news to `out`; all else stays as it is.

    replace: news that have entities lose them; else they keep them and are only compared with, so
    that the report tells how noisy the look-up is.

    Raises:
        DataError: `data` is no data set folder, or `out` exists.
    """
    dataset = Dataset(data)
    counts = dict.fromkeys(("news", "tagged", "named", "compared", "both", "given", "found"), 0)
    known = {entity["id"] for entity in gazetteer.names.values()}
    contexts: dict[str, str] = {**dataset.manifest.contexts}
    with DatasetWriter(out, contexts=contexts, overwrite=overwrite) as writer:
        for table in dataset.manifest.tables:
            for part in dataset.parts(table):
                if table == "items":
                    part = _tagged(part, gazetteer, known, replace, counts)
                writer.write(table, part)
        if (dataset.path / "truth").is_dir():
            shutil.copytree(dataset.path / "truth", writer.root / "truth")
        share = {
            "precision": _share(counts["both"], counts["found"]),
            "recall": _share(counts["both"], counts["given"]),
        }
        told = f"gazetteer {gazetteer.digest} looked up in {counts['tagged']} news"
        if counts["compared"]:
            measured = ", ".join(f"{k} {v:.3f}" for k, v in share.items() if v is not None)
            told += f"; against {counts['compared']} news with entities: {measured or 'no match'}"
        notes = {**dataset.card.notes, "tagged": told}
        manifest = writer.commit(
            dataset.card.model_copy(update={"notes": notes}),
            history_behaviours=dataset.manifest.history_behaviours,
            kind=dataset.manifest.kind,
            candidates=dataset.manifest.candidates,
            world=dataset.manifest.world,
        )
    return TagReport(
        out=str(out),
        data_card_id=manifest.data_card_id,
        news=counts["news"],
        tagged=counts["tagged"],
        named=counts["named"],
        names=len(gazetteer.names),
        ambiguous=len(gazetteer.ambiguous),
        compared=counts["compared"],
        **share,
    )


def _tagged(
    items: pa.Table, gazetteer: Gazetteer, known: set[str], replace: bool, counts: dict[str, int]
) -> pa.Table:
    rows = items.select([*_FIELDS, "entities"]).to_pylist()
    out = []
    for row in rows:
        given = row["entities"] or []
        found = list(_found(row, gazetteer))
        ids = {entity["id"] for entity in found}
        before = {entity["id"] for entity in given} & known
        counts["news"] += 1
        if before:
            counts["compared"] += 1
            counts["given"] += len(before)
            counts["found"] += len(ids)
            counts["both"] += len(before & ids)
        if replace or not given:
            counts["tagged"] += 1
            counts["named"] += bool(found)
            given = found
        out.append(given)
    place = items.schema.get_field_index("entities")
    return items.set_column(place, "entities", pa.array(out, ITEMS.field("entities").type))


def _found(row: dict[str, Any], gazetteer: Gazetteer) -> Iterable[Entity]:
    """Entities of title and abstract, each where it stands first."""
    seen: set[str] = set()
    for name in _FIELDS:
        for entity in gazetteer.find(row[name]):
            if entity["id"] not in seen:
                seen.add(entity["id"])
                yield {**entity, "confidence": 1.0, "field": name}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
