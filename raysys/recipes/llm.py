"""What the recipes that tune a language model have in common: texts, backbone, saving."""

from collections.abc import Callable, Sequence
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
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError
from raysys.larr.corpus import training_texts
from raysys.larr.log import Log
from raysys.larr.packing import attention_keeps_apart
from raysys.larr.texts import SPECIAL_TOKENS, TextConfig
from raysys.larr.tokens import TextTokens
from raysys.llm.backbones import Backbone, BackboneSpec, open_backbone
from raysys.llm.fresh import FreshModel, write_fresh_model
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
    holdout: share of places that no stage trains on; give both stages the same, and the seed.
    max_tokens: T, tokens of one text with its end token; longer ones are cut.
    row_tokens: width of the rows that texts are packed into.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    data: str
    backbone: str | FreshModel = FreshModel()
    text: TextConfig = TextConfig()
    holdout: float = Field(default=0.1, ge=0, lt=1)
    holdout_seed: int = Field(default=0, ge=0)
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
    """The model to tune as it is before: a folder, opened when needed."""

    backbone: Backbone
    kind: Literal["causal", "body"]

    def load(self) -> tuple["PreTrainedModel", Any, list[int]]:
        """See `load_for_tuning`."""
        return load_for_tuning(self.backbone, self.kind, SPECIAL_TOKENS)

    def describe(self) -> dict[str, Any]:
        """For config.json and the card."""
        found = self.backbone
        return {"spec": str(found.spec), "sha256": found.sha256, "licence": found.licence}


def open_log(config: LlmRecipe) -> Log:
    """The data set as the stages see it.

    Raises:
        DataError: damaged, or nothing to learn from.
    """
    data: Prepared = prepare(Dataset(config.data))
    return Log.of(data, config.text, config.holdout, config.holdout_seed)


def ready(config: LlmRecipe) -> Prepared:
    """Check data and options together.

    Raises:
        RaysysError: nothing can be learned from these data with these options.
    """
    log = open_log(config)
    training_texts(log)
    backbone = config.backbone
    limit = (
        backbone.positions
        if isinstance(backbone, FreshModel)
        else open_backbone(backbone).max_positions
    )
    if limit is not None and config.max_tokens > limit:
        raise ConfigError(f"max_tokens={config.max_tokens}, but the backbone has {limit} positions")
    return log.data


def open_base(
    config: LlmRecipe, session: Session, log: Log, kind: Literal["causal", "body"]
) -> Base:
    """The backbone; rank 0 writes a model of our own into RUN/base first."""
    if isinstance(config.backbone, str):
        return Base(open_backbone(config.backbone), kind)
    folder = session.run_dir / "base"
    world = World.current(config.train.device)
    if world.leads and not folder.is_dir():
        texts = training_texts(log)
        # Its vocabulary is learned from training days alone, too.
        begin, end = log.train_spans
        texts += [
            log.user_text(user, int(begin[user]), int(end[user]), "user", training=True)
            for user in range(min(len(begin), 1000))
        ]
        write_fresh_model(folder, config.backbone, texts)
    world.share(None)  # Nobody opens it before it is there.
    return Base(open_backbone(f"dir:{folder}"), kind)


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
    log: Log,
    base: Base,
    result: FitResult,
    *,
    model: str,
    body: nn.Module,
    tokenizer: Any,
    new: Sequence[int],
    metrics: dict[str, Any],
    beside: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Write the run folder on rank 0; gives the summary of the run.

    body: what `tunable` gave, trained and whole. beside: writes more into the hf folder.
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

    data_card = log.data.dataset.card
    summary["model_id"] = save_language_run(
        session.run_dir,
        write,
        model=model,
        recipe=config.recipe,
        recipe_options=config.model_dump(mode="json", context={"identity": True}),
        backbone=base.describe(),
        data_card=data_card,
        card_text=_card(config, log, base, summary),
        metrics=metrics,
    )
    return summary


def _card(config: LlmRecipe, log: Log, base: Base, summary: dict[str, Any]) -> str:
    card = log.data.dataset.card
    validation = ", ".join(f"{k} {v:.4f}" for k, v in summary["validation"].items()) or "none"
    return (
        f"# {config.recipe} on {card.dataset}\n\n"
        "Stage of LARR, a reconstruction (Wan et al., RecSys 2024); no published figures "
        "compared.\n\n"
        f"Backbone `{base.backbone.spec}` (licence {base.backbone.licence}), tuned "
        f"{config.tuning.method} for {summary['epochs']} epochs ({summary['step']} steps), seed "
        f"{config.train.seed}. Held out: {config.holdout:g} of the places. Validation: "
        f"{validation}.\n\n"
        f"Data card `{card.id}`. Licence of the data: {card.licence}.\n\n"
        "The model is in `hf`, a plain Hugging Face folder; name it `dir:RUN/hf`.\n"
    )
