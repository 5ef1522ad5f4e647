"""Train `llm/pretrain`, LARR's stage 1: a language model learns the texts of places."""

from typing import Any, Literal

from pydantic import Field

from raysys.larr.corpus import documents, held_out, training_texts
from raysys.larr.pretrain import PretrainTask
from raysys.llm.packing import PackedLoader
from raysys.llm.tuning import tunable
from raysys.recipes import larr_stages, llm
from raysys.recipes.larr_stages import StageRecipe
from raysys.recipes.llm import Positive
from raysys.training import Session, TrainConfig, World, fit


class PretrainRecipe(StageRecipe):
    """`llm/pretrain`.

    cpt_loss: full, every token is predicted; completion, only what follows name and location.
    batch_rows: rows of row_tokens in one global batch.
    held_limit: held-out places that perplexity is measured on, at most: by some of them epochs are
    validated, of the others metrics.json tells.
    """

    recipe: Literal["llm/pretrain"] = "llm/pretrain"
    cpt_loss: Literal["full", "completion"] = "full"
    batch_rows: Positive = 8
    held_limit: Positive = 500
    train: TrainConfig = Field(
        default=TrainConfig(epochs=3, lr=3e-4, schedule="cosine", warmup_steps=10, clip_norm=1.0)
    )


def train(config: PretrainRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs; rank 0 writes the run folder."""
    world = World.current(config.train.device)
    log = larr_stages.open_log(config)
    base = larr_stages.open_base(config, session, log, "causal")
    model, tokenizer, new = base.load()
    tokens = llm.text_tokens(config, base, model, tokenizer)
    docs = documents(training_texts(log), tokens, config.text.told)
    chooses, judges = (
        documents(held_out(log, part)[: config.held_limit], tokens, config.text.told)
        for part in ("valid", "test")
    )
    loader = PackedLoader(
        docs.ids,
        docs.weights(config.cpt_loss),
        config.row_tokens,
        config.batch_rows,
        tokens.pad,
        config.train.seed,
    )
    per_pass = max(1, config.batch_rows // (world.size * config.train.accumulation))
    task = PretrainTask(
        tunable(model, new, config.tuning), chooses, config.row_tokens, tokens.pad, per_pass
    )
    before = task.perplexity(judges, world)
    result = fit(task, loader, config.train, session)
    after = task.perplexity(judges, world)
    whole = llm.plainly(task.model, lambda: tunable(base.load()[0], new, config.tuning), config)
    metrics = {
        "before": before,
        "after": after,
        "validation": result.metrics,
        "held_out_places": len(judges.ids),
        "documents": len(docs.ids),
        "tokens": loader.tokens,
        "texts_cut": tokens.cut,
        "row_fill": round(loader.fill, 4),
    }
    return llm.finish(
        config,
        session,
        log.data.dataset.card,
        base,
        result,
        told=config.told,
        model="transformers:AutoModelForCausalLM",
        body=whole,
        tokenizer=tokenizer,
        new=new,
        metrics=metrics,
    )
