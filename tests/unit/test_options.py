"""Options: YAML and overrides, and a clear word for every fault."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from raysys.errors import ConfigError
from raysys.options import load_yaml, merge, parse_overrides, resolve, validate


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Train(Frozen):
    lr: Annotated[float, Field(gt=0)] = 1e-3
    epochs: int = 1


class Hash(Frozen):
    encoding: Literal["hash"] = "hash"
    buckets: int = 2


class Words(Frozen):
    encoding: Literal["words"] = "words"
    minimum: int = 1


class Config(Frozen):
    train: Train = Train()
    hidden: tuple[int, ...] = (8,)
    field: Annotated[Hash | Words, Field(discriminator="encoding")] = Hash()
    fields: tuple[Annotated[Hash | Words, Field(discriminator="encoding")], ...] = ()
    name: str = "x"


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train: {lr: 0.5, epochs: 3}\nhidden: [4, 2]\n")
    got = resolve(
        Config,
        file,
        ["train.epochs=7", "field.encoding=words", "field.minimum=2"],
        {"name": "given", "train": {"lr": 0.1}},
    )
    assert got == Config(
        train=Train(lr=0.5, epochs=7), hidden=(4, 2), field=Words(minimum=2), name="given"
    )
    assert resolve(Config) == Config()
    file.write_text("")
    assert resolve(Config, file) == Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-3", 1e-3),
        ("[64, 32]", [64, 32]),
        ("true", True),
        ("", None),
        ("null", None),
        ("a=b", "a=b"),
        ('"1"', "1"),
        ("-1.5E3", -1500.0),
        ("nan", "nan"),
        ("word", "word"),
    ],
)
def test_override_values_are_yaml(text: str, value: object) -> None:
    assert parse_overrides([f"a.b={text}"]) == {"a": {"b": value}}


def test_later_values_win_and_mappings_are_merged() -> None:
    assert parse_overrides(["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}
    base = {"a": {"b": 1, "c": 2}, "d": 1}
    assert merge(base, {"a": {"c": 3}, "d": {"e": 1}}) == {"a": {"b": 1, "c": 3}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tain.lr=1", "unknown key tain; did you mean train?"),
        ("train.lrr=1", "unknown key train.lrr; did you mean train.lr?"),
        ("train.qqq=1", "unknown key train.qqq; valid: epochs, lr"),
        ("train.lr=-1", "train.lr: Input should be greater than 0"),
        ("train.lr=fast", "train.lr: Input should be a valid number"),
        ("hidden=[a]", "hidden.0: Input should be a valid integer"),
        ("field.encoding=sound", "field: .*'hash', 'words'"),
        ("field.bucket=1", "field: Unable to extract tag using discriminator 'encoding'"),
        ("name", "'name' is no override; write key=value, e.g. train.lr=0.01"),
        ("=3", "'=3' is no override"),
        ("a=[", "'a=.*: the value is not valid YAML"),
    ],
)
def test_faults_name_key_and_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(Config, None, [override])


def test_members_of_unions_are_known_by_their_tag() -> None:
    for fields, message in (
        ([{"encoding": "words", "minimun": 1}], "unknown key fields.0.minimun; did you mean fiel"),
        ([{"encoding": "hash", "minimun": 1}], "unknown key fields.0.minimun; valid: buckets, enc"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(Config, {"fields": fields})


def test_all_faults_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Config, {"nam": 1, "train": {"epoch": 1}}, "here")
    text = str(caught.value)
    assert text.startswith("here: ")
    assert "did you mean name?" in text
    assert "did you mean train.epochs?" in text


def test_a_value_below_a_plain_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a.b=2': a has been given a plain value already"):
        parse_overrides(["a=1", "a.b=2"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "config.yaml: not valid YAML"),
        (b"- a", "config.yaml: expected `key: value` lines, found a list"),
        (b"\xff\xfe\x00", "config.yaml: not valid YAML"),
        (None, "config.yaml: cannot be read"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_yaml(file)
