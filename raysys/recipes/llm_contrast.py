"""Train `llm/contrast`, LARR's stage 2: the language model becomes a text encoder."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from raysys.data.prepared import Prepared
from raysys.errors import ConfigError
from raysys.larr.batches import PairLoader
from raysys.larr.contrast import ContrastTask, Weights
from raysys.larr.embedding import EmbeddingHead, EmbeddingModel
from raysys.larr.log import Part
from raysys.larr.pairs import Kind, PairConfig, PairSets
from raysys.larr.recall import Retrieval, frozen_recalls, retrieval
from raysys.llm.backbones import BackboneSpec, open_backbone
from raysys.llm.tokens import append_end_token
from raysys.llm.tuning import tunable
from raysys.recipes import larr_stages, llm
from raysys.recipes.larr_stages import StageRecipe
from raysys.recipes.llm import Positive
from raysys.training import Session, TrainConfig, World, fit

_BEGIN_TEXTS = 256


class ContrastRecipe(StageRecipe):
    """`llm/contrast`.

    weights: λ of each kind of pairs. temperature: τ. width: d_e; hidden: of the head's MLP, left
    out the model's width. batch_size: pairs of each kind in one global batch. chunk_tokens:
    tokens of one forward pass: memory, not arithmetic.
    questions, pool, cutoffs: size of the recall measurement, and its k. Validation asks of its
    own days; the run's metrics.json holds the answers of the test days.
    baselines: what else is measured at the end: "untuned" (the backbone itself, mean and last
    pooling) or a backbone spec, with mean pooling.
    """

    recipe: Literal["llm/contrast"] = "llm/contrast"
    pairs: PairConfig = PairConfig()
    weights: Weights = Weights()
    temperature: float = Field(default=0.05, gt=0)
    width: Positive = 128
    hidden: Positive | None = None
    batch_size: int = Field(default=256, ge=2)
    chunk_tokens: Positive = 8192
    questions: int = Field(default=500, ge=2)
    pool: Positive = 2000
    cutoffs: tuple[Positive, ...] = (1, 10, 50)
    baselines: tuple[str, ...] = ("untuned",)
    train: TrainConfig = Field(
        default=TrainConfig(epochs=3, lr=3e-4, schedule="cosine", warmup_steps=10, clip_norm=1.0)
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.train.accumulation != 1:
            raise ValueError(
                "train.accumulation: every pair needs the whole batch; chunk_tokens bounds memory"
            )
        for name in self.baselines:
            if name != "untuned":
                BackboneSpec.parse(name)
        return self


def ready(config: ContrastRecipe) -> Prepared:
    """See `raysys.recipes.larr_stages.ready`; what is measured at the end can be opened."""
    for name in config.baselines:
        if name != "untuned":
            limit = open_backbone(name).max_positions
            if limit is not None and config.max_tokens > limit:
                raise ConfigError(
                    f"baselines: {name} has {limit} positions, max_tokens is {config.max_tokens}; "
                    "leave it out, or take fewer tokens"
                )
    return larr_stages.ready(config)


def train(config: ContrastRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs; rank 0 writes the run folder."""
    world = World.current(config.train.device)
    log = larr_stages.open_log(config)
    base = larr_stages.open_base(config, session, log, "body")
    body, tokenizer, new = base.load()
    tokens = llm.text_tokens(config, base, body, tokenizer)
    sets = PairSets(log, config.pairs, config.train.seed)
    kinds = config.weights.kinds
    loader = PairLoader(
        log,
        {kind: sets.train(kind) for kind in kinds},
        tokens,
        batch_size=config.batch_size,
        hard=config.pairs.hard,
        row_tokens=config.row_tokens,
        chunk_tokens=config.chunk_tokens,
        seed=config.train.seed,
    )
    chooses, judges = (_retrievals(config, sets, kinds, part) for part in ("valid", "test"))

    def build(loaded: Any) -> EmbeddingModel:
        size = int(loaded.config.hidden_size)
        head = EmbeddingHead(size, config.hidden or size, config.width)
        return EmbeddingModel(tunable(loaded, new, config.tuning), head)

    task = ContrastTask(
        build(body),
        weights=config.weights,
        temperature=config.temperature,
        world=world,
        even_passes=config.train.parallel == "fsdp" and world.size > 1,
        retrievals=chooses,
        cutoffs=config.cutoffs,
        tokens=tokens,
        row_tokens=config.row_tokens,
        rows_per_chunk=loader.rows_per_chunk,
    )
    task.begin(loader.sample(_BEGIN_TEXTS))
    result = fit(task, loader, config.train, session)
    after = task.recall(judges, world)
    whole = llm.plainly(task.model, lambda: build(base.load()[0]), config)
    metrics = {
        "validation": result.metrics,
        "after": after,
        "before": _baselines(config, base, judges, world),
        "pairs": {kind: len(pairs) for kind, pairs in loader.pairs.items()},
        "questions": {kind: len(found.queries) for kind, found in judges.items()},
        "pool": {kind: len(found.pool) for kind, found in judges.items()},
    }
    append_end_token(tokenizer)
    return llm.finish(
        config,
        session,
        log.data.dataset.card,
        base,
        result,
        told=config.told,
        model="raysys.larr.embedding:EmbeddingModel",
        body=whole.body,
        tokenizer=tokenizer,
        new=new,
        metrics=metrics,
        beside=lambda folder: whole.head.save(folder, config.max_tokens),
    )


def _retrievals(
    config: ContrastRecipe, sets: PairSets, kinds: tuple[Kind, ...], part: Part
) -> dict[Kind, Retrieval]:
    found = {kind: retrieval(sets, kind, part, config.questions, config.pool) for kind in kinds}
    return {kind: asked for kind, asked in found.items() if asked is not None}


def _baselines(
    config: ContrastRecipe,
    base: llm.Base,
    retrievals: dict[Kind, Retrieval],
    world: World,
) -> dict[str, dict[str, float]]:
    """Recall of models that nobody tuned, on the same questions; shared among the workers."""
    out = {}
    for name in config.baselines:
        spec = str(base.backbone.spec) if name == "untuned" else name
        for pooling in ("mean", "last") if name == "untuned" else ("mean",):
            label = f"{name}-{pooling}" if name == "untuned" else name
            out[label] = frozen_recalls(
                spec, pooling, config.max_tokens, retrievals, config.cutoffs, world
            )
    return out
