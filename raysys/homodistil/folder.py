"""What lies beside a student's weights: whose student it is, and what is left of the teacher (§7).

pruning.json: teacher_sha256; begun, as what the student began (`HomoDistilRecipe.student`, an
earlier student being a teacher's); kept, of each group the units of the teacher; schedule; score.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from raysys.errors import ArtifactError
from raysys.homodistil.schedule import Schedule
from raysys.homodistil.student import Student
from raysys.llm.backbones import Backbone

PRUNING = "pruning.json"


class Pruning(BaseModel):
    """See the module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher_sha256: str
    begun: str
    kept: dict[str, list[int]]
    schedule: Schedule
    score: str


def write_student(
    folder: Path, student: Student, tokenizer: Any, teacher: Backbone, plan: Schedule, begun: str
) -> None:
    """A plain Hugging Face folder, and PRUNING in it."""
    net: Any = student.net
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = Pruning(
        teacher_sha256=teacher.sha256,
        begun=begun,
        kept={name: units.tolist() for name, units in student.kept.items()},
        schedule=plan,
        score=student.scores.kind,
    )
    (folder / PRUNING).write_text(told.model_dump_json() + "\n", encoding="utf-8")


def read_pruning(student: Backbone, teacher: Backbone) -> Pruning:
    """What is left of `teacher` in a student's folder.

    Raises:
        ArtifactError: no PRUNING, a damaged one, or one that names another teacher.
    """
    file = student.path / PRUNING
    if not file.is_file():
        raise ArtifactError(f"{student.spec}: {file} is missing; it is no student")
    try:
        told = Pruning.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{file}: {error.errors()[0]['msg']}") from error
    if told.teacher_sha256 != teacher.sha256:
        raise ArtifactError(
            f"{file} names another teacher ({told.teacher_sha256[:12]}) than {teacher.spec} "
            f"({teacher.sha256[:12]}); name the one that the student was made from"
        )
    return told


def units_of(pruning: Pruning) -> Mapping[str, Tensor]:
    """Group -> units of the teacher, ascending."""
    return {name: torch.tensor(units) for name, units in pruning.kept.items()}
