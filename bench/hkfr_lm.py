"""The language model of HKFR's fair test: pretrained once on what prompts say, tuned, asked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from bench.hkfr_data import Questions, Study
from raysys.hkfr.prompts import Encoded, Prompts
from raysys.hkfr.samples import SCHEMA
from raysys.hkfr.scoring import Scorer
from raysys.hkfr.tuning import weighted
from raysys.llm.backbones import open_backbone
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.llm.packing import Packed, PackedLoader
from raysys.llm.tokens import TextTokens
from raysys.llm.tuning import load_for_tuning
from raysys.metrics.blocks import Floats
from raysys.recipes.hkfr_instructions import write_samples
from raysys.recipes.llm_instruct import InstructRecipe
from raysys.recipes.registry import run as train
from raysys.training import CheckpointStore, InProcessReporter, Session, TrainConfig, World, fit

TASK = "next"
_ROWS, _PRETRAIN_LR = 8, 2e-3


class _Texts:
    """See `raysys.training.Task`: every token but the first is predicted."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def loss(self, batch: Packed) -> tuple[Tensor, Tensor]:
        return weighted(self.model, batch)


def pretrain(study: Study, texts: Sequence[str], folder: Path) -> None:
    """Write FOLDER/hf, a language model of our own that has read the texts but no answer.

    What was stopped goes on from its last checkpoint.
    """
    fresh = folder / "fresh"
    if not fresh.is_dir():
        sizes = FreshModel(
            layers=study.layers,
            width=study.width,
            heads=study.width // 32,
            vocab=study.vocab,
            positions=study.tokens,
        )
        write_fresh_model(fresh, sizes, texts)
    model, tokenizer, _ = load_for_tuning(open_backbone(f"dir:{fresh}"), "causal", {})
    tokens = TextTokens(tokenizer, study.tokens)
    prompts = Prompts(tokens)
    ids = [np.array([*prompts.prompt(text, ""), tokens.end], np.int32) for text in texts]
    read = Encoded(ids, np.zeros(len(ids), np.int64), "full")
    loader = PackedLoader(read.ids, read.weights, study.tokens, _ROWS, tokens.pad, 0)
    steps = max(1, study.pretrain_tokens // (_ROWS * study.tokens))
    config = TrainConfig(
        epochs=-(-steps // loader.steps_per_epoch),
        max_steps=steps,
        lr=_PRETRAIN_LR,
        schedule="cosine",
        warmup_steps=min(50, steps // 10),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    with InProcessReporter(show=False) as reporter:
        store = CheckpointStore(folder / "checkpoints", keep=1)
        fit(_Texts(model), loader, config, Session(folder, reporter, store))
    model.cpu().save_pretrained(folder / "hf", safe_serialization=True)
    tokenizer.save_pretrained(folder / "hf")


def tune(
    study: Study, asked: Questions, texts: Sequence[str], wordings: Sequence[str],
    answers: Sequence[str], base: Path, folder: Path, *, samples: int, lr: float, seed: int,
) -> float:  # fmt: skip
    """Write FOLDER/run/hf by `llm/instruct`; gives NDCG@10 on the questions of validation.

    texts, wordings, answers: [Q]. samples: of the first so many training questions.
    """
    groups = []
    for split in ("train", "valid"):
        rows = asked.rows(split)[: samples if split == "train" else None].tolist()
        columns = {
            "sample_id": [f"{split}-{row}" for row in rows],
            "user_id": [asked.users[row] for row in rows],
            "ts": [int(asked.task.cut[row]) for row in rows],
            "task": [TASK] * len(rows),
            "knowledge": [texts[row] for row in rows],
            "instruction": [wordings[row] for row in rows],
            "answer": [answers[row] for row in rows],
            "split": [split] * len(rows),
        }
        groups.append(pa.table(columns, schema=SCHEMA))
    card = {"data_card_id": asked.data.dataset.card.id}
    write_samples(folder / "samples", groups, {TASK: asked.names}, card, overwrite=True)
    steps = study.epochs * -(-samples // _ROWS)
    config = InstructRecipe.model_validate(
        {
            "data": str(folder / "samples"),
            "backbone": f"dir:{base}",
            "max_tokens": study.tokens,
            "row_tokens": study.tokens,
            "batch_rows": _ROWS,
            "task": TASK,
            "held_limit": study.valid,
            "rank_limit": study.valid,
            "train": {
                "epochs": study.epochs, "lr": lr, "seed": seed, "schedule": "cosine",
                "warmup_steps": min(20, steps // 10), "weight_decay": 0.01, "clip_norm": 1.0,
            },
        }
    )  # fmt: skip
    result = train(config, folder / "run", show_progress=False).result
    return float(result["validation"][f"{TASK}_ndcg@10"])


def ask(
    study: Study, weights: Path, texts: Sequence[str], wordings: Sequence[str], names: Sequence[str]
) -> Floats:
    """Exact scores [Q, V] of all names after Q prompts."""
    backbone = open_backbone(f"dir:{weights}")
    model = backbone.causal_model(World.current().device, torch.float32)
    tokens = TextTokens(backbone.tokenizer(), study.tokens)
    prompts = Prompts(tokens)
    ids = [prompts.name(name) for name in names]
    room = max(map(len, ids)) + 1
    asked = [prompts.prompt(*pair, room) for pair in zip(texts, wordings, strict=True)]
    found: Floats = Scorer(model, tokens.end, tokens.pad)(asked, ids).double().numpy()
    return found
