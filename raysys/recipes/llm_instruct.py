"""Train `llm/instruct`, HKFR's stage 2: a language model answers from a user's knowledge."""

from typing import Annotated, Any, Literal

from pydantic import Field

from raysys.errors import DataError
from raysys.hkfr.prompts import Encoded, Prompts
from raysys.hkfr.samples import Samples
from raysys.hkfr.scoring import scores_by_cache
from raysys.hkfr.tuning import Held, InstructTask
from raysys.llm.packing import PackedLoader
from raysys.llm.tuning import tunable
from raysys.recipes import llm
from raysys.recipes.llm import LlmRecipe, Positive
from raysys.training import Session, TrainConfig, World, fit

_TOLD = (
    "Stage of HKFR, a reconstruction (Yin et al., RecSys 2023): answers from a user's knowledge. "
    "The paper's templates, hyper-parameters and candidate sets are not published, so that its "
    "figures do not compare."
)


class InstructRecipe(LlmRecipe):
    """`llm/instruct`.

    data: a folder of instruction samples. other_tasks: share of the training samples of tasks other
    than `task` that are learned too, chosen by a hash; 0: `task` alone. loss: answer, only the
    answer and its end are predicted; full, the prompt too. batch_rows: rows of row_tokens in one
    global batch. task: whose vocabulary is ranked by exact scores, len_norm: their normalisation by
    length. held_limit, rank_limit: held-out samples that are predicted, and ranked, at most: by
    those of validation epochs are judged, of those of the test part metrics.json tells before and
    after.
    """

    recipe: Literal["llm/instruct"] = "llm/instruct"
    other_tasks: Annotated[float, Field(ge=0, le=1)] = 1.0
    loss: Literal["answer", "full"] = "answer"
    max_tokens: int = Field(default=1024, ge=8)
    row_tokens: int = Field(default=1024, ge=8)
    batch_rows: Positive = 8
    task: str = "category"
    len_norm: Literal["none", "mean"] = "none"
    held_limit: Positive = 500
    rank_limit: Positive = 200
    train: TrainConfig = Field(
        default=TrainConfig(epochs=3, lr=2e-4, schedule="cosine", warmup_steps=10, clip_norm=1.0)
    )


def ready(config: InstructRecipe) -> Samples:
    """Check samples and options together.

    Raises:
        RaysysError: a damaged folder, nothing to train on, a task without candidates.
    """
    samples = Samples.open(config.data)
    if not samples.of("train", 1):
        raise DataError(f"{config.data}: no samples of the train part")
    if config.other_tasks < 1 and not samples.of("train", 1, config.task):
        raise DataError(
            f"other_tasks={config.other_tasks:g}: {config.data} has no training samples of "
            f"{config.task} itself; learn all"
        )
    if not samples.vocabulary.get(config.task):
        known = ", ".join(sorted(samples.vocabulary)) or "none"
        raise DataError(
            f"task={config.task}: {config.data}/vocabulary.json has names for {known} only"
        )
    llm.refuse_too_long(config)
    return samples


def train(config: InstructRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs; rank 0 writes the run folder."""
    world = World.current(config.train.device)
    samples = Samples.open(config.data)
    lessons = samples.lessons(config.task, config.other_tasks)
    base = llm.open_base(
        config,
        session,
        "causal",
        {},
        lambda: [f"{s.knowledge}\n{s.instruction}\n{s.answer}" for s in lessons],
    )
    model, tokenizer, new = base.load()
    tokens = llm.text_tokens(config, base, model, tokenizer)
    prompts = Prompts(tokens)
    encoded = Encoded.of(lessons, prompts, config.loss)
    cut = prompts.cut
    chooses, judges = (
        Held.of(
            samples, prompts, part, config.task, limit=config.held_limit, ranked=config.rank_limit
        )
        for part in ("valid", "test")
    )
    loader = PackedLoader(
        encoded.ids,
        encoded.weights,
        config.row_tokens,
        config.batch_rows,
        tokens.pad,
        config.train.seed,
    )
    task = InstructTask(
        tunable(model, new, config.tuning),
        chooses,
        end=tokens.end,
        pad=tokens.pad,
        width=config.row_tokens,
        rows_per_pass=max(1, config.batch_rows // (world.size * config.train.accumulation)),
        len_norm=config.len_norm,
    )
    scores_by_cache(task.scorer)
    before = task.measure(judges, world)
    result = fit(task, loader, config.train, session)
    after = task.measure(judges, world)
    whole = llm.plainly(task.model, lambda: tunable(base.load()[0], new, config.tuning), config)
    metrics = {
        "before": before,
        "after": after,
        "validation": result.metrics,
        "samples": len(encoded.ids),
        "held_out_samples": len(judges.answers.ids),
        "ranked_samples": len(judges.prompts),
        "candidates": len(judges.names),
        "answers_unknown": judges.right.count(-1),
        "tokens": loader.tokens,
        "prompts_cut": cut,
        "row_fill": round(loader.fill, 4),
    }
    return llm.finish(
        config,
        session,
        samples.card,
        base,
        result,
        told=_TOLD,
        model="transformers:AutoModelForCausalLM",
        body=whole,
        tokenizer=tokenizer,
        new=new,
        metrics=metrics,
    )
