"""Records of steps that came to their end: by them a command goes on where it was stopped."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from raysys.data.files import write_text
from raysys.errors import ConfigError

_RECORD = "cell.json"


class Record(BaseModel):
    """config_sha256: of all that the outcome depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config_sha256: str


Kept = TypeVar("Kept", bound=Record)


def read_record(folder: Path, kind: type[Kept], sha256: str) -> Kept | None:
    """What an earlier call left in `folder`, if it came to the end.

    Raises:
        ConfigError: the folder holds a step with other options, data or model.
    """
    path = folder / _RECORD
    if not path.is_file():
        return None
    done = kind.model_validate_json(path.read_text(encoding="utf-8"))
    if done.config_sha256 != sha256:
        raise ConfigError(
            f"{folder}: made with other options, data or model; name another out folder, or remove "
            "it"
        )
    return done


def write_record(folder: Path, record: Record) -> None:
    """Say that the step is done; the last thing that is written."""
    write_text(folder / _RECORD, record.model_dump_json() + "\n")
