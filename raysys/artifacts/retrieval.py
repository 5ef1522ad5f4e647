"""What a model that chooses past events for a request says about its choice."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.schema import BEHAVIOURS


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ValueShare(_Frozen):
    """A value of an attribute field and its predicted share among the values of the field."""

    value: str
    share: float


class ActivePrototype(_Frozen):
    """A prototype that is on for the request.

    similarity: with the request's own context, in [0, 1]; beta: what the gate compares with its
    threshold, the similarity weighed by the newest events; forced: below the threshold, but the
    best where none is above; likes: attribute field → the values of the largest shares.
    """

    prototype: int
    similarity: float
    beta: float
    forced: bool
    likes: dict[str, tuple[ValueShare, ...]]


class Link(_Frozen):
    """A context and an active prototype; belongs: whether the prototype brings it."""

    prototype: int
    similarity: float
    belongs: bool


class RetrievedEvent(_Frozen):
    """A past event; ts µs UTC; item_id null where the catalogue lacks it."""

    item_id: str | None
    ts: int | None
    behaviour: str

    @classmethod
    def of(cls, histories: Histories, catalogue: Catalogue, row: int) -> "RetrievedEvent":
        """The event in a row of the histories."""
        item, ts = int(histories.item[row]), int(histories.ts[row])
        return cls(
            item_id=catalogue.ids(np.array([item]))[0].as_py() if item >= FIRST else None,
            ts=None if ts == UNKNOWN_TS else ts,
            behaviour=BEHAVIOURS[int(histories.behaviour[row])],
        )


class ContextPart(_Frozen):
    """A past context of the user and what it brought.

    context: feature → value in words; step: number in `back_off`; links: with each active
    prototype; events: how many were retrieved; newest: the newest of these.
    """

    context: dict[str, str]
    step: int
    links: tuple[Link, ...]
    events: int
    newest: tuple[RetrievedEvent, ...]


class BackOffStep(_Frozen):
    """Events by contexts of active prototypes or the very context of the request (step 0, nothing
    dropped), by contexts equal to it without the features `dropped`, or the most recent ones."""

    dropped: tuple[str, ...] = ()
    recent: bool = False
    events: int


class RetrievalExplanation(_Frozen):
    """Why a request was shown these events of its user.

    target: the request's own context in words; missing: the features of contexts that the request
    lacks, which count as nothing; known_user, known_context: met in training;
    threshold: of beta; contexts: those that brought events, the first steps and the largest
    first, at most a few; contexts_left_out: how many more there are; back_off: the steps that
    brought events, in order; events: retrieved in all.
    """

    target: dict[str, str]
    missing: tuple[str, ...] = ()
    known_user: bool
    known_context: bool
    threshold: float
    prototypes: tuple[ActivePrototype, ...]
    contexts: tuple[ContextPart, ...]
    contexts_left_out: int
    back_off: tuple[BackOffStep, ...]
    events: int
