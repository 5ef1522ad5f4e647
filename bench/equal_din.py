"""FuxiCTR's DIN out of our layers, trained by our loader and loop: our side of `ctr_train`.

What differs from `raysys.ctr.din` is only what goes in: contexts and nothing else stand beside
the items in the last MLP, and past events are their items. Each run is a process of its own.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from bench.equal_data import FEATURES, ITEM_FIELDS, split_rows
from raysys.ctr.din import DIN
from raysys.data.batch import Batch, Collator, Pointers
from raysys.data.catalogue import Catalogue
from raysys.data.dataset import Dataset
from raysys.data.features import fit_features
from raysys.data.prepared import Prepared, prepare
from raysys.data.sampling import ImpressionLoader, pointers_of
from raysys.errors import RaysysError
from raysys.layers.attention import TargetAttention
from raysys.layers.mlp import MLP, Dice
from raysys.metrics import pointwise
from raysys.training import Session, TrainConfig, World, fit, launch

_VALID_IMPRESSIONS = 256


class Job(BaseModel):
    """One run. Sizes are FuxiCTR's; a global batch has `batch_size` rows (candidates).

    single: every row is a request of its own, so that nothing is shared among the candidates of
    an impression. shuffle: only of single rows; impressions always are. weights: start from
    FuxiCTR's (.npz). pin: worker r computes on core r only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    batch_size: int
    embedding_dim: int
    attention_units: tuple[int, ...]
    hidden: tuple[int, ...]
    history_length: int
    warmup_steps: int
    single: bool = False
    shuffle: bool = True
    weights: str | None = None
    pin: bool = False
    train: TrainConfig


class EqualDIN(DIN):
    """DIN with FuxiCTR's inputs, initial values and running averages."""

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        *,
        embedding_dim: int,
        attention_units: Sequence[int],
        hidden: Sequence[int],
        history_length: int,
    ) -> None:
        super().__init__(
            item_cardinalities,
            context_cardinalities,
            {},
            embedding_dim=embedding_dim,
            history_length=history_length,
            orders=False,
            behaviours=False,
            match=False,
            init_std=1e-4,
        )
        self.attention = TargetAttention(self.items.width, attention_units, act="dice")
        self.click = MLP(2 * self.items.width + self.contexts.width, hidden, out=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
            if isinstance(module, Dice):
                module.norm.momentum = 0.01

    def query_vectors(self, batch: Batch, candidates: Tensor) -> Tensor:
        return candidates

    def event_vectors(self, batch: Batch) -> Tensor:
        return self.items(batch.history_items)

    def request_vectors(self, batch: Batch) -> Tensor:
        return self.contexts(batch.context)

    def load_fuxictr(
        self, path: Path, item_names: Sequence[str], context_names: Sequence[str]
    ) -> None:
        """Take over the weights that `fuxictr_din.py --weights-before` wrote."""
        theirs = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
        table = "embedding_layer.embedding_layer.embedding_layers.{}.weight".format
        attention, tower = "attention_layers.attention_layer.mlp", "dnn.mlp"
        ours: dict[str, Tensor] = {
            "items.fields.table.weight": torch.cat([theirs[table(name)] for name in item_names]),
            "contexts.table.weight": torch.cat([theirs[table(name)] for name in context_names]),
        }
        for kind in ("weight", "bias"):
            ours[f"attention.first.{kind}"] = theirs[f"{attention}.0.{kind}"]
            # Their stack is one list; ours keeps the first layer, which it factorises, apart.
            for index in range(0, len(self.attention.rest.layers), 2):
                name = f"{attention}.{index + 2}.{kind}"
                ours[f"attention.rest.layers.{index}.{kind}"] = theirs[name]
            for index in range(0, len(self.click.layers), 2):
                ours[f"click.layers.{index}.{kind}"] = theirs[f"{tower}.{index}.{kind}"]
        # They put the contexts first, we last.
        split = self.contexts.width
        first = ours["click.layers.0.weight"]
        ours["click.layers.0.weight"] = torch.cat([first[:, split:], first[:, :split]], 1)
        ours |= {name: value for name, value in self.state_dict().items() if "act." in name}
        self.load_state_dict(ours)


class RowLoader:
    """Every candidate row as a request of its own; the whole history is gathered for each."""

    def __init__(
        self, data: Prepared, collator: Collator, batch_size: int, seed: int, shuffle: bool
    ) -> None:
        self.data, self.collator = data, collator
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.row, self.owner = split_rows(data, "train")
        self.steps_per_epoch = -(-len(self.row) // batch_size)
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def batch(self, epoch: int, step: int, part: int, parts: int) -> Batch | None:
        """Part `part` of `parts` of global batch `step` of `epoch`."""
        if self._order is None or self._order[0] != epoch:
            order = np.arange(len(self.row))
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch]).permutation(order)
            self._order = epoch, order
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
    """The model, its loss, and AUC and log loss on the validation split."""

    def __init__(self, model: EqualDIN, data: Prepared, collator: Collator) -> None:
        self.model, self.data, self.collator = model, data, collator

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of losses, rows) of a micro batch."""
        return self.model.loss(batch)

    def validate(self, world: World) -> dict[str, float]:
        """`auc` and `logloss` over all rows of the split."""
        rows = self.data.impressions
        chosen = rows.of("valid")
        mine = chosen[world.rows(len(chosen))]
        scores = [np.zeros(0, np.float32)]
        for begin in range(0, len(mine), _VALID_IMPRESSIONS):
            some = mine[begin : begin + _VALID_IMPRESSIONS]
            batch = self.collator(pointers_of(rows, some, self.data.codec, labels=False))
            p_click = self.model(batch).p_click
            assert p_click is not None
            scores.append(p_click[batch.candidate_mask].numpy())
        score = world.gather(np.concatenate(scores))
        tally = pointwise.Tally.of(score, rows.click[rows.rows(chosen)])
        return {"auc": pointwise.auc(tally), "logloss": pointwise.logloss(tally)}


def train(job: Job, session: Session) -> dict[str, Any]:
    """What every worker runs."""
    if job.pin:
        # Threads made from here on inherit it: torch's, and the one that reads ahead.
        os.sched_setaffinity(0, {World.current("cpu").rank})
    data = prepare(Dataset(job.data))
    features = fit_features(data, FEATURES)
    model = EqualDIN(
        features.item_cardinalities,
        features.context_cardinalities,
        embedding_dim=job.embedding_dim,
        attention_units=job.attention_units,
        hidden=job.hidden,
        history_length=job.history_length,
    )
    model.bind(Catalogue.build(data.dataset.table("items"), features))
    if job.weights:
        model.load_fuxictr(Path(job.weights), ITEM_FIELDS, features.contexts.names)
    collator = Collator(data.histories, features.contexts, job.history_length)
    if job.single:
        loader: Any = RowLoader(data, collator, job.batch_size, job.train.seed, job.shuffle)
    else:
        row, owner = split_rows(data, "train")
        impressions = round(job.batch_size * len(np.unique(owner)) / len(row))
        loader = ImpressionLoader(data, collator, batch_size=impressions, seed=job.train.seed)
    if job.train.max_steps is not None and job.train.max_steps > loader.steps_per_epoch:
        raise RaysysError(
            f"{job.train.max_steps} steps are more than the {loader.steps_per_epoch} of an epoch: "
            "validation would be timed too; give more users or fewer steps"
        )
    result = fit(EqualTask(model, data, collator), loader, job.train, session)
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
