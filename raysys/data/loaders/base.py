"""What a loader is, and what it hands over."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from raysys.data.manifest import DataCard


class Options(BaseModel):
    """Base of every loader's options: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Imported:
    """Tables of one data set as a loader leaves them.

    `events` need no order and no `seq` where they have `ts`; rows without time keep their order
    and come before those with time. Items that are only referred to may be missing in `items`.
    `contexts` describes the declared features: rows of the contexts table.
    """

    events: pa.Table
    impressions: pa.Table
    items: pa.Table
    card: DataCard
    history_behaviours: tuple[str, ...]
    candidates: Literal["logged", "built"] = "logged"
    contexts: list[dict[str, Any]] = field(default_factory=list)
    users: pa.Table | None = None
    entities: pa.Table | None = None

    @property
    def context_kinds(self) -> dict[str, str]:
        """Declared context features: name -> categorical or numeric."""
        return {row["name"]: row["kind"] for row in self.contexts}


@dataclass(frozen=True)
class ImportedCorpus:
    """Texts in which nobody clicks: a set of kind `corpus`, perhaps with the catalogue they are."""

    documents: pa.Table
    card: DataCard
    items: pa.Table | None = None


O_contra = TypeVar("O_contra", bound=Options, contravariant=True)


class Loader(Protocol[O_contra]):
    """Reads one public layout.

    `load` raises DataError for bad files; `files` are the ones whose sha256 go on the card.
    """

    name: str
    version: str
    options: type[Any]

    def files(self, src: Path, options: O_contra) -> list[Path]:
        """The files that `load` will read."""
        ...

    def load(self, src: Path, options: O_contra) -> Imported | ImportedCorpus:
        """Read them."""
        ...


def categorical(name: str, values: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """A row of the contexts table for a categorical feature."""
    return {"name": name, "kind": "categorical", "values": list(values)}


def numeric(name: str, edges: list[float] | tuple[float, ...]) -> dict[str, Any]:
    """A row of the contexts table for a numeric feature with bucket edges."""
    return {"name": name, "kind": "numeric", "edges": list(edges)}
