"""Which run this is, what code it began with, and who may write to its folder now."""

import hashlib
import json
import uuid
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import raysys
from raysys.data.files import write_text
from raysys.errors import ArtifactError, ResumeError
from raysys.options import flat
from raysys.training.checkpoints import FORMAT


class RunRecord(BaseModel):
    """`checkpoints/run.json`: written when a run begins, checked whenever it is continued.

    `name` is the hash of everything that decides the result (config, data, format); `code` the
    fingerprint of the package it began with; `attempt` changes with each launch, so that a
    worker of an earlier launch that is still alive can see that it must not write any more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    format: int
    data_card_id: str
    code: str
    attempt: str
    config: dict[str, Any]


def identity(config: BaseModel) -> dict[str, Any]:
    """The config without what only says where and how safely to run (`TrainConfig.EXECUTION`)."""
    return config.model_dump(mode="json", context={"identity": True})


def run_name(config: BaseModel, data_card_id: str) -> str:
    """16 hex digits: hash of the frozen config, the data card and the checkpoint format."""
    body = {"config": identity(config), "data_card_id": data_card_id, "format": FORMAT}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_fingerprint(root: Path = Path(raysys.__file__).parent) -> str:
    """Hex sha256 over the paths and bytes of every source file of a package, by default ours."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def claim(
    checkpoints: Path, config: BaseModel, data_card_id: str, allow_code_change: bool
) -> RunRecord:
    """Record a launch of this run in the folder `checkpoints`, or refuse it.

    Raises:
        ResumeError: the folder belongs to another run (names what differs), or to this run but
            begun with other code and `allow_code_change` is false.
        ArtifactError: the record is damaged.
    """
    record = RunRecord(
        name=run_name(config, data_card_id),
        format=FORMAT,
        data_card_id=data_card_id,
        code=code_fingerprint(),
        attempt=uuid.uuid4().hex,
        config=identity(config),
    )
    path = checkpoints / "run.json"
    if path.exists():
        begun = read_record(path)
        if begun.name != record.name:
            raise ResumeError(
                f"{checkpoints.parent} holds another run ({begun.name}); different: "
                f"{differences(_body(begun), _body(record))}. Choose another --out"
            )
        if begun.code != record.code and not allow_code_change:
            raise ResumeError(
                f"{checkpoints.parent} was begun with other code (raysys sources "
                f"{begun.code[:12]}, now {record.code[:12]}): go on with the old code, allow the "
                "change with --allow-code-change, or choose another --out"
            )
    write_text(path, record.model_dump_json(indent=1))
    return record


def read_record(path: Path) -> RunRecord:
    """The record in `path`; raises ArtifactError if it is damaged."""
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); choose another --out") from error


def check_current(path: Path, attempt: str) -> None:
    """Raise ResumeError unless `attempt` is the launch that owns the run now."""
    if read_record(path).attempt != attempt:
        raise ResumeError(f"{path.parent} has been taken over by a later launch of the same run")


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Where two trees of options differ: `train.lr (0.1 → 0.2), …`."""
    before, after = flat(old), flat(new)
    keys = sorted(key for key in before | after if before.get(key) != after.get(key))
    return ", ".join(f"{key} ({before.get(key)} → {after.get(key)})" for key in keys)


def _body(record: RunRecord) -> dict[str, Any]:
    return {**record.config, "data_card_id": record.data_card_id, "format": record.format}
