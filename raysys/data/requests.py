"""A request to rank: ids only. Evaluation, batch scoring and serving all become `Requests`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raysys.data.batch import Pointers, pad_rows
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import ContextCodec
from raysys.data.feature_table import local_day
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.schema import BEHAVIOURS
from raysys.data.split import iso
from raysys.errors import DataError

T = TypeVar("T")
WHOLE = (
    "since: this model chooses events by their place in the whole history and cannot leave the "
    "old ones out; send what is left as `history`"
)
MAX_ID = 256  # characters
MAX_HIDDEN = 1000  # entities
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
ContextValue = Annotated[str, Field(max_length=256)] | float | None
# What an int64 column holds; its smallest number stands for an unknown time.
_LAST = np.iinfo(np.int64).max
# The last moment that a date can name; nanoseconds since 1970 lie far behind it.
_YEAR_9999 = 253_402_300_799_999_999
Microseconds = Annotated[int, Field(gt=UNKNOWN_TS, le=_YEAR_9999)]


class HistoryEvent(BaseModel):
    """One past event sent with a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: Id
    ts: Microseconds | None = None
    behaviour: str = "click"
    context: dict[str, ContextValue] = Field(default_factory=dict)

    @field_validator("behaviour")
    @classmethod
    def _known(cls, behaviour: str) -> str:
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"unknown behaviour {behaviour!r}; known are {', '.join(BEHAVIOURS)}")
        return behaviour


class Request(BaseModel):
    """What is to be ranked for whom, when and in which context.

    ts: µs since the epoch, UTC. `history` replaces the stored history of the user; its events
    are oldest first, those without `ts` before all, and those at or after the request's `ts` are
    ignored. `history_end` cuts the stored history where there is no time. `since`: events before
    it, and those without a time, are not looked at, wherever the history is from. `hidden`:
    entities that must not count in the user's persona, where the model has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: Id
    user_id: Id
    ts: Microseconds | None = None
    tz_offset_min: Annotated[int, Field(ge=-1440, le=1440)] = 0
    context: dict[str, ContextValue] = Field(default_factory=dict)
    candidates: Annotated[tuple[Id, ...], Field(min_length=1)]
    history: tuple[HistoryEvent, ...] | None = None
    history_end: Annotated[int, Field(ge=0, le=_LAST)] | None = None
    since: Microseconds | None = None
    hidden: Annotated[tuple[Id, ...], Field(max_length=MAX_HIDDEN)] = ()

    @model_validator(mode="after")
    def _distinct(self) -> "Request":
        if len(set(self.candidates)) < len(self.candidates):
            twice = next(i for i, item in enumerate(self.candidates) if item in self.candidates[:i])
            raise ValueError(f"candidates.{twice}: {self.candidates[twice]!r} is there twice")
        return self

    @model_validator(mode="after")
    def _oldest_first(self) -> "Request":
        last = UNKNOWN_TS
        for place, event in enumerate(self.history or ()):
            ts = UNKNOWN_TS if event.ts is None else event.ts
            if ts < last:
                raise ValueError(
                    f"history.{place}: events must be oldest first, those without ts before all"
                )
            last = ts
        return self


@dataclass(frozen=True)
class Fit:
    """What a trained model asks of a request, beyond what makes it a request.

    codec: its context features; since: the first moment (µs) of the data it was trained on,
    UNKNOWN_TS without times. A request before that is a time in another unit, which would
    silently make a newcomer of a known user. whole: it chooses events by their place in the whole
    history, which must then not be cut.
    """

    codec: ContextCodec
    since: int = UNKNOWN_TS
    whole: bool = False

    def misfit(self, request: Request) -> str | None:
        """The first fault of the request, in words."""
        contexts = {"context": request.context}
        contexts |= {f"history.{i}.context": e.context for i, e in enumerate(request.history or ())}
        for where, context in contexts.items():
            fault = self.codec.misfit(context)
            if fault:
                return f"{where}.{fault}"
        if self.whole and request.since is not None:
            return WHOLE
        return None if request.ts is None else self.early(request.ts)

    def early(self, ts: int) -> str | None:
        """What is wrong with a request at `ts`, in words."""
        if ts >= self.since:
            return None
        return (
            f"ts: {ts} is {iso(ts)}, before the data of this model begin ({iso(self.since)}); "
            "ts is in µs since 1970, UTC"
        )


@dataclass(frozen=True)
class Requests:
    """N requests in columns, their contexts encoded.

    ids [N]; users [N]; ts [N] µs (UNKNOWN_TS where null); history_end [N], −1 where not given;
    context [N, F] codes of the model's codec; candidates [R] ids, concatenated; counts [N];
    inline: request index -> the history sent with it. since [N] µs, UNKNOWN_TS where all may be
    seen; hidden: request index -> entities that must not count; tz [N] minutes of local time.
    """

    ids: list[str]
    users: list[str]
    ts: npt.NDArray[np.int64]
    history_end: npt.NDArray[np.int64]
    context: npt.NDArray[np.int32]
    candidates: list[str]
    counts: npt.NDArray[np.int64]
    inline: dict[int, tuple[HistoryEvent, ...]]
    since: npt.NDArray[np.int64]
    hidden: dict[int, tuple[str, ...]]
    tz: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    @classmethod
    def of(cls, requests: Sequence[Request], codec: ContextCodec) -> "Requests":
        """From request objects.

        Raises:
            DataError: a context value of the wrong type.
        """
        return cls(
            ids=[r.request_id for r in requests],
            users=[r.user_id for r in requests],
            ts=np.array([UNKNOWN_TS if r.ts is None else r.ts for r in requests], np.int64),
            history_end=np.array(
                [-1 if r.history_end is None else r.history_end for r in requests], np.int64
            ),
            context=codec.encode_dicts([r.context for r in requests]),
            candidates=[item for r in requests for item in r.candidates],
            counts=np.array([len(r.candidates) for r in requests], np.int64),
            inline={i: r.history for i, r in enumerate(requests) if r.history is not None},
            since=np.array(
                [UNKNOWN_TS if r.since is None else r.since for r in requests], np.int64
            ),
            hidden={i: r.hidden for i, r in enumerate(requests) if r.hidden},
            tz=np.array([r.tz_offset_min for r in requests], np.int64),
        )

    @classmethod
    def of_table(cls, table: pa.Table, codec: ContextCodec) -> "Requests":
        """From a table with the columns of `impressions` that a request needs.

        Columns: request_id (or impression_id), user_id, candidates, and optionally ts,
        tz_offset_min, history_end, context, since, hidden.

        Raises:
            DataError: a needed column is missing or a candidate list is empty.
        """
        names = set(table.column_names)
        key = "request_id" if "request_id" in names else "impression_id"
        for name in (key, "user_id", "candidates"):
            if name not in names:
                raise DataError(f"requests table: column {name} is missing")

        def numbers(name: str, fill: int) -> npt.NDArray[np.int64]:
            if name not in names:
                return np.full(len(table), fill, np.int64)
            return np.asarray(table[name].fill_null(fill).to_numpy(), np.int64)

        lists = table["candidates"].combine_chunks()
        counts = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
        if len(counts) and counts.min() == 0:
            row = int(np.argmin(counts))
            raise DataError(f"requests table: row {row} ({table[key][row]}) has no candidates")
        context = np.zeros((len(table), len(codec.features)), np.int32)
        if "context" in names and codec.features:
            context = codec.encode(table["context"].combine_chunks())
        return cls(
            ids=table[key].to_pylist(),
            users=table["user_id"].to_pylist(),
            ts=numbers("ts", UNKNOWN_TS),
            history_end=numbers("history_end", -1),
            context=context,
            candidates=pc.list_flatten(lists).to_pylist(),
            counts=counts.astype(np.int64),
            inline={},
            since=numbers("since", UNKNOWN_TS),
            hidden={
                row: tuple(name for name in names_ if name is not None)
                for row, names_ in enumerate(table["hidden"].to_pylist())
                if names_
            }
            if "hidden" in names
            else {},
            tz=numbers("tz_offset_min", 0),
        )

    def take(self, chosen: npt.NDArray[np.int64]) -> "Requests":
        """The chosen requests, in that order."""
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        picked = [self.candidates[offsets[i] : offsets[i + 1]] for i in chosen]
        return Requests(
            ids=[self.ids[i] for i in chosen],
            users=[self.users[i] for i in chosen],
            ts=self.ts[chosen],
            history_end=self.history_end[chosen],
            context=self.context[chosen],
            candidates=[item for items in picked for item in items],
            counts=self.counts[chosen],
            inline=_taken(self.inline, chosen),
            since=self.since[chosen],
            hidden=_taken(self.hidden, chosen),
            tz=self.tz[chosen],
        )

    def stored(self) -> npt.NDArray[np.int64]:
        """Indices of the requests whose history is looked up."""
        return np.array([i for i in range(len(self)) if i not in self.inline], np.int64)

    def pointers(self, catalogue: Catalogue, histories: Histories, codec: ContextCodec) -> Pointers:
        """Resolve ids: rows of candidates, and where each history lies in `histories`.

        Requests with an inline history must be resolved against `inline_histories`.
        """
        user = histories.lookup(self.users)
        start = histories.begin(user)
        limit = histories.finish(user)
        timed = histories.end_before(user, self.ts)
        # Not start + history_end, which may be too large for int64.
        cut = start + np.minimum(self.history_end, limit - start)
        cut = np.where(self.history_end >= 0, cut, limit)
        rows = catalogue.rows(self.candidates)
        people = histories.owners
        end = np.where(self.ts == UNKNOWN_TS, cut, timed)
        if (self.since != UNKNOWN_TS).any():
            start = np.minimum(end, np.maximum(start, histories.end_before(user, self.since)))
        return Pointers(
            start=start,
            end=end,
            ts=self.ts,
            context=self.context,
            codec=codec,
            candidates=pad_rows(rows, self.counts),
            users=self.users if people is None else people.take(pa.array(user)).to_pylist(),
            days=local_day(self.ts, self.tz),
        )

    def inline_histories(self, catalogue: Catalogue, codec: ContextCodec) -> Histories:
        """The histories sent with the requests, one owner per request, named by its index.

        Raises:
            DataError: a context value of the wrong type.
        """
        owners = sorted(self.inline)
        events = [event for owner in owners for event in self.inline[owner]]
        times = np.array([UNKNOWN_TS if e.ts is None else e.ts for e in events], np.int64)
        lengths = np.array([len(self.inline[owner]) for owner in owners], np.int64)
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows: dict[str, Any] = dict(
            item=catalogue.rows([e.item_id for e in events]).astype(np.int32),
            behaviour=np.array([BEHAVIOURS.index(e.behaviour) for e in events], np.int8),
            context=codec.encode_dicts([e.context for e in events]),
        )
        # Zero-padded indices: histories are looked up by name and kept in name order.
        names = pa.array([f"{owner:09d}" for owner in owners], pa.string())
        people = pa.array([self.users[owner] for owner in owners], pa.string())
        return Histories(users=names, start=start, ts=times, codec=codec, owners=people, **rows)

    def renamed_inline(self) -> "Requests":
        """The requests with an inline history, their users named as `inline_histories` does."""
        chosen = np.array(sorted(self.inline), np.int64)
        part = self.take(chosen)
        return Requests(**{**vars(part), "users": [f"{i:09d}" for i in chosen.tolist()]})


def _taken(by_request: dict[int, T], chosen: npt.NDArray[np.int64]) -> dict[int, T]:
    """What the chosen requests have, by their new places."""
    return {new: by_request[old] for new, old in enumerate(chosen.tolist()) if old in by_request}
