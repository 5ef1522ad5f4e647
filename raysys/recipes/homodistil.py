"""Train `llm/homodistil`: a thin student out of a teacher, on a corpus."""

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import nn

from raysys.artifacts.language import save_language_run
from raysys.data.dataset import Dataset
from raysys.errors import ConfigError
from raysys.homodistil.begin import load_teacher, random_student, shallow_student
from raysys.homodistil.corpus import has_part, open_corpus, texts_of
from raysys.homodistil.folder import read_pruning, units_of, write_student
from raysys.homodistil.groups import Attn, Kind
from raysys.homodistil.losses import LossWeights
from raysys.homodistil.pictures import losses, speed_table, widths
from raysys.homodistil.plan import Event, Shape, events, training_flops
from raysys.homodistil.rows import RowLoader, Rows, packed, sentences
from raysys.homodistil.schedule import Schedule
from raysys.homodistil.scores import Norm, Score, ScoreAt
from raysys.homodistil.speed import speeds
from raysys.homodistil.student import Mode, Student, targets
from raysys.homodistil.task import DistillTask, headed
from raysys.llm.backbones import Backbone, BackboneSpec, open_backbone
from raysys.tracking.figures import write_figure
from raysys.tracking.metrics_log import METRICS_LOG, read_records
from raysys.training import Session, TrainConfig, World, fit

Positive = Annotated[int, Field(ge=1)]
_BEGUN = ("teacher", "random", "shallow")
_TIMED = 16  # rows by which the speed is told


class HomoDistilRecipe(BaseModel):
    """`llm/homodistil`.

    data: a corpus. teacher: a backbone of the BERT or Llama family; it stays as it is. ratio: of
    heads, width and neurons that are left at the end, by the schedule (its start and end are shares
    of all steps). every: steps between two events.

    student: what it begins as, a copy of the `teacher`, `random` weights of the final shape, the
    teacher's layers (`shallow`), so many that it is as large as the final shape, or an earlier
    student of this teacher (`dir:RUN/hf`), which learns on. mode: see `Student`. score, score_at,
    norm, attn: see `Scores`, `of_units`, `groups_of`. calibration: batches by which units are
    scored and lost before the first step, without a schedule.

    unit: texts one after the other in rows of row_tokens, or a row for each sentence, cut to them
    (a sentence encoder reads sentences). batch_rows: of a global batch. together: rows of a batch
    that are compared by `loss.similarity`. held_rows: of the held-out rows that are validated on,
    and of those of the test part, which are looked at once, at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Literal["llm/homodistil"] = "llm/homodistil"
    data: str
    teacher: str = "wheel:minilm"
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    schedule: Literal["cubic", "linear", "exponential", "stairs", "oneshot"] = "cubic"
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(gt=0, le=1)] = 0.7
    student: str = "teacher"
    mode: Mode = "compact"
    score: Score = "platon"
    score_at: ScoreAt = "pre_step"
    norm: Norm = "mean"
    attn: Attn = "heads"
    calibration: Annotated[int, Field(ge=0)] = 0
    every: Positive = 10
    loss: LossWeights = LossWeights()
    unit: Literal["packed", "sentences"] = "packed"
    row_tokens: Annotated[int, Field(ge=8)] = 128
    batch_rows: Positive = 16
    together: Positive = 16
    held_rows: Positive = 64
    train: TrainConfig = Field(
        default=TrainConfig(
            epochs=1, lr=6e-4, weight_decay=0.0, schedule="constant", warmup_steps=20, clip_norm=1.0
        )
    )

    @model_validator(mode="after")
    def _possible(self) -> "HomoDistilRecipe":
        BackboneSpec.parse(self.teacher)
        self.pruning  # noqa: B018 - refuses a start behind the end
        if self.train.early_stopping is not None:
            raise ValueError("train.early_stopping: an earlier student is a bigger one; leave it")
        if not self.student.startswith("dir:") and self.student not in _BEGUN:
            raise ValueError(
                f"student={self.student}: is none of {', '.join(_BEGUN)}, dir:FOLDER of a student"
            )
        if self.train.compile:
            raise ValueError("train.compile: a model that becomes smaller is not compiled")
        if self.score == "activation" and not self.calibration:
            raise ValueError("score=activation: is taken from calibration=N batches; give N")
        if self.score == "activation" and self.attn == "intra_head":
            raise ValueError("score=activation: knows whole heads only; use attn=heads")
        if self.student != "teacher" and (self.calibration or self.mode != "compact"):
            raise ValueError(
                f"student={self.student} loses nothing: leave calibration and mode as they are"
            )
        if self.loss.similarity and self.unit != "sentences":
            raise ValueError("loss.similarity: compares sentences; set unit=sentences")
        return self

    @property
    def pruning(self) -> Schedule:
        """The schedule."""
        return Schedule(ratio=self.ratio, shape=self.schedule, start=self.start, end=self.end)

    @model_serializer(mode="wrap")
    def _serialise(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if info.context and info.context.get("identity"):
            fields.pop("data")
            fields["teacher"] = open_backbone(self.teacher).sha256
            if self.student not in _BEGUN:
                fields["student"] = open_backbone(self.student).sha256
        return fields


def ready(config: HomoDistilRecipe) -> Dataset:
    """Check corpus, teacher and target together.

    Raises:
        RaysysError: no corpus, no documents to train or to validate on, an architecture that is
            not covered, or a width that heads cannot reach.
    """
    dataset = open_corpus(config.data)
    backbone = open_backbone(config.teacher)
    limit = backbone.max_positions
    if limit is not None and config.row_tokens > limit:
        raise ConfigError(f"row_tokens={config.row_tokens}, but the teacher has {limit} positions")
    net = load_teacher(backbone)
    _student(config, net, targets(net, config.ratio, config.attn), backbone)
    if config.unit == "sentences" and headed(net):
        raise ConfigError(f"unit=sentences: {config.teacher} predicts tokens; use unit=packed")
    for part in ("train", "valid"):
        texts_of(dataset, part)
    return dataset


def train(config: HomoDistilRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs; rank 0 writes the run folder."""
    dataset, backbone = open_corpus(config.data), open_backbone(config.teacher)
    tokenizer, teacher = backbone.tokenizer(), load_teacher(backbone)
    masked = "MaskedLM" in type(teacher).__name__
    loader = batches_of(config, dataset, tokenizer, masked=masked)
    held = _held(config, dataset, tokenizer, "valid", masked=masked)
    goal = targets(teacher, config.ratio, config.attn)
    student, layers = _student(config, teacher, goal, backbone)
    begun = Shape.of(student.net)
    steps = config.train.total_steps(loader.steps_per_epoch)
    planned: list[Event] = []
    if config.student == "teacher" and not config.calibration:
        planned = events(student.groups, config.pruning, goal, config.every, steps)
    task = DistillTask(
        student, teacher, config.loss, planned, held,
        masked=loader.masked, layers=layers, together=config.together,
    )  # fmt: skip
    with torch.no_grad():
        before = task.validate(World.current(config.train.device)) if _leads(config) else {}
    if config.calibration:
        batches = (loader.batch(0, step, 0, 1) for step in range(config.calibration))
        task.calibrate((batch for batch in batches if batch is not None), goal)
        begun = Shape.of(student.net)
    result = fit(task, loader, config.train, session)
    test = {}
    if _leads(config) and has_part(dataset, "test"):
        with torch.no_grad():
            test = task.measure(_held(config, dataset, tokenizer, "test", masked=masked))
    sizes, left = student.sizes(), student.count()
    student.finish()
    summary: dict[str, Any] = {
        "step": result.step,
        "epochs": result.epochs,
        "stopped": result.stopped,
        "validation": result.metrics,
        "weights_sha256": result.weights_sha256,
    }
    if not _leads(config):
        return summary
    full = targets(teacher, 1.0, config.attn)
    row = loader.tokens / len(loader.rows)
    told = dict(
        units=full["attn"],
        row=round(row),
        step_tokens=round(row * config.batch_rows),
        taught=task.taught,
        compact=config.mode == "compact",
    )
    whole = Shape.of(teacher)
    calibrating = 0.0
    if config.score == "activation":  # forward passes of the student alone
        calibrating = whole.forward(round(row)) * told["step_tokens"] * config.calibration
    elif config.score != "magnitude":
        asked = {**told, "taught": task.taught and headed(teacher)}
        calibrating = training_flops(whole, whole, [], config.calibration, **asked)

    def spent(steps: int) -> float:
        return training_flops(whole, begun, planned, steps, **told)

    metrics = {
        "begin": before,
        "student": result.metrics,
        "test": test,
        "sizes": sizes,
        "weights": left,
        "rows": len(loader.rows),
        "tokens_seen": round(result.step * config.batch_rows * row),
        "flops": {"training": spent(result.step), "calibration": calibrating},
    }
    speed = speeds(teacher, student.net, Rows(*(values[:_TIMED] for values in held)))

    def write(scratch: Path) -> None:
        begun = config.student if config.student in _BEGUN else "teacher"
        write_student(scratch / "hf", student, tokenizer, backbone, config.pruning, begun)

    log = read_records(session.run_dir / METRICS_LOG)
    figures = {"speed": speed_table(speed), **losses(log, spent)}
    if config.student != "shallow":
        first = full if planned else goal
        figures["widths"] = widths(full, first, planned, result.step)
    for name, figure in figures.items():
        write_figure(session.run_dir, name, figure)
    summary |= {"metrics": metrics, "speed": speed}
    summary["model_id"] = save_language_run(
        session.run_dir,
        write,
        model=f"transformers:{type(teacher).__name__}",
        recipe=config.recipe,
        recipe_options=config.model_dump(mode="json", context={"identity": True}),
        backbone={
            "spec": str(backbone.spec),
            "sha256": backbone.sha256,
            "licence": backbone.licence,
        },
        data_card=dataset.card,
        card_text=_card(config, dataset, metrics),
        metrics={**metrics, "speed": speed},
    )
    return summary


def _student(
    config: HomoDistilRecipe, teacher: nn.Module, goal: dict[Kind, int], backbone: Backbone
) -> tuple[Student, list[int] | None]:
    """The student before its first step, and the teacher's layers of its own where it has fewer."""
    seed, layers = config.train.seed, None
    width: int = teacher.config.hidden_size
    chosen: Any = dict(
        norm=config.norm, mode=config.mode, attn=config.attn, score_at=config.score_at,
        # Batches of a calibration are too few to be put together.
        window=1 if config.calibration else config.every,
    )  # fmt: skip
    if config.student not in _BEGUN:
        earlier = open_backbone(config.student)
        told = read_pruning(earlier, backbone)
        if told.begun != "teacher":
            raise ConfigError(
                f"student={config.student}: began as {told.begun}, and holds no units of the "
                "teacher that it could go on from; name a student that began as its teacher"
            )
        if told.schedule.ratio != config.ratio:
            raise ConfigError(
                f"ratio={config.ratio:g}, but {config.student} is what is left at "
                f"{told.schedule.ratio:g}; set ratio to that"
            )
        student = Student(load_teacher(earlier), width, config.score, seed, **chosen)
        student.adopt(units_of(told))
        return student, None
    if config.student == "random":
        net = random_student(teacher, goal, seed, config.attn)
    elif config.student == "shallow":
        net, layers = shallow_student(teacher, goal, config.attn)
    else:
        net = copy.deepcopy(teacher)
    return Student(net, width, config.score, seed, **chosen), layers


def batches_of(
    config: HomoDistilRecipe, dataset: Dataset, tokenizer: Any, *, masked: bool
) -> RowLoader:
    """What is trained on."""
    rows = _cut(config, dataset, tokenizer, "train")
    together = config.together if config.loss.similarity else 1
    seed = config.train.seed
    return RowLoader(rows, config.batch_rows, seed, tokenizer, masked=masked, together=together)


def _held(
    config: HomoDistilRecipe, dataset: Dataset, tokenizer: Any, part: str, *, masked: bool
) -> Rows:
    """Held-out rows, the same for every seed, so that students can be compared."""
    some = _cut(config, dataset, tokenizer, part)[: config.held_rows]
    judge = RowLoader(some, config.batch_rows, 0, tokenizer, masked=masked)
    return judge.told(np.arange(len(some)), 0)


def _cut(config: HomoDistilRecipe, dataset: Dataset, tokenizer: Any, part: str) -> Any:
    cut = sentences if config.unit == "sentences" else packed
    return cut(texts_of(dataset, part), tokenizer, config.row_tokens)


def _leads(config: HomoDistilRecipe) -> bool:
    return World.current(config.train.device).leads


def _card(config: HomoDistilRecipe, dataset: Dataset, metrics: dict[str, Any]) -> str:
    told = ", ".join(f"{name} {value:.4f}" for name, value in metrics["student"].items())
    return (
        f"# {config.recipe} on {dataset.card.dataset}\n\n"
        "A thin student by HomoDistil (Liang et al., ICLR 2023); how the paper keeps the residual "
        "stream consistent is not known, here all of it is one group.\n\n"
        f"Teacher `{config.teacher}`, of which {config.ratio:g} is left: {metrics['sizes']}. "
        f"Held out: {told}.\n\nData card `{dataset.card.id}`. Licence of the texts: "
        f"{dataset.card.licence}.\n\n"
        "The model is in `hf`, a plain Hugging Face folder; name it `dir:RUN/hf`.\n"
    )
