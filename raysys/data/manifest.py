"""Manifest and data card: what a data set folder says of itself."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raysys.data.schema import BEHAVIOURS, SCHEMA_VERSION


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, UTF-8: equal values give equal bytes, so that hashes are stable."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _no_floats(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError("a data card holds no floats; write numbers as integers or strings")
    if isinstance(value, dict):
        for inner in value.values():
            _no_floats(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _no_floats(inner)
    return value


def known_behaviours(value: tuple[str, ...]) -> tuple[str, ...]:
    """The behaviours as they are.

    Raises:
        ValueError: one that the schema does not have; names those it has.
    """
    unknown = sorted(set(value) - set(BEHAVIOURS))
    if unknown:
        raise ValueError(f"unknown behaviours {unknown}; known are {', '.join(BEHAVIOURS)}")
    return value


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataCard(_Frozen):
    """What results on this data depend on; two results compare only if their cards are equal.

    Counts and bounds are integers or strings: floats would make the hash depend on printing.
    """

    dataset: str
    version: str
    reader: str  # name@version of the loader or generator
    source_files: dict[str, str] = Field(default_factory=dict)  # name -> sha256
    filters: tuple[str, ...] = ()
    label_rule: str
    split_rule: str
    split_bounds: dict[str, str] = Field(default_factory=dict)
    negative_policy: str = "logged"
    negative_seed: int | None = None
    group_key: Literal["impression", "user", "session"]
    history_cut: str
    vocabularies: dict[str, str] = Field(default_factory=dict)  # name -> sha256
    counts: dict[str, int] = Field(default_factory=dict)
    time_span: tuple[str, str] | None = None
    licence: str
    notes: Annotated[dict[str, Any], AfterValidator(_no_floats)] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """First 12 hex digits of the sha256 of the canonical JSON."""
        text = canonical_json(self.model_dump(mode="json"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class FileEntry(_Frozen):
    """One Parquet part of a table."""

    path: str
    rows: int
    bytes: int
    sha256: str


class TableEntry(_Frozen):
    """One table: its parts in order."""

    rows: int
    files: tuple[FileEntry, ...]


class Manifest(_Frozen):
    """`manifest.json`: schema version, data card, row counts and checksums."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["recommendation", "corpus"] = "recommendation"
    data_card_id: str
    data_card: DataCard
    history_behaviours: Annotated[tuple[str, ...], AfterValidator(known_behaviours)] = ()
    contexts: dict[str, Literal["categorical", "numeric"]] = Field(default_factory=dict)
    tables: dict[str, TableEntry]
    # Whether the candidate lists were logged or built by the importer: a scorer that only sees
    # the list position must be useless on built lists.
    candidates: Literal["logged", "built"] = "logged"
    # Constants of a generated data set (true law, calibrated offsets); empty for real logs.
    world: dict[str, Any] = Field(default_factory=dict)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of the manifest: the key of derived caches."""
        text = canonical_json(self.model_dump(mode="json"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
