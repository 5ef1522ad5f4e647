"""K_u of one user at the moment of a request, from a store that goes on growing (§2.2, §7)."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.feature_table import DAYS, date_of, local_day
from raysys.data.files import standing
from raysys.errors import DataError
from raysys.hkfr.claims import folded
from raysys.hkfr.knowledge import NOTHING, Knowledge
from raysys.hkfr.store import MANIFEST, KnowledgeStore
from raysys.hkfr.words import sentences

_NIGHTS = 2  # kept in memory: the newest, and one that somebody asks for besides


class _Bound(NamedTuple):
    """Which text a user has on a day; see `BOUND` of the store."""

    key: str
    cold: bool
    events: int
    last_ts: int | None


@dataclass(frozen=True)
class KnownUser:
    """What is known of a user.

    day: of the knowledge, which is of events before it; None where there is none. events: how many
    were known; last_ts: of the newest of them, µs UTC. text: for prompts; record: the same as
    statements; backend: who wrote it, fallback: why it is the template's instead.
    """

    day: date | None = None
    events: int = 0
    last_ts: int | None = None
    text: str = NOTHING
    record: Knowledge = field(default_factory=Knowledge)
    backend: str | None = None
    fallback: str | None = None

    @property
    def cold(self) -> bool:
        """Whether nothing is known."""
        return not self.events

    def without(self, names: Collection[str]) -> "KnownUser":
        """Without the statements, and the sentences of the prose, that name one of these."""
        if not names or self.cold:
            return self
        prose, *lines = self.text.split("\n") if self.record.prose else ["", *self.text.split("\n")]
        record = Knowledge(
            facts=tuple(s for s in self.record.facts if not names_any(s.text, names)),
            interests=tuple(s for s in self.record.interests if not names_any(s.text, names)),
            prose=_spared(self.record.prose, names),
        )
        kept = [_spared(prose, names), *(line for line in lines if not names_any(line, names))]
        text = "\n".join(filter(None, kept)) or NOTHING
        return replace(self, text=text, record=record)


def names_any(text: str, names: Iterable[str]) -> bool:
    """Whether the text holds one of these names, however they are written."""
    words = folded(text)
    return any(folded(name) in words for name in names)


class KnowledgeLookup:
    """The knowledge of users, one at a time; a new night is seen as soon as it is whole.

    Raises:
        DataError: no knowledge store, or one without knowledge of a day.
    """

    def __init__(self, path: Path) -> None:
        self.store = KnowledgeStore(path)
        if not self.store.dates():
            raise DataError(
                f"{path}: it holds no knowledge of a day; build it to its end, and without "
                "as_of_request"
            )
        self._part: dict[str, Path] = {}  # of each key
        self._night = lru_cache(_NIGHTS)(self._read_night)

    def of(self, user: str, ts: int | None, tz_offset_min: int = 0) -> KnownUser:
        """What a request at ts, µs UTC, may know: of its local day or at most seven before it.

        Without a time it is the newest there is. Knowledge that holds an event at or after the
        request, as a change of the clock can give, is none.

        Raises:
            DataError: the day or its text is damaged.
        """
        days = self.store.dates()
        if ts is not None:
            today = date_of(int(local_day(np.array([ts]), np.array([tz_offset_min]))[0]))
            days = [day for day in days if today - timedelta(days=DAYS) <= day <= today]
        if not days:
            return KnownUser()
        manifest = standing(self.store.path / f"date={days[-1]}") / MANIFEST
        row = self._night(days[-1], manifest.stat().st_mtime_ns).get(user)
        if row is None or row.cold:
            return KnownUser()
        if ts is not None and row.last_ts is not None and row.last_ts >= ts:
            return KnownUser()
        text = self._text(row.key)
        return KnownUser(
            days[-1], row.events, row.last_ts, text["text"],
            Knowledge.model_validate_json(text["record"]), text["backend"], text["fallback"],
        )  # fmt: skip

    def _read_night(self, day: date, _written: int) -> dict[str, _Bound]:
        _, rows = self.store.bound(day)
        columns = (rows[name].to_pylist() for name in ("user_id", *_Bound._fields))
        return {user: _Bound(*row) for user, *row in zip(*columns, strict=True)}

    def _text(self, key: str) -> dict[str, Any]:
        if key not in self._part:
            read = set(self._part.values())
            for file in self.store.parts():
                if file not in read:
                    keys = self.store.part(file, ["key"])["key"].to_pylist()
                    self._part |= dict.fromkeys(keys, file)
        if key not in self._part:
            raise DataError(f"{self.store.path}/texts has no text {key}; build the day again")
        table: pa.Table = self.store.part(self._part[key])
        (row,) = table.filter(pc.equal(table["key"], key)).to_pylist()
        return row


def _spared(prose: str, names: Iterable[str]) -> str:
    return " ".join(part for part in sentences(prose) if not names_any(part, names))
