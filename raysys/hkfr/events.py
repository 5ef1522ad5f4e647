"""The behaviour log, user by user, cut where a day or a request begins (§2.1, §2.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.dataset import Dataset
from raysys.data.histories import UNKNOWN_TS
from raysys.data.split import DAY_US
from raysys.errors import DataError
from raysys.hkfr.anonymise import Anonymiser
from raysys.hkfr.config import EventOptions
from raysys.hkfr.items import Items
from raysys.hkfr.render import TEMPLATES, Document, Event
from raysys.hkfr.select import chosen
from raysys.hkfr.words import one_line

Ints = npt.NDArray[np.int64]
_EPOCH = datetime(1970, 1, 1)
_MINUTE_US = 60_000_000


def local_time(ts: int, tz_offset_min: int | None) -> datetime:
    """The user's clock at a moment, µs UTC, without a zone."""
    return _EPOCH + timedelta(microseconds=ts + (tz_offset_min or 0) * _MINUTE_US)


@dataclass(frozen=True)
class UserLog:
    """The E events of one user in the order of `seq`; rows of the events table."""

    user_id: str
    rows: pa.Table

    @cached_property
    def ts(self) -> Ints:
        """[E] µs UTC, UNKNOWN_TS where null."""
        ts: Ints = self.rows["ts"].fill_null(UNKNOWN_TS).to_numpy().astype(np.int64)
        return ts

    @cached_property
    def _local(self) -> Ints:
        """[E] µs on the user's clock; events without a time lie before all others."""
        offset = self.rows["tz_offset_min"].fill_null(0).to_numpy().astype(np.int64)
        return np.where(self.ts == UNKNOWN_TS, UNKNOWN_TS, self.ts + offset * _MINUTE_US)

    def before_day(self, day: date) -> int:
        """How many events precede the first one on or after a local day."""
        return _first(self._local >= (day - _EPOCH.date()).days * DAY_US)

    def before(self, ts: int) -> int:
        """How many events precede the first one at or after a moment, µs UTC."""
        return _first(self.ts >= ts)

    def before_history_end(self, end: int, behaviours: Sequence[str]) -> int:
        """How many events there are up to and with the last of `end` events of the history, which
        has events of these behaviours only; those after it may be later than the request."""
        kinds = pa.array(behaviours, pa.string())
        history = pc.is_in(self.rows["behaviour"], value_set=kinds).to_numpy()
        places = np.flatnonzero(history)[:end]
        return int(places[-1]) + 1 if len(places) else 0


def _first(late: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(late)) if late.any() else len(late)


def survey(dataset: Dataset) -> date | None:
    """The last local day of any event; None where no event has a time.

    Raises:
        DataError: an event of a kind that no template tells; names file and kinds.
    """
    last: int | None = None
    columns = ["behaviour", "ts", "tz_offset_min"]
    for path, part in zip(dataset.files("events"), dataset.parts("events", columns), strict=True):
        untold = sorted(set(part["behaviour"].unique().to_pylist()) - set(TEMPLATES))
        if untold:
            raise DataError(
                f"{path}: behaviour {', '.join(map(repr, untold))} has no template; known are "
                f"{', '.join(TEMPLATES)}: map it to one of them when importing"
            )
        offset = pc.multiply(part["tz_offset_min"].fill_null(0).cast(pa.int64()), _MINUTE_US)
        newest = pc.max(pc.add(part["ts"], offset)).as_py()
        if newest is not None:
            last = newest if last is None else max(last, newest)
    return None if last is None else local_time(last, 0).date()


def user_logs(
    dataset: Dataset, users: Sequence[str], behaviours: Sequence[str] | None
) -> Iterator[UserLog]:
    """The log of each of the users, which ascend; of one without events, an empty one.

    behaviours: the kinds of events to keep, all by default.
    """
    empty = dataset.schemas["events"].empty_table()
    found = _with_events(dataset, behaviours)
    log = next(found, None)
    for user in users:
        if log is not None and log.user_id == user:
            yield log
            log = next(found, None)
        else:
            yield UserLog(user, empty)


def _with_events(dataset: Dataset, behaviours: Sequence[str] | None) -> Iterator[UserLog]:
    kept = None if behaviours is None else pa.array(behaviours, pa.string())
    rest = dataset.schemas["events"].empty_table()
    for part in dataset.parts("events"):
        if kept is not None:
            part = part.filter(pc.is_in(part["behaviour"], value_set=kept))
        part = pa.concat_tables([rest, part]).combine_chunks()
        if not len(part):
            continue
        ids = part["user_id"].to_numpy()
        begins = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
        for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            yield log_of(str(ids[begin]), part.slice(begin, end - begin))
        # The last user may go on in the next part.
        rest = part.slice(int(begins[-1]))
    if len(rest):
        yield log_of(rest["user_id"][0].as_py(), rest)


def log_of(user_id: str, rows: pa.Table) -> UserLog:
    """The log of one user from rows in any order."""
    return UserLog(user_id, rows.take(pc.sort_indices(rows["seq"])))


class Teller:
    """Documents of user logs: selected, anonymised and worded events.

    Args:
        items: of the data set.
        anonymiser: of texts and users.
        options: which events.
        contexts: names of the context features to tell.
    """

    def __init__(
        self, items: Items, anonymiser: Anonymiser, options: EventOptions, contexts: Sequence[str]
    ) -> None:
        self.items = items
        self.anonymiser = anonymiser
        self.options = options
        self.contexts = contexts

    def documents(self, log: UserLog, ends: Sequence[int]) -> Iterator[Document]:
        """One document for each of the ends: of the first so many events of the log."""
        pseudonym = self.anonymiser.pseudonym("user", log.user_id)
        kinds, scenarios = (log.rows[name].to_pylist() for name in ("behaviour", "scenario"))
        groups = _numbers([f"{a}\n{b or ''}" for a, b in zip(kinds, scenarios, strict=True)])
        orders = pc.equal(log.rows["behaviour"], "order").to_numpy()
        told: dict[int, Event] = {}
        options = self.options
        for end in ends:
            places = chosen(
                groups[:end], orders[:end], options.limit, options.order_share, options.select
            )
            new = [place for place in places.tolist() if place not in told]
            rows = log.rows.take(pa.array(new, pa.int64())).to_pylist()
            told |= {place: self._event(row) for place, row in zip(new, rows, strict=True)}
            yield Document(pseudonym, tuple(told[place] for place in places.tolist()))

    def _event(self, row: dict[str, Any]) -> Event:
        item = None if row["item_id"] is None else self.items[row["item_id"]]
        context = ((name, row["context"][name]) for name in self.contexts)
        text = self.anonymiser.free_text(row["text"], row["user_id"]) if row["text"] else None
        return Event(
            when=None if row["ts"] is None else local_time(row["ts"], row["tz_offset_min"]),
            behaviour=row["behaviour"],
            scenario=one_line(row["scenario"]) if row["scenario"] else None,
            subject=one_line(row["subject"]) if row["subject"] else None,
            text=text,
            item=item,
            context=tuple((name, one_line(value)) for name, value in context if value),
            value=row["value"],
        )


def _numbers(names: list[str]) -> Ints:
    """[E] place of each name among the distinct ones, sorted."""
    if not names:
        return np.zeros(0, np.int64)
    return np.unique(names, return_inverse=True)[1].reshape(-1).astype(np.int64)
