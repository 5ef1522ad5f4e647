"""The YAML that describes any log: which column means what."""

import glob
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from raysys.data.loaders.local_time import Part
from raysys.data.loaders.negatives import NegativeRule
from raysys.data.manifest import known_behaviours
from raysys.data.split import TimeCut
from raysys.errors import DataError
from raysys.options import load_yaml, validate


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class TimeColumn(_Frozen):
    """`form`: iso, s, ms, us or a strptime pattern; `timezone` of local times, and of contexts."""

    column: str
    form: str = "iso"
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"no time zone {value!r}; write it like Europe/Berlin") from error
        return value


def _time(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


Time = Annotated[TimeColumn, BeforeValidator(_time)]


def _text_keys(value: object) -> object:
    # YAML reads `1: click` as a number, the column is compared as text.
    return (
        {str(key): meaning for key, meaning in value.items()} if isinstance(value, dict) else value
    )


class BehaviourColumn(_Frozen):
    """Either one behaviour for all rows, or a column and what its values mean.

    Values that are not listed are an error, or left out with `others: drop`.
    """

    constant: str | None = None
    column: str | None = None
    values: Annotated[dict[str, str], BeforeValidator(_text_keys)] = Field(default_factory=dict)
    others: Literal["fail", "drop"] = "fail"

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.constant is None) == (self.column is None):
            raise ValueError("name either a column (with values) or a constant")
        known_behaviours((*self.values.values(), *filter(None, [self.constant])))
        return self


class Files(_Frozen):
    """`files`: names or patterns below --src; .csv, .tsv, .parquet, .jsonl."""

    files: Names

    def paths(self, root: Path) -> list[Path]:
        """The files, in pattern order, then by name.

        Raises:
            DataError: a pattern matches nothing.
        """
        found: list[Path] = []
        for pattern in self.files:
            matches = sorted(glob.glob(str(root / pattern)))
            if not matches:
                raise DataError(f"{root / pattern}: no such file")
            found += [Path(match) for match in matches]
        return found


class EventColumns(Files):
    """What users did."""

    user: str
    item: str
    time: Time | None = None
    behaviour: BehaviourColumn = BehaviourColumn(constant="click")
    text: str | None = None
    subject: str | None = None
    scenario: str | None = None
    value: str | None = None


class LocationColumns(_Frozen):
    """Where an item is; `area` names the place that same-area negatives share."""

    lat: str | None = None
    lon: str | None = None
    area: str | None = None


class ItemColumns(Files):
    """What can be recommended; `only` keeps rows whose column has one of the given values."""

    id: str
    only: dict[str, Names] = Field(default_factory=dict)
    kind: str | None = None  # a constant, not a column
    name: str | None = None
    title: str | None = None
    abstract: str | None = None
    text: str | None = None
    brand: str | None = None
    price: str | None = None
    category: Names = ()
    created_at: Time | None = None
    location: LocationColumns | None = None
    attributes: dict[str, str] = Field(default_factory=dict)


class ContextFeature(_Frozen):
    """A column (categorical, or numeric with bucket edges), or a part of the local time."""

    column: str | None = None
    edges: tuple[float, ...] | None = None
    part: Part | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.column is None) == (self.part is None):
            raise ValueError("name either a column or a part of the local time")
        if self.edges is not None and (
            self.part is not None or sorted(set(self.edges)) != list(self.edges)
        ):
            raise ValueError("edges belong to a column and must ascend")
        return self

    @property
    def kind(self) -> Literal["categorical", "numeric"]:
        """Numeric if there are edges."""
        return "categorical" if self.edges is None else "numeric"


class GivenLists(Files):
    """One row per request; candidates and clicks are lists, or text with a separator."""

    kind: Literal["lists"]
    id: str
    user: str
    time: Time | None = None
    candidates: str
    clicks: str
    orders: str | None = None
    separator: str = " "


class GivenRows(Files):
    """One row per candidate with its label; without `id`, user and time make the request."""

    kind: Literal["rows"]
    id: str | None = None
    user: str
    time: Time | None = None
    item: str
    click: str
    order: str | None = None
    position: str | None = None


class Derived(_Frozen):
    """Every event of a `positive` behaviour is a request; its negatives follow a stated rule.

    `lead_minutes`: how long before the positive the request is taken to be made. What happens in
    between, such as the look that leads to a purchase, is not in its history.
    """

    kind: Literal["derived"]
    positive: Names
    negatives: NegativeRule = NegativeRule()
    lead_minutes: float = Field(default=0, ge=0, allow_inf_nan=False)

    @field_validator("positive")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_behaviours(value)


class Mapping(_Frozen):
    """A whole log."""

    dataset: str
    version: str = "1"
    licence: str = "own data"
    events: EventColumns | None = None
    items: ItemColumns | None = None
    contexts: dict[str, ContextFeature] = Field(default_factory=dict)
    impressions: Annotated[GivenLists | GivenRows | Derived, Field(discriminator="kind")]
    history: Names = ()
    split: TimeCut = TimeCut()
    group_key: Literal["impression", "user"] = "user"

    @field_validator("history")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_behaviours(value)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        shown = self.impressions
        if isinstance(shown, Derived):
            if self.events is None:
                raise ValueError("derived impressions need an events section")
        elif self.events is not None and (self.events.time is None or shown.time is None):
            raise ValueError(
                "events beside given impressions need times on both: nothing else says which "
                "events came first. Without times leave events out; clicks become the history"
            )
        if not self.timed and isinstance(shown, Derived) and shown.lead_minutes:
            raise ValueError("lead_minutes needs a time column")
        if not self.timed and any(feature.part for feature in self.contexts.values()):
            raise ValueError("parts of the local time need a time column")
        return self

    @property
    def time(self) -> TimeColumn | None:
        """When requests are made; None if the log does not say."""
        shown = self.impressions
        source = self.events if isinstance(shown, Derived) else shown
        return source.time if source else None

    @property
    def zone(self) -> str:
        """Time zone of the log's days."""
        return self.time.timezone if self.time else "UTC"

    @property
    def timed(self) -> bool:
        """Whether requests have times."""
        return self.time is not None


def read_mapping(path: Path) -> Mapping:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no YAML, an unknown key (the nearest is named) or a bad value.
    """
    return validate(Mapping, load_yaml(path), str(path))
