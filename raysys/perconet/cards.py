"""Personas click by click, and the card that shows one to its user (§7)."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from raysys.data.contexts import FIRST
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.errors import ConfigError
from raysys.news.entities import EntityTable
from raysys.perconet.config import PersonaOptions


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CardParams(_Frozen):
    """How prominence was counted."""

    K: int
    half_life: float
    idf: bool


class CardEntity(_Frozen):
    """An entity of the persona: its share, and the news behind it, newest first."""

    id: str
    label: str | None
    type: str | None
    weight: float
    clicks: tuple[str, ...]
    last: str


class PersonaCard(_Frozen):
    """What a model believes of a user, for him to read.

    as_of: UTC time of the newest click, null where it is not known; model: id of the run; fallback:
    there is no entity, so that the ranker does without a persona.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    schema_: Literal["persona/1"] = Field("persona/1", alias="schema")
    user: str
    as_of: str | None
    model: str
    n_clicks: int
    params: CardParams
    entities: tuple[CardEntity, ...]
    fallback: bool


class PersonaTally:
    """f_u(e) of one user, brought up to date click by click: all grow older by γ, the newest is
    added, the one that leaves the window of L_p is taken away.

    hidden: ids of entities that do not count.

    Raises:
        ConfigError: learned, even or placebo prominence, which are no sums over clicks.
    """

    def __init__(
        self, options: PersonaOptions, table: EntityTable, hidden: Iterable[str] = ()
    ) -> None:
        kind = options.prominence
        if kind in ("learned", "even") or options.placebo is not None:
            raise ConfigError(f"persona.prominence={kind} cannot be kept click by click")
        self.options, self.table = options, table
        self._skipped = {0, *(table.row(name) for name in hidden)}
        self._idf, self._sure = kind in ("all", "idf"), kind in ("all", "confidence")
        decays = kind in ("all", "recency")
        self._gamma = 2.0 ** (-1.0 / options.half_life) if decays else 1.0
        self.clicks: deque[int] = deque()  # catalogue rows, newest first
        self._f: Counter[int] = Counter()
        self._named: Counter[int] = Counter()

    def click(self, row: int) -> None:
        """The user has clicked the news in a catalogue row."""
        for entity in self._f:
            self._f[entity] *= self._gamma
        self.clicks.appendleft(row)
        self._add(row, 1.0, 1)
        if len(self.clicks) > self.options.clicks:
            self._add(self.clicks.pop(), -(self._gamma**self.options.clicks), -1)

    def weights(self) -> dict[int, float]:
        """Entity row → π, most prominent first, K at most."""
        best = sorted(self._f.items(), key=lambda pair: (-pair[1], pair[0]))[: self.options.size]
        total = sum(f for _, f in best)
        return {entity: f / total for entity, f in best}

    def behind(self, entity: int) -> list[int]:
        """Catalogue rows of the clicks that name the entity, newest first."""
        return [row for row in self.clicks if entity in self.table.news[row]]

    def _add(self, row: int, sign: float, count: int) -> None:
        table = self.table
        for entity, sure in zip(table.news[row].tolist(), table.confidence[row], strict=True):
            if entity in self._skipped:
                continue
            part = float(table.idf[entity]) if self._idf else 1.0
            self._f[entity] += sign * part * (float(sure) if self._sure else 1.0)
            self._named[entity] += count
            if self._named[entity] == 0:
                # What is left is rounding.
                del self._f[entity], self._named[entity]


@dataclass(frozen=True)
class Cards:
    """Writes the cards of a ranker's users.

    model: id of the run; ids: of the catalogue's items.

    Raises:
        ConfigError: see `PersonaTally`.
    """

    options: PersonaOptions
    table: EntityTable
    model: str
    ids: pa.Array
    histories: Histories

    def __post_init__(self) -> None:
        PersonaTally(self.options, self.table)  # refuses before anybody asks for a card

    def of(
        self,
        user: str,
        row: int,
        hidden: Iterable[str] = (),
        since: int | None = None,
        recent: Sequence[tuple[int, int]] = (),
        now: int | None = None,
    ) -> PersonaCard:
        """The card of a user.

        row: of his history, −1 for none. hidden: entities that do not count. since: µs UTC;
        clicks before it, and those without a time, do not count. recent: (catalogue row, µs UTC)
        of clicks that the history does not have, oldest first. now: µs UTC, from which the age of
        clicks is counted where retention is limited; by default the newest click.
        """
        tally = PersonaTally(self.options, self.table, hidden)
        past = self.histories
        start, end = (int(past.start[row]), int(past.start[row + 1])) if row >= 0 else (0, 0)
        first = max(start, end - self.options.clicks)
        clicks = list(zip(past.item[first:end].tolist(), past.ts[first:end].tolist(), strict=True))
        clicks += recent
        newest = max((ts for _, ts in clicks), default=UNKNOWN_TS)
        oldest = UNKNOWN_TS if since is None else since
        days = self.options.retention_days
        if days is not None and newest != UNKNOWN_TS:
            counted = newest if now is None else now
            oldest = max(oldest, counted - round(days * 86_400e6))
        # A stable sort leaves those without a time before all others, in their order.
        for item, ts in sorted(clicks, key=lambda click: click[1]):
            # Without a time a click has no age, but it may be one that is to be forgotten.
            if ts >= oldest or (ts == UNKNOWN_TS and since is None):
                tally.click(item)
        known = newest != UNKNOWN_TS and len(tally.clicks) > 0
        as_of = datetime.fromtimestamp(newest / 1e6, UTC).isoformat() if known else None
        return card_of(tally, user, self.model, self.ids, as_of)


def card_of(
    tally: PersonaTally, user: str, model: str, ids: pa.Array, as_of: str | None
) -> PersonaCard:
    """The card of a user; ids: of the catalogue's items."""
    table, options = tally.table, tally.options
    entities = []
    for entity, weight in tally.weights().items():
        clicks = [ids[row - FIRST].as_py() for row in tally.behind(entity)]
        entities.append(
            CardEntity(
                id=table.ids[entity - 1],
                label=table.labels[entity - 1] or None,
                type=table.types[entity - 1] or None,
                weight=weight,
                clicks=tuple(clicks),
                last=clicks[0],
            )
        )
    kind = options.prominence
    return PersonaCard(
        user=user,
        as_of=as_of,
        model=model,
        n_clicks=len(tally.clicks),
        params=CardParams(K=options.size, half_life=options.half_life, idf=kind in ("all", "idf")),
        entities=tuple(entities),
        fallback=not entities,
    )
