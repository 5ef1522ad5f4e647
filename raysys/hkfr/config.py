"""Options of the knowledge and of the instructions. What the paper leaves open is ours (§2.2)."""

from typing import Annotated, Literal, Self
from urllib.parse import urlparse

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from raysys.data.manifest import known_behaviours
from raysys.hkfr.tasks import TASKS
from raysys.llm.backbones import BackboneSpec
from raysys.llm.engine import Engine, Resources

Count = Annotated[int, Field(ge=1)]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EventOptions(_Frozen):
    """Which events are told.

    limit: S of §2.1. select: `quota` shares them out over (behaviour, scenario), `recent` takes
    the newest. order_share: share of the limit kept for orders. behaviours: the kinds to tell,
    all by default.
    """

    limit: int = Field(default=300, ge=1, le=999)
    select: Literal["quota", "recent"] = "quota"
    order_share: float = Field(default=0.4, ge=0, le=1)
    behaviours: Annotated[tuple[str, ...], AfterValidator(known_behaviours)] | None = None


class AnonymiseOptions(_Frozen):
    """What no model sees.

    salt_env: the environment variable with the salt of pseudonyms; without it the name of the
    data set serves, which is no secret. opaque_ids: pseudonyms for the names of items and brands
    too. names: names of persons to redact in texts. cell_deg: width in degrees of the cells that
    stand for a place of which only coordinates are known.
    """

    salt_env: str = "RAYSYS_SALT"
    opaque_ids: bool = False
    names: tuple[str, ...] = ()
    cell_deg: float = Field(default=0.1, gt=0)


class TemplateBackend(_Frozen):
    """Counts, recency, top categories, price and time bands, in fixed words: no model."""

    name: Literal["template"] = "template"


class EventsBackend(_Frozen):
    """No fusion: the rendered events themselves, the newest that a budget of tokens holds."""

    name: Literal["events"] = "events"
    tokens: Count = 400


class _Llm(_Frozen):
    """What the answer of a model may be.

    statements: most facts, and most interests. statement_chars, prose_chars: the longest of each.
    prompt_chars: characters of events in a prompt; the oldest events beyond them are left out.
    """

    statements: Count = 5
    statement_chars: Count = 120
    prose_chars: Count = 800
    prompt_chars: Count = 24_000
    max_new_tokens: Count = 700


class LocalBackend(_Llm):
    """A model on one of raysys' own engines (`raysys.llm.engine`), taking the most likely token:
    what a user's text is must not depend on who else is fused that night."""

    name: Literal["local_llm"] = "local_llm"
    backbone: str = "wheel:smollm2"
    adapter: str | None = None
    max_prompt_tokens: Count = 4096
    engine: Engine = "auto"
    resources: Resources = Resources()

    @field_validator("backbone")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        return str(BackboneSpec.parse(value))


class RemoteBackend(_Llm):
    """An OpenAI-compatible endpoint: `url` + /chat/completions. It sees the rendered events, so
    it is off unless `enabled`.

    api_key_env: the environment variable with the key. timeout_s: longest wait for an answer to
    begin, or to go on; retries: further tries after a timeout, a lost connection, 429 or 5xx,
    waiting backoff_s, twice that, ..., at most backoff_max_s. give_up_after: users in a row
    without an answer after which the endpoint is left alone for the rest of the run.
    """

    name: Literal["remote_llm"] = "remote_llm"
    enabled: bool = False
    url: str
    model: str
    temperature: float = Field(default=0.0, ge=0.0)
    seed: int = Field(default=0, ge=0)
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=3, ge=0)
    backoff_s: float = Field(default=1.0, ge=0)
    backoff_max_s: float = Field(default=30.0, ge=0)
    concurrency: int = Field(default=4, ge=1, le=64)
    give_up_after: Count = 5

    @model_validator(mode="after")
    def _safe(self) -> Self:
        parts = urlparse(self.url)
        here = parts.scheme == "http" and parts.hostname in _LOOPBACK
        if parts.scheme != "https" and not here:
            raise ValueError(f"url {self.url!r}: users' events travel by https:// only")
        if not self.enabled:
            raise ValueError(
                "remote_llm sends users' events, pseudonymised, to another party; if that is "
                "wanted, say enabled: true"
            )
        return self


Backend = Annotated[
    TemplateBackend | EventsBackend | LocalBackend | RemoteBackend, Field(discriminator="name")
]


class KnowledgeConfig(_Frozen):
    """Config of `raysys build hkfr-knowledge`.

    output: `record` gives prose, interests and facts, `prose` the prose alone, of at most
    prose_tokens words and marks. claims: `drop` leaves out what the events do not say. days: how
    many days, of which --date is the last. as_of_request: knowledge up to each request instead
    of each day, for studies and for sets without times.
    """

    events: EventOptions = EventOptions()
    anonymise: AnonymiseOptions = AnonymiseOptions()
    backend: Backend = TemplateBackend()
    output: Literal["record", "prose"] = "record"
    prose_tokens: Count = 200
    claims: Literal["drop", "off"] = "drop"
    days: Count = 1
    as_of_request: bool = False


class InstructionConfig(_Frozen):
    """Config of `raysys build hkfr-instructions`.

    answer_from: what a request led to, `orders` or, where a log has none, `clicks`. tasks: all
    by default. category .. delivery: item fields as `category:LEVEL` or `attribute:NAME`; place:
    a context feature. min_values: a field with fewer values has no task. train_per_user: at most
    so many training samples of a user, drawn by hash. max_age_days: of knowledge.
    """

    answer_from: Literal["orders", "clicks"] = "orders"
    tasks: tuple[str, ...] | None = None
    category: str = "category:0"
    sub_category: str = "category:1"
    dish_type: str = "attribute:dish_type"
    delivery: str = "attribute:delivery"
    place: str = "place"
    train_per_user: Count | None = None
    max_age_days: Count = 7
    seed: int = Field(default=0, ge=0)

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = sorted(set(value or ()) - set(TASKS))
        if unknown:
            raise ValueError(f"unknown tasks {unknown}; known are {', '.join(TASKS)}")
        return value
