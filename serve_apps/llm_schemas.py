"""What goes over the wire about users: what is known of them, and what a language model answers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validator

from raysys.data.requests import MAX_HIDDEN, Id, Microseconds
from raysys.hkfr.knowledge import Statement
from serve_apps.config import Limits
from serve_apps.schemas import fault_of

MAX_NAMES = 300
MAX_INSTRUCTION = 1000  # characters
Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class AboutUser(BaseModel):
    """Whose knowledge, and as of when.

    ts: µs UTC; the knowledge is of events before its local day. Without it the newest there is.
    since: nothing from before it may be looked at, so that no stored knowledge is. hidden: names
    that must not be told, nor count, nor be answered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: Id
    user_id: Id
    ts: Microseconds | None = None
    tz_offset_min: Annotated[int, Field(ge=-1440, le=1440)] = 0
    since: Microseconds | None = None
    hidden: Annotated[tuple[Name, ...], Field(max_length=MAX_HIDDEN)] = ()


class ExplainRequest(AboutUser):
    """`POST /v1/explain/user`. ask: whether the language model, if there is one, is asked too."""

    ask: bool = True


class AnswerRequest(AboutUser):
    """`POST /v1/answer`: one of the tasks the model was tuned on, or an instruction of one's own.

    given: what a task's wording has braces for, e.g. {"mealtime": "dinner"}, a list for `rank`.
    candidates: names that may be the answer; those of the task by default. top_k: the best alone.
    """

    task: Name | None = None
    instruction: Annotated[Name, Field(max_length=MAX_INSTRUCTION)] | None = None
    given: dict[str, Name | Annotated[tuple[Name, ...], Field(min_length=1, max_length=20)]] = (
        Field(default_factory=dict)
    )
    candidates: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_NAMES)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None

    @validator(mode="after")
    def _one_question(self) -> "AnswerRequest":
        if (self.task is None) == (self.instruction is None):
            raise ValueError("task, instruction: send one of the two")
        if self.instruction is not None and (self.given or self.candidates is None):
            raise ValueError("instruction: it needs candidates, and takes no given")
        names = self.candidates or ()
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"candidates: {twice!r} is there twice")
        return self


class ToldInterest(BaseModel):
    """An interest in a model's words; lines: of `text`, from 1, that say so."""

    model_config = ConfigDict(extra="forbid")

    text: str
    lines: list[int]


class ToldByModel(BaseModel):
    """What the language model makes of the knowledge; fault: why there is nothing, in words."""

    model_config = ConfigDict(extra="forbid")

    model_id: str
    interests: list[ToldInterest]
    fault: str | None


class UserExplanation(BaseModel):
    """What the system knows of a user: the text that models read, and it as statements with the
    events, by number, that say so.

    cold_user: nothing is known, and `text` says that. date: of the knowledge, YYYY-MM-DD, of events
    before it. events, last_ts: how many there were, and the newest, µs UTC. backend, fallback: see
    `KnownUser`. told: absent where no model was asked.
    """

    model_config = ConfigDict(extra="forbid")

    request_id: str
    user_id: str
    cold_user: bool
    date: str | None
    events: int
    last_ts: int | None
    backend: str | None
    fallback: str | None
    text: str
    facts: tuple[Statement, ...]
    interests: tuple[Statement, ...]
    told: ToldByModel | None = None


class AnsweredName(BaseModel):
    """A candidate. log_p: log-probability that the model answers it and ends there; p: share among
    the candidates."""

    model_config = ConfigDict(extra="forbid")

    name: str
    log_p: float
    p: float


class DirectAnswer(BaseModel):
    """Candidates, likeliest first, as answers to `instruction` from the knowledge of `date`; a cold
    user is answered from a text that says that nothing is known."""

    model_config = ConfigDict(extra="forbid")

    request_id: str
    user_id: str
    model_id: str
    instruction: str
    cold_user: bool
    date: str | None
    items: list[AnsweredName]


def parse_about(
    kind: type[ExplainRequest] | type[AnswerRequest], body: bytes, limits: Limits
) -> ExplainRequest | AnswerRequest | str:
    """The request in a JSON body, or what is wrong with it."""
    try:
        request = kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        return fault_of(error)
    words = [request.request_id, request.user_id, *request.hidden]
    if isinstance(request, AnswerRequest):
        words += request.candidates or ()
        for value in request.given.values():
            words += [value] if isinstance(value, str) else value
    longest = max(map(len, words))
    if longest > limits.string:
        return f"a string of {longest} characters, at most {limits.string} are allowed"
    return request
