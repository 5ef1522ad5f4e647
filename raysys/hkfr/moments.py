"""Requests and what came of them: where the answers of instructions come from (§2.3)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.contexts import FIRST
from raysys.data.features import text_column
from raysys.data.histories import UNKNOWN_TS
from raysys.data.prepared import Prepared
from raysys.data.schema import SPLITS
from raysys.hkfr.config import InstructionConfig
from raysys.hkfr.events import UserLog, local_time, user_logs
from raysys.hkfr.items import Items
from raysys.hkfr.tasks import Moment, Thing
from raysys.hkfr.words import one_line, price_band

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """A request of the data set: who, when (µs UTC, None without times) and in which part."""

    request_id: str
    user_id: str
    ts: int | None
    local: datetime | None
    split: str


def things(table: pa.Table, items: Items, config: InstructionConfig) -> list[Thing | None]:
    """[2 + N] what tasks know of each item row; None of padding and of the unknown item.

    Raises:
        ConfigError: an item field that no column is behind.
    """
    columns = {
        name: text_column(table, source).to_pylist()
        for name, source in (
            ("category", config.category),
            ("sub_category", config.sub_category),
            ("dish_type", config.dish_type),
            ("delivery", config.delivery),
        )
    }
    out: list[Thing | None] = [None] * FIRST
    for row, item in enumerate(items.values()):
        words = {name: values[row] for name, values in columns.items()}
        out.append(
            Thing(
                merchant=item.label,
                price_band=None if item.price is None else price_band(item.price),
                brand=item.brand,
                **{name: one_line(value) if value else None for name, value in words.items()},
            )
        )
    return out


class Moments:
    """The requests of a data set by user, in time order, each with what came of it.

    An order that a request led to is the next one after it. A request that led to none tells how
    long the next one took, if that too lies in its part of the data set.
    """

    def __init__(self, data: Prepared, known: Sequence[Thing | None], config: InstructionConfig):
        self.data = data
        self.known = known
        self.orders = config.answer_from == "orders"
        names = data.codec.names
        self._place = names.index(config.place) if config.place in names else None
        rows = data.impressions
        # First moment of the parts that come after each; nothing of theirs may be an answer.
        self._end = [
            int(rows.ts[(rows.split > part) & (rows.ts != UNKNOWN_TS)].min(initial=2**62))
            for part in range(len(SPLITS))
        ]

    def __iter__(self) -> Iterator[tuple[Request, Moment]]:
        rows = self.data.impressions
        user = np.asarray(rows.user)
        order = np.lexsort((rows.end, rows.ts, user))
        begins = np.searchsorted(user[order], np.arange(len(self.data.histories.users) + 1))
        users = self.data.histories.users.to_pylist()
        logs = user_logs(self.data.dataset, users, None)
        for log, begin, end in zip(logs, begins[:-1], begins[1:], strict=True):
            ordered = _Ordered.of(log, "order" if self.orders else "click")
            for row in order[begin:end].tolist():
                yield self._moment(row, log, ordered)

    def _moment(self, row: int, log: UserLog, ordered: "_Ordered") -> tuple[Request, Moment]:
        rows = self.data.impressions
        ts, tz = int(rows.ts[row]), int(rows.tz[row])
        timed = ts != UNKNOWN_TS
        local = local_time(ts, tz) if timed else None
        split = int(rows.split[row])
        span = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
        shown = [(self.known[item], item) for item in rows.item[span].tolist()]
        clicks = rows.click[span].tolist()
        labels = rows.order[span].tolist() if self.orders else clicks
        listed = [
            (thing, item, bool(click), bool(label))
            for (thing, item), click, label in zip(shown, clicks, labels, strict=True)
            if thing is not None
        ]
        basket = _main_first([(thing, item) for thing, item, _, label in listed if label])
        until = None
        if local is not None and not basket:
            later = ordered.after(ts, self._end[split])
            until = None if later is None else (later.date() - local.date()).days
        if timed:
            end = log.before(ts)
        else:
            history = int(rows.end[row] - self.data.histories.start[rows.user[row]])
            kinds = self.data.dataset.manifest.history_behaviours
            end = log.before_history_end(history, kinds)
        request = Request(
            request_id=rows.ids[row].as_py(),
            user_id=log.user_id,
            ts=ts if timed else None,
            local=local,
            split=SPLITS[split],
        )
        moment = Moment(
            local=local,
            place=self._place_of(row),
            basket=tuple(thing for thing, _ in basket),
            clicked=tuple(thing for thing, _, click, _ in listed if click),
            others=tuple(thing for thing, _, click, _ in listed if not click),
            repeat=bool(basket) and ordered.had(self._id(basket[0][1]), end),
            days_until=until,
        )
        return request, moment

    def _id(self, item: int) -> str:
        return str(self.data.item_ids[item - FIRST].as_py())

    def _place_of(self, row: int) -> str | None:
        if self._place is None:
            return None
        code = int(self.data.impressions.context[row, self._place])
        labels = self.data.codec.features[self._place].labels
        return one_line(labels[code]) if code >= FIRST else None


def _main_first(basket: list[tuple[Thing, int]]) -> list[tuple[Thing, int]]:
    """The items of an order, those of its most frequent category first: one sample per order."""
    counts = Counter(thing.category for thing, _ in basket)
    return sorted(basket, key=lambda pair: -counts[pair[0].category])


@dataclass(frozen=True)
class _Ordered:
    """What a user ordered: places in the log, item ids, times and local times of the orders."""

    places: Ints
    items: list[str | None]
    ts: Ints
    local: list[datetime | None]

    @classmethod
    def of(cls, log: UserLog, behaviour: str) -> "_Ordered":
        places = np.flatnonzero(pc.equal(log.rows["behaviour"], behaviour).to_numpy())
        rows = log.rows.take(pa.array(places)).select(["item_id", "ts", "tz_offset_min"])
        items, ts, tz = (rows[name].to_pylist() for name in rows.column_names)
        clock = [None if t is None else local_time(t, z) for t, z in zip(ts, tz, strict=True)]
        return cls(places, items, log.ts[places], clock)

    def had(self, item: str, end: int) -> bool:
        """Whether the item was ordered among the first `end` events."""
        return item in self.items[: int(np.searchsorted(self.places, end))]

    def after(self, ts: int, limit: int) -> datetime | None:
        """Local time of the first order after a moment and before a limit, µs UTC."""
        place = int(np.searchsorted(self.ts, ts, side="right"))
        return self.local[place] if place < len(self.ts) and self.ts[place] < limit else None
