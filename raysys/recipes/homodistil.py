"""Train `llm/homodistil`: a thin student out of a teacher, on a corpus."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

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
from raysys.errors import ArtifactError, ConfigError, DataError
from raysys.homodistil.groups import groups_of
from raysys.homodistil.losses import LossWeights
from raysys.homodistil.rows import RowLoader, packed
from raysys.homodistil.schedule import Schedule
from raysys.homodistil.scores import Score
from raysys.homodistil.student import Student, targets
from raysys.homodistil.task import DistillTask
from raysys.llm.backbones import Backbone, BackboneSpec, open_backbone
from raysys.training import Session, TrainConfig, World, fit

Positive = Annotated[int, Field(ge=1)]


class HomoDistilRecipe(BaseModel):
    """`llm/homodistil`.

    data: a corpus. teacher: a backbone of the BERT or Llama family; it stays as it is. ratio: of
    heads, width and neurons that are left at the end, by the schedule. every: steps between two
    events. row_tokens: of a row; batch_rows: of a global batch. held_rows: held-out rows that are
    validated on, at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Literal["llm/homodistil"] = "llm/homodistil"
    data: str
    teacher: str = "wheel:minilm"
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    schedule: Literal["cubic", "linear", "exponential", "stairs", "oneshot"] = "cubic"
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(gt=0, le=1)] = 0.7
    score: Score = "platon"
    every: Positive = 10
    loss: LossWeights = LossWeights()
    row_tokens: Annotated[int, Field(ge=8)] = 128
    batch_rows: Positive = 16
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
        return fields


def ready(config: HomoDistilRecipe) -> Dataset:
    """Check corpus, teacher and target together.

    Raises:
        RaysysError: no corpus, no documents to train or to validate on, an architecture that is
            not covered, or a width that heads cannot reach.
    """
    dataset = _corpus(config)
    backbone = open_backbone(config.teacher)
    limit = backbone.max_positions
    if limit is not None and config.row_tokens > limit:
        raise ConfigError(f"row_tokens={config.row_tokens}, but the teacher has {limit} positions")
    net = load_teacher(backbone)
    groups_of(net)
    targets(net, config.ratio)
    for part in ("train", "valid"):
        _texts(dataset, part)
    return dataset


def train(config: HomoDistilRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs; rank 0 writes the run folder."""
    dataset, backbone = _corpus(config), open_backbone(config.teacher)
    tokenizer, net = backbone.tokenizer(), load_teacher(backbone)
    masked = "MaskedLM" in type(net).__name__
    parts = {
        part: packed(_texts(dataset, part), tokenizer, config.row_tokens)
        for part in ("train", "valid")
    }
    loader = RowLoader(
        parts["train"], config.batch_rows, config.train.seed, tokenizer, masked=masked
    )
    some = parts["valid"][: config.held_rows]
    # The same for every seed, so that students can be compared.
    judge = RowLoader(some, config.batch_rows, 0, tokenizer, masked=masked)
    held = judge.told(some, 0, torch.arange(len(some)).numpy())
    student = Student(net, config.score, config.train.seed)
    goal = targets(net, config.ratio)
    task = DistillTask(
        student, net, config.loss, config.pruning, goal, config.every, held, masked=masked
    )
    with torch.no_grad():
        before = task.validate(World.current(config.train.device)) if _leads(config) else {}
    result = fit(task, loader, config.train, session)
    summary: dict[str, Any] = {
        "step": result.step,
        "epochs": result.epochs,
        "stopped": result.stopped,
        "validation": result.metrics,
        "weights_sha256": result.weights_sha256,
    }
    if not _leads(config):
        return summary
    sizes = {name: int(value) for name, value in goal.items()}
    metrics = {
        "teacher": before,
        "student": result.metrics,
        "sizes": sizes,
        "rows": len(loader.rows),
        "tokens_seen": result.step * config.batch_rows * config.row_tokens,
    }

    def write(scratch: Path) -> None:
        student.net.save_pretrained(scratch / "hf")
        tokenizer.save_pretrained(scratch / "hf")
        told = {
            "teacher_sha256": backbone.sha256,
            "kept": {name: units.tolist() for name, units in student.kept.items()},
            "schedule": config.pruning.model_dump(),
            "score": config.score,
        }
        (scratch / "hf" / "pruning.json").write_text(json.dumps(told) + "\n", encoding="utf-8")

    summary["metrics"] = metrics
    summary["model_id"] = save_language_run(
        session.run_dir,
        write,
        model=f"transformers:{type(net).__name__}",
        recipe=config.recipe,
        recipe_options=config.model_dump(mode="json", context={"identity": True}),
        backbone={
            "spec": str(backbone.spec),
            "sha256": backbone.sha256,
            "licence": backbone.licence,
        },
        data_card=dataset.card,
        card_text=_card(config, dataset, metrics),
        metrics=metrics,
    )
    return summary


def load_teacher(backbone: Backbone) -> nn.Module:
    """The model as its folder says it is, in float32, dropout off, attention written out.

    Raises:
        ArtifactError: it does not load.
    """
    import transformers

    names = backbone.config.get("architectures") or ["AutoModel"]
    auto = {
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForCausalLM": transformers.AutoModelForCausalLM,
    }
    kind = next((c for tail, c in auto.items() if names[0].endswith(tail)), transformers.AutoModel)
    try:
        net: nn.Module = kind.from_pretrained(
            backbone.path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
            attn_implementation="eager",
        )  # fmt: skip
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{backbone.spec}: does not load ({error})") from error
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return net


def _leads(config: HomoDistilRecipe) -> bool:
    return World.current(config.train.device).leads


def _corpus(config: HomoDistilRecipe) -> Dataset:
    dataset = Dataset(config.data)
    if not dataset.has("documents"):
        raise DataError(
            f"{config.data}: no documents in it; import texts with `raysys data import corpus`"
        )
    return dataset


def _texts(dataset: Dataset, part: str) -> list[str]:
    table = dataset.table("documents", ["split", "title", "text"]).to_pylist()
    found = [
        f"{row['title']}. {row['text']}" if row["title"] else row["text"]
        for row in table
        if row["split"] == part
    ]
    if not found:
        raise DataError(f"{dataset.path}: no documents of the {part} part")
    return found


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
