"""The one strict config of a server: everything that is deployed is rendered from it."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raysys.errors import ArtifactError, ConfigError

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


class Models(_Strict):
    """The rankers; either may be absent."""

    ctr: Model | None = None
    news: Model | None = None

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
        if not list(self.models.served()):
            raise ValueError("models: name a run folder for ctr, news or both")
        return self

    @property
    def cpus(self) -> float:
        """CPUs that all replicas ask Ray for."""
        models = [(model.replicas, model.num_cpus) for _, model in self.models.served()]
        if self.fused:
            return self.gateway.replicas * (self.gateway.num_cpus + sum(c for _, c in models))
        return self.gateway.replicas * self.gateway.num_cpus + sum(n * c for n, c in models)


def load_config(path: Path, overrides: Sequence[str] = ()) -> ServeConfig:
    """Read a YAML file; relative run folders are made absolute against the working directory.

    Args:
        path: of the file.
        overrides: such as `http.port=8001`; values are read as YAML.

    Raises:
        ConfigError: unreadable, an unknown key (with the nearest valid one) or a bad value.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys such as http: and models:")
    for override in overrides:
        _set(raw, override)
    try:
        config = ServeConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error
    models = {
        name: model.model_copy(update={"run": model.run.expanduser().absolute()})
        for name, model in config.models.served()
    }
    return config.model_copy(update={"models": Models(**models)})


def _set(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"{override!r} is no override; write key.key=value")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{override!r}: {parent} holds a value, not keys")
    try:
        raw[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: not valid YAML after =") from error


def check_family(recipe: str, family: Family, model: Model) -> None:
    """A CTR run must not answer for news, nor the reverse.

    Raises:
        ArtifactError: `recipe` is not of `family`.
    """
    if recipe.partition("/")[0] != family:
        raise ArtifactError(
            f"models.{family}: {model.run} was trained by {recipe}, which is no {family} recipe"
        )


def _explain(error: ValidationError) -> str:
    """One fault in words; a misspelt key first, since it often causes the others."""
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    valid = _keys_beside(first["loc"])
    near = difflib.get_close_matches(str(first["loc"][-1]), valid, n=1, cutoff=0)
    return f"unknown key {where}; did you mean {near[0]}? Valid here: {', '.join(valid)}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    kind: Any = ServeConfig
    for part in location[:-1]:
        annotation = kind.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        kind = next(option for option in options if isinstance(option, type))
    return list(kind.model_fields)
