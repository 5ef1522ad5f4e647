"""What a loader is, and what it hands over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from raysys.data.loaders.reading import nearest
from raysys.data.manifest import DataCard
from raysys.errors import ConfigError


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

    def load(self, src: Path, options: O_contra) -> Imported:
        """Read them."""
        ...


def categorical(name: str, values: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """A row of the contexts table for a categorical feature."""
    return {"name": name, "kind": "categorical", "values": list(values)}


def numeric(name: str, edges: list[float] | tuple[float, ...]) -> dict[str, Any]:
    """A row of the contexts table for a numeric feature with bucket edges."""
    return {"name": name, "kind": "numeric", "edges": list(edges)}


M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], values: Mapping[str, Any], label: str) -> M:
    """`values` as a `model`; `label` begins the message of an error.

    Raises:
        ConfigError: an unknown key (the nearest known is named) or a bad value.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            hint = nearest(str(fault["loc"][-1]), _keys_at(model, fault["loc"][:-1]))
            raise ConfigError(f"{label}: unknown key {where!r}{hint}") from error
        message = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{label}: {where + ': ' if where else ''}{message}") from error


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that `path` leads to; unions give the fields of all members."""
    models = [model]
    for step in path:
        inner = [m.model_fields[step].annotation for m in models if step in m.model_fields]
        models = [m for kind in inner for m in _models_in(kind)] or models
    return sorted({name for m in models for name in m.model_fields})


def _models_in(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [m for part in get_args(kind) for m in _models_in(part)]
