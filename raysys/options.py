"""Options: a frozen pydantic model filled from a YAML file and `a.b=c` overrides, strictly."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raysys.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: missing, not YAML, or something else than a mapping.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(raw).__name__}")
    return raw


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`["train.lr=0.01", "model.hidden=[64,32]"]` as a nested mapping; values are YAML.

    Raises:
        ConfigError: an assignment without `=`, or one below a plain value.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"{assignment!r} is no override; write key=value, e.g. train.lr=0.01")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{assignment!r}: the value is not valid YAML ({error})") from error
        if _EXPONENT.fullmatch(text):  # YAML 1.1 reads 1e-3 as text; people mean the number
            value = float(text)
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{assignment!r}: {parent} has been given a plain value already")
        node[leaf] = value
    return tree


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, mapping by mapping."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train.lr": x}` as `{"train": {"lr": x}}`.

    Raises:
        ConfigError: one key lies below another that has a plain value.
    """
    tree: dict[str, Any] = {}
    for key, value in leaves.items():
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {parent} has been given a plain value already")
        node[leaf] = value
    return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": x}}` as `{"train.lr": x}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves


def validate(kind: type[Model], values: dict[str, Any], source: str = "options") -> Model:
    """Build `kind`; every fault in one message, unknown keys with the nearest valid ones.

    Raises:
        ConfigError: an unknown key or an impossible value.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = [_fault(kind, fault) for fault in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(faults)) from error


def _fault(kind: type[BaseModel], fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{where} is missing"
    if fault["type"] != "extra_forbidden":
        message = fault["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    *path, key = (str(part) for part in fault["loc"])
    parents, known = _reached(kind, path)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = (
        f"did you mean {'.'.join([*parents, near[0]])}?" if near else f"valid: {', '.join(known)}"
    )
    return f"unknown key {'.'.join([*parents, key])}; {hint}"


def _reached(kind: type[BaseModel], path: list[str]) -> tuple[list[str], list[str]]:
    """`path` as a user writes it, and the field names of what it leads to from `kind`.

    In a union, pydantic's path also names the tag of the chosen model, which no key does.
    """
    written: list[str] = []
    models = [kind]
    for part in path:
        tagged = [m for m in models if part in [f.default for f in m.model_fields.values()]]
        if len(models) > 1 and tagged:
            models = tagged
            continue
        written.append(part)
        field = models[0].model_fields.get(part)
        models = (_models(field.annotation) if field else []) or models
    return written, sorted({name for model in models for name in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def resolve(
    kind: type[Model],
    config: Path | None = None,
    overrides: Iterable[str] = (),
    defaults: dict[str, Any] | None = None,
) -> Model:
    """Defaults, then the YAML file, then the overrides, validated as `kind`.

    A part that is a model itself keeps those of its defaults that nothing overrides, also where
    `kind` gives the part other defaults than the part's own class has.

    Raises:
        ConfigError: see `load_yaml`, `parse_overrides` and `validate`.
    """
    values = merge(_nested_defaults(kind), defaults or {})
    if config is not None:
        values = merge(values, load_yaml(config))
    values = merge(values, parse_overrides(overrides))
    return validate(kind, values, str(config) if config else "options")


def _nested_defaults(kind: type[BaseModel]) -> dict[str, Any]:
    return {
        name: field.default.model_dump()
        for name, field in kind.model_fields.items()
        # Of a union another member may be chosen, whose fields are others.
        if isinstance(field.default, BaseModel) and len(_models(field.annotation)) == 1
    }
