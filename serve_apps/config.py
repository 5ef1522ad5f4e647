"""The one strict config of a server: everything that is deployed is rendered from it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.data.loaders.reading import nearest
from raysys.errors import ArtifactError
from raysys.news.entities import EntityTable
from raysys.options import resolve

APP = "raysys"
Count = Annotated[int, Field(ge=1)]
Family = Literal["ctr", "news"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HTTP(_Strict):
    """Where the server listens. The default is this machine only: there are no API keys yet."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    request_timeout_s: Annotated[
        float, Field(gt=0, le=300, description="a client may ask for less, never for more")
    ] = 2.0


class Limits(_Strict):
    """What a request may cost. More than this is refused before any work is done."""

    body_bytes: Annotated[int, Field(ge=256)] = 131_072
    candidates: Count = 400
    history: Annotated[int, Field(ge=0, description="events sent with a request")] = 200
    context: Annotated[int, Field(ge=0, description="context features of a request or event")] = 32
    string: Annotated[int, Field(ge=1, le=256, description="characters of an id or value")] = 256
    in_flight: Annotated[int, Field(ge=1, description="requests per gateway replica")] = 64


class Gateway(_Strict):
    """The HTTP side."""

    replicas: Count = 1
    num_cpus: Annotated[float, Field(ge=0)] = 0.0


class Model(_Strict):
    """One served run folder.

    Requests that arrive while others are being scored are merged, up to `batch` at a time;
    `batch_wait_ms` makes the first of them wait for company, which is worth it on GPUs only.
    """

    run: Path
    replicas: Count = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    threads: Annotated[int, Field(ge=1, description="torch threads per replica")] = 1
    batch: Count = 16
    batch_wait_ms: Annotated[float, Field(ge=0, le=100)] = 0.0
    max_ongoing: Count = 64

    @model_validator(mode="after")
    def _room_for_two_batches(self) -> "Model":
        if self.max_ongoing < 2 * self.batch:
            raise ValueError(
                f"max_ongoing {self.max_ongoing} must be at least 2 × batch = {2 * self.batch}: "
                "one batch is scored while the next one fills"
            )
        return self


class Scene(_Strict):
    """The text encoder that fills scene values which the ctr model has no vector of.

    It is asked off the hot path; which encoder it is, the run says. `table` keeps what it has
    encoded, so that a restarted server need not encode it again; `max_values` bounds what one
    ranker replica takes in, because clients name the values.
    """

    replicas: Count = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    threads: Annotated[int, Field(ge=1, description="torch threads per replica")] = 1
    table: Path | None = None
    max_values: Count = 10_000


class Personas(_Strict):
    """Cards that show readers their personas, and heed what they ask for.

    store: SQLite file of what readers have asked for, on the node of its one replica. suppress,
    suppress_types: entities that count for nobody, by id or type, though the model knows them.
    """

    store: Path
    num_cpus: Annotated[float, Field(ge=0)] = 0.0
    suppress: tuple[str, ...] = ()
    suppress_types: tuple[str, ...] = ()

    def barred(self, table: EntityTable) -> tuple[str, ...]:
        """The ids that are suppressed.

        Raises:
            ArtifactError: an id or a type that the model does not know, which may be a slip.
        """
        for option, names, known in (
            ("suppress", self.suppress, set(table.ids)),
            ("suppress_types", self.suppress_types, set(table.types)),
        ):
            strange = sorted(set(names) - known)
            if strange:
                raise ArtifactError(
                    f"models.personas.{option}: {strange[0]!r} is not known to the news model"
                    + nearest(strange[0], sorted(known))
                )
        kept = zip(table.ids, table.types, strict=True)
        return tuple(
            name for name, kind in kept if name in self.suppress or kind in self.suppress_types
        )


class Llm(_Strict):
    """What is known of users in words, and a language model that is asked about them.

    knowledge: store of `build hkfr-knowledge`; each new night is read when it is there. model: run
    folder of llm/instruct or a backbone (wheel:, dir:, hub:); without one the knowledge is told and
    nothing is answered. samples: the folder it was tuned on, with the wording and candidates of its
    tasks. interests, interest_chars: most that an explanation names, and the longest.
    """

    knowledge: Path
    model: str | None = None
    samples: Path | None = None
    replicas: Count = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    threads: Annotated[int, Field(ge=1, description="torch threads per replica")] = 1
    in_flight: Annotated[int, Field(ge=1, description="questions per gateway replica")] = 4
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 30.0
    interests: Annotated[int, Field(ge=1, le=20)] = 5
    interest_chars: Annotated[int, Field(ge=8, le=400)] = 120
    max_new_tokens: Count = 300

    @model_validator(mode="after")
    def _samples_of_a_model(self) -> "Llm":
        if self.samples is not None and self.model is None:
            raise ValueError("samples: only a model is asked their tasks; name it")
        return self


class Models(_Strict):
    """The rankers, either of which may be absent, what helps them, and what tells of users."""

    ctr: Model | None = None
    news: Model | None = None
    scene: Scene | None = None
    personas: Personas | None = None
    llm: Llm | None = None

    def served(self) -> Iterator[tuple[Family, Model]]:
        """Those that are present."""
        if self.ctr is not None:
            yield "ctr", self.ctr
        if self.news is not None:
            yield "news", self.news


class ServeConfig(_Strict):
    """A whole server.

    `fused` puts the rankers into the gateway's processes. That saves a hop, most of the cost of
    a request; in return a replica that dies takes its open requests with it, where the split
    gateway would have asked another one.
    """

    http: HTTP = HTTP()
    limits: Limits = Limits()
    gateway: Gateway = Gateway()
    models: Models
    fused: bool = False

    @model_validator(mode="after")
    def _serves_something(self) -> "ServeConfig":
        if not list(self.models.served()) and self.models.llm is None:
            raise ValueError("models: name a run folder for ctr, news or both, or serve an llm")
        if self.models.scene is not None and self.models.ctr is None:
            raise ValueError("models.scene: only a ctr model has scenes; name its run folder")
        if self.models.personas is not None and self.models.news is None:
            raise ValueError("models.personas: only a news model has personas; name its run folder")
        return self

    @property
    def cpus(self) -> float:
        """CPUs that all replicas ask Ray for."""
        models = [(model.replicas, model.num_cpus) for _, model in self.models.served()]
        scene, personas = self.models.scene, self.models.personas
        beside = sum(
            part.replicas * part.num_cpus for part in (scene, self.models.llm) if part is not None
        )
        beside += 0.0 if personas is None else personas.num_cpus
        if self.fused:
            return beside + self.gateway_cpus * self.gateway.replicas
        return (
            beside + self.gateway.replicas * self.gateway.num_cpus + sum(n * c for n, c in models)
        )

    @property
    def longest_s(self) -> float:
        """The longest that any request may take."""
        llm = self.models.llm
        return max(self.http.request_timeout_s, 0.0 if llm is None else llm.timeout_s)

    @property
    def gateway_cpus(self) -> float:
        """CPUs of one gateway replica, with the rankers in it where they are fused."""
        fused = (model.num_cpus for _, model in self.models.served()) if self.fused else ()
        return self.gateway.num_cpus + sum(fused)


def load_config(path: Path, overrides: Sequence[str] = ()) -> ServeConfig:
    """Read a YAML file; relative folders are made absolute against the working directory.

    Args:
        path: of the file.
        overrides: such as `http.port=8001`.

    Raises:
        ConfigError: unreadable, an unknown key (with the nearest valid one) or a bad value.
    """
    config = resolve(ServeConfig, path, overrides)
    models: dict[str, BaseModel] = {
        name: model.model_copy(update={"run": model.run.expanduser().absolute()})
        for name, model in config.models.served()
    }
    scene = config.models.scene
    if scene is not None:
        table = None if scene.table is None else scene.table.expanduser().absolute()
        models["scene"] = scene.model_copy(update={"table": table})
    personas = config.models.personas
    if personas is not None:
        store = personas.store.expanduser().absolute()
        models["personas"] = personas.model_copy(update={"store": store})
    llm = config.models.llm
    if llm is not None:
        paths: dict[str, Any] = {"knowledge": llm.knowledge.expanduser().absolute()}
        if llm.samples is not None:
            paths["samples"] = llm.samples.expanduser().absolute()
        if llm.model is not None:
            paths["model"] = _model_at(llm.model)
        models["llm"] = llm.model_copy(update=paths)
    return config.model_copy(update={"models": config.models.model_copy(update=models)})


def _model_at(model: str) -> str:
    """A run folder or a backbone, folders absolute."""
    scheme, _, name = model.partition(":")
    if scheme in ("hub", "wheel"):
        return model
    if scheme == "dir":
        return f"dir:{Path(name).expanduser().absolute()}"
    return str(Path(model).expanduser().absolute())


def most_values(config: ServeConfig) -> int:
    """How many scene values one ranker replica takes in while it runs."""
    return 0 if config.models.scene is None else config.models.scene.max_values


def check_family(recipe: str, family: Family, model: Model) -> None:
    """A CTR run must not answer for news, nor the reverse.

    Raises:
        ArtifactError: `recipe` is not of `family`.
    """
    if recipe.partition("/")[0] != family:
        raise ArtifactError(
            f"models.{family}: {model.run} was trained by {recipe}, which is no {family} recipe"
        )
