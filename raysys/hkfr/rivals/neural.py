"""Training of a sequence rival by the one training loop, stopped early on later days."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from raysys.hkfr.next_task import Ints, NextTask, full_ranking
from raysys.hkfr.rivals.base import popularity
from raysys.hkfr.rivals.models import MBSTR, BERT4Rec, Caser, GRU4Rec, SASRec
from raysys.hkfr.rivals.sequences import SequenceBatch, SequenceModel, Sequences
from raysys.metrics.blocks import Floats
from raysys.training import (
    CheckpointStore,
    EarlyStopping,
    InProcessReporter,
    Session,
    TrainConfig,
    World,
    fit,
)
from raysys.training.rng import seed_everything

MODELS: dict[str, type[SequenceModel]] = {
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "caser": Caser,
    "mbstr": MBSTR,
}
GOAL_CUTOFF = 10
GOAL = f"ndcg@{GOAL_CUTOFF}"
_SCORED = 512


class SequenceConfig(BaseModel):
    """A sequence rival. length: newest events that are read (§2.1: 300); typed: whether behaviours
    are told apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["gru4rec", "sasrec", "bert4rec", "caser", "mbstr"] = "sasrec"
    length: int = Field(default=300, ge=1, le=300)
    width: int = Field(default=64, ge=2, multiple_of=2)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    typed: bool = True
    batch_size: int = Field(default=256, ge=1)
    train: TrainConfig = TrainConfig(
        epochs=30,
        lr=1e-3,
        clip_norm=5.0,
        early_stopping=EarlyStopping(metric=GOAL, patience=3),
        keep_checkpoints=1,
        checkpoint_every_seconds=None,
    )

    @model_validator(mode="after")
    def _in_this_process(self) -> Self:
        if self.train.workers != 0:
            raise ValueError("train.workers: rivals are trained in this process; leave it 0")
        return self


class SequenceRanker:
    """A `NextRanker` that is a neural network."""

    def __init__(self, config: SequenceConfig) -> None:
        self.config = config

    def fit(self, train: NextTask, valid: NextTask, seed: int) -> None:
        """Learn from scratch; the weights of the best epoch stay."""
        config = self.config
        seed_everything(seed)
        self.sequences = Sequences.fit(train, config.length, typed=config.typed)
        answers = train.take(train.target >= 0)
        # Every candidate is in training orders, but perhaps in none that is asked for.
        count = popularity(answers) * len(answers) + 1
        self.model = MODELS[config.model](
            torch.from_numpy(np.log(count / count.sum())).float(),
            self.sequences,
            config.width,
            config.dropout,
        )
        task = _Task(self, valid)
        loader = _Loader(self.sequences, answers, config.batch_size, seed)
        with TemporaryDirectory() as folder:
            run = Path(folder)
            # Not as a context: there is nothing to go on from, so an interrupt just ends it.
            reporter = InProcessReporter(show=False)
            session = Session(run, reporter, CheckpointStore(run / "checkpoints", keep=1))
            fit(task, loader, config.train.model_copy(update={"seed": seed}), session)
        self.model.eval()

    @torch.no_grad()
    def scores(self, queries: NextTask) -> Floats:
        """[Q, V] logits."""
        device = self.model.log_popularity.device
        out = np.empty((len(queries), len(queries.names)))
        for begin in range(0, len(queries), _SCORED):
            chosen = np.arange(begin, min(begin + _SCORED, len(queries)))
            batch = self.sequences.batch(queries, chosen)
            found = self.model(SequenceBatch(*(part.to(device) for part in batch)))
            out[chosen] = found.double().cpu().numpy()
        return out


class _Task:
    """See `raysys.training.Validated`."""

    def __init__(self, ranker: SequenceRanker, valid: NextTask) -> None:
        self.model: nn.Module = ranker.model
        self.ranker, self.valid = ranker, valid

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        return self.ranker.model.loss(batch)

    def validate(self, world: World) -> dict[str, float]:
        part = self.valid.take(np.arange(len(self.valid))[world.rows(len(self.valid))])
        found = full_ranking(self.ranker.scores(part), part.target, (GOAL_CUTOFF,))
        return {name: float(world.gather(values).mean()) for name, values in found.items()}


class _Loader:
    """Questions in an order that epoch and seed say; see `raysys.training.Loader`."""

    def __init__(self, sequences: Sequences, task: NextTask, size: int, seed: int) -> None:
        self.sequences, self.task, self.size, self.seed = sequences, task, size, seed
        self.steps_per_epoch = -(-len(task) // size)

    def batch(self, epoch: int, step: int, part: int, parts: int) -> SequenceBatch | None:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        whole = generator.permutation(len(self.task))[step * self.size : (step + 1) * self.size]
        mine: Ints = np.array_split(whole, parts)[part]
        return self.sequences.batch(self.task, mine) if len(mine) else None
