"""Our side of a comparison with FuxiCTR: its model out of our layers, our loader, our loop.

Each run is a process of its own.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from bench.equal_data import FEATURES, ITEM_FIELDS, impressions_of, split_rows
from bench.equal_din import EqualDIN
from bench.equal_longctr import EqualLongCTR, LongSizes
from raysys.ctr.din import DIN
from raysys.data.batch import Batch, Collator, Pointers
from raysys.data.catalogue import Catalogue
from raysys.data.dataset import Dataset
from raysys.data.features import FeatureSpace, fit_features
from raysys.data.prepared import Prepared, prepare
from raysys.data.sampling import ImpressionLoader, pointers_of
from raysys.errors import RaysysError
from raysys.metrics import pointwise, ranking
from raysys.metrics.blocks import tie_blocks
from raysys.training import Session, TrainConfig, World, fit, launch

_VALID_IMPRESSIONS = 256


class Job(BaseModel):
    """One run. Sizes are FuxiCTR's; a global batch has `batch_size` rows (candidates).

    longctr: train this model, not DIN. single: every row is a request of its own, so that nothing
    is shared among the candidates of an impression; passes: over these rows in an epoch; least:
    only rows with that many past events. shuffle: only of single rows; impressions always are.
    weights: start from FuxiCTR's (.npz). pin: worker r computes on core r only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    batch_size: int
    embedding_dim: int
    attention_units: tuple[int, ...]
    hidden: tuple[int, ...]
    history_length: int
    warmup_steps: int
    longctr: LongSizes | None = None
    single: bool = False
    passes: int = 1
    least: int = 0
    shuffle: bool = True
    weights: str | None = None
    pin: bool = False
    train: TrainConfig


class RowLoader:
    """Every candidate row as a request of its own; the whole history is gathered for each."""

    def __init__(
        self,
        data: Prepared,
        collator: Collator,
        batch_size: int,
        seed: int,
        shuffle: bool,
        *,
        passes: int = 1,
        least: int = 0,
    ) -> None:
        self.data, self.collator = data, collator
        self.batch_size, self.seed, self.shuffle, self.passes = batch_size, seed, shuffle, passes
        self.row, self.owner = split_rows(data, "train", least)
        self.steps_per_epoch = -(-len(self.row) // batch_size) * passes
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def batch(self, epoch: int, step: int, part: int, parts: int) -> Batch | None:
        """Part `part` of `parts` of global batch `step` of `epoch`."""
        this, step = divmod(step, self.steps_per_epoch // self.passes)
        this += epoch * self.passes
        if self._order is None or self._order[0] != this:
            order = np.arange(len(self.row))
            if self.shuffle:
                order = np.random.default_rng([self.seed, this]).permutation(order)
            self._order = this, order
        picked = self._order[1][step * self.batch_size : (step + 1) * self.batch_size][part::parts]
        if len(picked) == 0:
            return None
        rows = self.data.impressions
        row, owner = self.row[picked], self.owner[picked]
        return self.collator(
            Pointers(
                start=rows.start[owner],
                end=rows.end[owner],
                ts=rows.ts[owner],
                context=rows.context[owner],
                codec=self.data.codec,
                candidates=rows.item[row][:, None].astype(np.int64),
                clicks=rows.click[row][:, None].astype(np.float32),
                orders=rows.order[row][:, None].astype(np.float32),
            )
        )


class EqualTask:
    """The model, its loss, and its quality on the validation split."""

    def __init__(self, model: DIN, data: Prepared, collator: Collator, least: int = 0) -> None:
        self.model, self.data, self.collator, self.least = model, data, collator, least

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of losses, rows) of a micro batch."""
        return self.model.loss(batch)

    def validate(self, world: World) -> dict[str, float]:
        """See `quality`, over all rows of the split."""
        chosen = impressions_of(self.data, "valid", self.least)
        parts = [self._scores(batch) for batch in self.batches(chosen[world.rows(len(chosen))])]
        score = world.gather(np.concatenate([np.zeros(0, np.float32), *parts]))
        row, owner = split_rows(self.data, "valid", self.least)
        rows = self.data.impressions
        return quality(score, rows.click[row], rows.user[owner])

    def batches(self, chosen: npt.NDArray[np.int64]) -> Iterator[Batch]:
        """These impressions, in their order."""
        for begin in range(0, len(chosen), _VALID_IMPRESSIONS):
            some = chosen[begin : begin + _VALID_IMPRESSIONS]
            yield self.collator(pointers_of(self.data, some, labels=False))

    def _scores(self, batch: Batch) -> npt.NDArray[np.float32]:
        p_click = self.model(batch).p_click
        assert p_click is not None
        scores: npt.NDArray[np.float32] = p_click[batch.candidate_mask].numpy()
        return scores


def quality(
    score: npt.NDArray[Any], click: npt.NDArray[Any], user: npt.NDArray[np.integer[Any]]
) -> dict[str, float]:
    """`auc` and `logloss` over rows [R], and `gauc`: AUC by user, weighted by the user's rows."""
    tally = pointwise.Tally.of(score, click)
    blocks = tie_blocks(score, click, user - user.min())
    values = ranking.auc(blocks)
    real = np.isfinite(values)
    gauc = np.average(values[real], weights=blocks.group_rows[real])
    return {
        "auc": pointwise.auc(tally),
        "logloss": pointwise.logloss(tally),
        "gauc": float(gauc),
    }


def model_of(job: Job, data: Prepared, features: FeatureSpace) -> EqualDIN | EqualLongCTR:
    """The model that a job trains, with first weights drawn from its seed."""
    torch.manual_seed(job.train.seed)
    cardinalities = features.item_cardinalities, features.context_cardinalities
    model: EqualDIN | EqualLongCTR
    if job.longctr is None:
        model = EqualDIN(
            *cardinalities,
            embedding_dim=job.embedding_dim,
            attention_units=job.attention_units,
            hidden=job.hidden,
            history_length=job.history_length,
        )
    else:
        model = EqualLongCTR(
            *cardinalities,
            embedding_dim=job.embedding_dim,
            hidden=job.hidden,
            history_length=job.history_length,
            sizes=job.longctr,
            seed=job.train.seed,
        )
    model.bind(Catalogue.build(data.dataset.table("items"), features))
    if job.weights:
        model.load_fuxictr(Path(job.weights), ITEM_FIELDS, features.contexts.names)
    return model


def train(job: Job, session: Session) -> dict[str, Any]:
    """What every worker runs."""
    if job.pin:
        # Threads made from here on inherit it: torch's, and the one that reads ahead.
        os.sched_setaffinity(0, {World.current("cpu").rank})
    data = prepare(Dataset(job.data))
    features = fit_features(data, FEATURES)
    model = model_of(job, data, features)
    collator = Collator(data.histories, features.contexts, job.history_length)
    if job.single:
        loader: Any = RowLoader(
            data,
            collator,
            job.batch_size,
            job.train.seed,
            job.shuffle,
            passes=job.passes,
            least=job.least,
        )
    else:
        row, owner = split_rows(data, "train")
        impressions = round(job.batch_size * len(np.unique(owner)) / len(row))
        loader = ImpressionLoader(data, collator, batch_size=impressions, seed=job.train.seed)
    if job.train.max_steps is not None and job.train.max_steps > loader.steps_per_epoch:
        raise RaysysError(
            f"{job.train.max_steps} steps are more than the {loader.steps_per_epoch} of an epoch: "
            "validation would be timed too; give more users or fewer steps"
        )
    result = fit(EqualTask(model, data, collator, job.least), loader, job.train, session)
    return {"valid": result.metrics, "n_params": sum(p.numel() for p in model.parameters())}


def run_job(job: Job, run_dir: Path) -> dict[str, Any]:
    """Train, then read the speed after the warm-up from the run's own log."""
    card = Dataset(job.data).manifest.data_card_id
    outcome = launch(train, job, job.train, run_dir, data_card_id=card, show_progress=False)
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "step"]
    timed = steps[job.warmup_steps :]
    seconds = timed[-1]["seconds"] - steps[job.warmup_steps - 1]["seconds"]
    samples = sum(record["rows"] for record in timed)
    return {
        "samples_per_s": samples / seconds,
        "seconds": seconds,
        "samples": samples,
        "losses": [record["loss"] for record in steps],
        **outcome.result,
    }


def main() -> None:
    """JOB.json RUN_DIR: print the figures as one JSON line."""
    job = Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(run_job(job, Path(sys.argv[2]))))
