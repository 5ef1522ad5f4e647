"""What the recipes that tune a language model have in common: options, backbone, saving."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

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
from raysys.data.manifest import DataCard
from raysys.errors import ConfigError
from raysys.llm.backbones import Backbone, BackboneSpec, open_backbone
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.llm.packing import attention_keeps_apart
from raysys.llm.tokens import TextTokens
from raysys.llm.tuning import TuningConfig, load_for_tuning, save_tuned
from raysys.training import (
    FitResult,
    Session,
    TrainConfig,
    World,
)
from raysys.training.sharding import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Positive = Annotated[int, Field(ge=1)]


class LlmRecipe(BaseModel):
    """Config of a recipe that tunes a language model.

    backbone: a spec (`hub:`, `dir:`, `wheel:`), or the sizes of a model of our own that begins
    with random weights and a vocabulary of the corpus.
    max_tokens: T, tokens of one text with its end token; longer ones are cut.
    row_tokens: width of the rows that texts are packed into.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    data: str
    backbone: str | FreshModel = FreshModel()
    max_tokens: int = Field(default=128, ge=8)
    row_tokens: int = Field(default=512, ge=8)
    tuning: TuningConfig = TuningConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if isinstance(self.backbone, str):
            BackboneSpec.parse(self.backbone)
        if self.max_tokens > self.row_tokens:
            raise ValueError(f"max_tokens={self.max_tokens} is beyond row_tokens={self.row_tokens}")
        return self

    @model_serializer(mode="wrap")
    def _serialise(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if info.context and info.context.get("identity"):
            # Where files lie does not change what is learned: the data card and the sha256 do.
            fields.pop("data")
            if isinstance(self.backbone, str):
                fields["backbone"] = open_backbone(self.backbone).sha256
        return fields


@dataclass(frozen=True)
class Base:
    """The model to tune as it is before: a folder, opened when needed.

    tokens: special tokens of the recipe's texts, see `load_for_tuning`.
    """

    backbone: Backbone
    kind: Literal["causal", "body"]
    tokens: Mapping[str, str]

    def load(self) -> tuple["PreTrainedModel", Any, list[int]]:
        """See `load_for_tuning`."""
        return load_for_tuning(self.backbone, self.kind, self.tokens)

    def describe(self) -> dict[str, Any]:
        """For config.json and the card."""
        found = self.backbone
        return {"spec": str(found.spec), "sha256": found.sha256, "licence": found.licence}


def refuse_too_long(config: LlmRecipe) -> None:
    """Compare max_tokens with the backbone's positions.

    Raises:
        ConfigError: it has fewer.
    """
    backbone = config.backbone
    limit = (
        backbone.positions
        if isinstance(backbone, FreshModel)
        else open_backbone(backbone).max_positions
    )
    if limit is not None and config.max_tokens > limit:
        raise ConfigError(f"max_tokens={config.max_tokens}, but the backbone has {limit} positions")


def open_base(
    config: LlmRecipe,
    session: Session,
    kind: Literal["causal", "body"],
    tokens: Mapping[str, str],
    texts: Callable[[], Sequence[str]],
) -> Base:
    """The backbone; rank 0 writes a model of our own into RUN/base first.

    tokens: see `Base`; texts: what the vocabulary of a model of our own is learned from.
    """
    if isinstance(config.backbone, str):
        return Base(open_backbone(config.backbone), kind, tokens)
    folder = session.run_dir / "base"
    world = World.current(config.train.device)
    if world.leads and not folder.is_dir():
        write_fresh_model(folder, config.backbone, texts())
    world.share(None)  # Nobody opens it before it is there.
    return Base(open_backbone(f"dir:{folder}"), kind, tokens)


def text_tokens(
    config: LlmRecipe, base: Base, model: "PreTrainedModel", tokenizer: Any
) -> TextTokens:
    """The tokenizer of the recipe's texts, after a look at the model's attention.

    Raises:
        ConfigError: the model lets packed texts see each other.
    """
    attention_keeps_apart(model.base_model, len(tokenizer))
    return TextTokens(tokenizer, config.max_tokens)


def plainly(model: nn.Module, rebuild: Callable[[], nn.Module], config: LlmRecipe) -> nn.Module:
    """The trained model whole, on rank 0; collective. A sharded one is built anew.

    rebuild: the same model, untrained.
    """
    world = World.current(config.train.device)
    if config.train.parallel != "fsdp" or world.size == 1:
        return model.cpu() if world.leads else model
    state = whole(model.state_dict(), world.leads)
    if not world.leads:
        return model
    again = rebuild()
    again.load_state_dict(state)
    return again


def finish(
    config: LlmRecipe,
    session: Session,
    data_card: DataCard,
    base: Base,
    result: FitResult,
    *,
    told: str,
    model: str,
    body: nn.Module,
    tokenizer: Any,
    new: Sequence[int],
    metrics: dict[str, Any],
    beside: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Write the run folder on rank 0; gives the summary of the run.

    told: what the stage is, and what was held out, for the card. body: what `tunable` gave,
    trained and whole. beside: writes more into the hf folder.
    """
    summary: dict[str, Any] = {
        "step": result.step,
        "epochs": result.epochs,
        "stopped": result.stopped,
        "kept_step": result.best_step or result.step,
        "validation": result.metrics,
        "weights_sha256": result.weights_sha256,
        "metrics": metrics,
    }
    if not World.current(config.train.device).leads:
        return summary

    def write(scratch: Path) -> None:
        tune = config.tuning
        fresh = base.load()[0] if (tune.method, tune.save) == ("lora", "adapter") else None
        save_tuned(body, tokenizer, scratch, tune, fresh, new, session.run_dir)
        if beside is not None:
            beside(scratch / "hf")

    summary["model_id"] = save_language_run(
        session.run_dir,
        write,
        model=model,
        recipe=config.recipe,
        recipe_options=config.model_dump(mode="json", context={"identity": True}),
        backbone=base.describe(),
        data_card=data_card,
        card_text=_card(config, data_card, base, summary, told),
        metrics=metrics,
    )
    return summary


def _card(config: LlmRecipe, card: DataCard, base: Base, summary: dict[str, Any], told: str) -> str:
    validation = ", ".join(f"{k} {v:.4f}" for k, v in summary["validation"].items()) or "none"
    return (
        f"# {config.recipe} on {card.dataset}\n\n{told}\n\n"
        f"Backbone `{base.backbone.spec}` (licence {base.backbone.licence}), tuned "
        f"{config.tuning.method} for {summary['epochs']} epochs ({summary['step']} steps), seed "
        f"{config.train.seed}. Validation: {validation}.\n\n"
        f"Data card `{card.id}`. Licence of the data: {card.licence}.\n\n"
        "The model is in `hf`, a plain Hugging Face folder; name it `dir:RUN/hf`.\n"
    )
