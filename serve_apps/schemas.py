"""What goes over the wire. Requests carry ids, not features."""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from raysys.artifacts.persona import PersonaExplanation
from raysys.artifacts.retrieval import RetrievalExplanation
from raysys.data.requests import (
    MAX_HIDDEN,
    MAX_ID,
    HistoryEvent,
    Id,
    Microseconds,
    Request,
)
from raysys.perconet.cards import PersonaCard
from serve_apps.config import Limits

# Several times faster than the json module, and NaN becomes null.
to_json = TypeAdapter(Any).dump_json


class RankRequest(Request):
    """A `Request`, and what the answer should hold.

    `explain` adds to each item the past events that weigh most, and to the answer why these events
    were looked at, where the model chooses them; `top_k` keeps the best k items; `recent` are
    events that the stored history does not have yet, news models only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    explain: bool = False
    top_k: Annotated[int, Field(ge=1)] | None = None
    recent: tuple[HistoryEvent, ...] = ()

    @model_validator(mode="after")
    def _timed(self) -> "RankRequest":
        if self.recent and self.history is not None:
            raise ValueError("recent: goes with the stored history; history is there instead of it")
        times = [event.ts for event in self.recent if event.ts is not None]
        if len(times) < len(self.recent) or times != sorted(times):
            raise ValueError("recent: events need a ts and must be oldest first")
        return self


class EventWeight(BaseModel):
    """A past event and how much it counted, in the model's own measure (`event_weights`).

    ts: µs UTC, null where unknown. Where a model has negative weights they tell against.
    """

    model_config = ConfigDict(extra="forbid")

    item_id: str
    ts: int | None
    behaviour: str
    weight: float


class RankedItem(BaseModel):
    """One candidate. The probabilities are null where the model gives none.

    known: whether the model's catalogue has the item; others are ranked as new ones. persona: the
    score in parts by entity, with `explain`, where the model has personas.
    """

    model_config = ConfigDict(extra="forbid")

    item_id: str
    known: bool
    score: float
    p_click: float | None
    p_order: float | None
    explanation: list[EventWeight] | None = None
    persona: PersonaExplanation | None = None


class RankAnswer(BaseModel):
    """Candidates, best first, and who ranked them.

    `fallback` is null if the model ranked. Otherwise it says what did: "popularity" (events in
    the run's histories) or "as_sent" (the order of the request), and probabilities are null.
    `cold_user` says that no history was sent and none is stored. `retrieval` is there with
    `explain`, where the model has one.
    """

    model_config = ConfigDict(extra="forbid")

    request_id: str
    model_id: str
    data_card_id: str
    variant: str
    cold_user: bool
    items: list[RankedItem]
    fallback: Literal["popularity", "as_sent"] | None
    retrieval: RetrievalExplanation | None = None


class PersonaAnswer(BaseModel):
    """What a model believes of a reader, and what he has asked for: entities that are hidden from
    it, and since when (µs UTC) his clicks may be looked at."""

    model_config = ConfigDict(extra="forbid")

    card: PersonaCard
    hidden: tuple[str, ...]
    since: int | None


class PersonaWish(BaseModel):
    """The entities to hide from now on; those of an earlier wish that are not here count again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: Annotated[tuple[Id, ...], Field(max_length=MAX_HIDDEN)]


class PersonaClick(BaseModel):
    """A news that a reader has just clicked; ts: µs UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: Id
    ts: Microseconds


class ErrorBody(BaseModel):
    """Every answer that is not a 200. `error` is for programs, `detail` for people."""

    model_config = ConfigDict(extra="forbid")

    error: str
    detail: str
    request_id: str | None = None


class ModelCard(BaseModel):
    """What /v1/models says of a served model."""

    model_config = ConfigDict(extra="forbid")

    model_id: str
    data_card_id: str
    variant: str
    recipe: str
    items: int
    users: int  # with a history in the run's snapshot
    contexts: list[str]
    p_click: bool  # whether its answers hold the probability
    p_order: bool


class SceneCounts(BaseModel):
    """What the scene path of a replica has met since it started.

    lookups: sentences of requests. Of these missing: the request lacks the value; misses: the
    value has no vector yet. Both are ranked with the learned default. queued, filled, failed,
    dropped: distinct values sent to the encoder deployment, and what came of them (dropped: the
    limit `models.scene.max_values` was reached). llm_calls: texts that a language model has encoded
    in the ranker's own process.
    """

    model_config = ConfigDict(extra="forbid")

    lookups: int
    missing: int
    misses: int
    queued: int
    filled: int
    failed: int
    dropped: int
    llm_calls: int


class Stats(BaseModel):
    """What one replica of a ranker has done since it started."""

    model_config = ConfigDict(extra="forbid")

    replica: str
    requests: int
    fallbacks: int
    unknown_items: int
    unknown_users: int
    scene: SceneCounts | None = None


def parse(body: bytes, limits: Limits) -> RankRequest | str:
    """The request in a JSON body, or what is wrong with it."""
    try:
        request = RankRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        return fault_of(error)
    return _over(request, limits) or request


Told = TypeVar("Told", PersonaWish, PersonaClick)


def parse_told(kind: type[Told], body: bytes, limits: Limits) -> Told | str:
    """What a reader tells in a JSON body, or what is wrong with it."""
    try:
        told = kind.model_validate_json(body)
    except ValidationError as error:
        return fault_of(error)
    words = told.hidden if isinstance(told, PersonaWish) else (told.item_id,)
    longest = max(map(len, words), default=0)
    if longest > limits.string:
        return f"a string of {longest} characters, at most {limits.string} are allowed"
    return told


def request_id(body: bytes) -> str | None:
    """The id in a body that is no valid request, if it can be read."""
    try:
        found = json.loads(body)["request_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and len(found) <= MAX_ID else None


def fault_of(error: ValidationError) -> str:
    """The first fault of a body in words, and how many more there are."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(str(part) for part in faults[0]["loc"])
    message = faults[0]["msg"].removeprefix("Value error, ")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return (f"{where}: {message}" if where else message) + more


def _over(request: RankRequest, limits: Limits) -> str | None:
    """The first limit that the request passes, in words."""
    events = request.history or ()
    contexts = [request.context, *(event.context for event in events)]
    counts = (
        ("candidates", len(request.candidates), limits.candidates),
        ("history", len(events), limits.history),
        ("recent", len(request.recent), limits.history),
        ("context", max(len(context) for context in contexts), limits.context),
    )
    for name, count, limit in counts:
        if count > limit:
            return f"{name}: {count} entries, at most {limit} are allowed"
    words = [request.request_id, request.user_id, *request.candidates]
    words += [event.item_id for event in events]
    words += request.hidden
    words += [event.item_id for event in request.recent]
    for context in contexts:
        words += context
        words += [value for value in context.values() if isinstance(value, str)]
    longest = max(map(len, words))
    if longest > limits.string:
        return f"a string of {longest} characters, at most {limits.string} are allowed"
    return None
