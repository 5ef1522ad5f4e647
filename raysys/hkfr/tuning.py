"""Stage 2, instruction tuning: L = −Σ_{t in answer} log p(x_t | x_<t) / #answer tokens (§2.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from raysys.hkfr.prompts import Encoded, Ids, Prompts
from raysys.hkfr.samples import Sample, Samples
from raysys.hkfr.scoring import Decoding, Scorer
from raysys.llm.packing import Packed, pack, passes, token_losses
from raysys.metrics import ranking
from raysys.metrics.blocks import tie_blocks
from raysys.training import World

CUTOFFS = (5, 10)


@dataclass(frozen=True)
class Held:
    """Held-out samples of a split.

    answers: all tasks, their answers to be predicted; prompts [N]: of samples of `task`, which is
    answered by one of `names` [V]; right [N]: index of the answer, −1 where no name is it.
    """

    answers: Encoded
    task: str
    prompts: list[Ids]
    names: list[Ids]
    right: list[int]

    @classmethod
    def of(
        cls, samples: Samples, prompts: Prompts, split: str, task: str, *, limit: int, ranked: int
    ) -> "Held":
        """limit: samples whose answers are predicted; ranked: of `task`, for which all names of
        the vocabulary are scored; both at most, chosen by a hash."""
        names = samples.vocabulary.get(task, ())
        row = {name: number for number, name in enumerate(names)}
        asked: list[Sample] = samples.of(split, ranked, task) if names else []
        ids = [prompts.name(name) for name in names]
        room = max(map(len, ids), default=0) + 1
        return cls(
            answers=Encoded.of(samples.of(split, limit), prompts),
            task=task,
            prompts=[prompts.prompt(s.knowledge, s.instruction, room) for s in asked],
            names=ids,
            right=[row.get(sample.answer, -1) for sample in asked],
        )


class InstructTask:
    """A causal language model, its loss, and how well it answers held-out instructions."""

    def __init__(
        self,
        model: nn.Module,
        held: Held,
        *,
        end: int,
        pad: int,
        width: int,
        rows_per_pass: int,
        len_norm: Literal["none", "mean"] = "none",
    ) -> None:
        """held: for validation; width: tokens of a row; rows_per_pass, len_norm: in validation."""
        self.model = model
        self.scorer = Scorer(model, end, pad)
        self._held, self._pad = held, pad
        self._width, self._step = width, rows_per_pass
        self._how = Decoding(len_norm=len_norm)

    def loss(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """(Σ w · −log p, Σ w) over the batch."""
        return weighted(self.model, batch)

    def validate(self, world: World) -> dict[str, float]:
        """`measure` of the samples of validation."""
        return self.measure(self._held, world)

    @torch.no_grad()
    def measure(self, held: Held, world: World) -> dict[str, float]:
        """`answer_loss`: mean −log p of the tokens of answers and their ends; `answer_perplexity`,
        its exp; `TASK_hr@k`, `TASK_ndcg@k` by exact scores of all names. Empty without samples."""
        self.model.to(world.device).eval()
        found: dict[str, float] = {}
        loss, weight = self._answers(held.answers, world)
        if weight:
            found["answer_loss"] = loss / weight
            found["answer_perplexity"] = float(np.exp(loss / weight))
        if held.prompts:
            hits = self._hits(held, world)
            names = [f"{held.task}_{kind}@{k}" for kind in ("hr", "ndcg") for k in CUTOFFS]
            found |= dict(zip(names, hits.mean(0).tolist(), strict=True))
        return found

    def _answers(self, answers: Encoded, world: World) -> tuple[float, float]:
        """(Σ −log p, tokens) over the answers, on all workers."""
        sums = np.zeros((1, 2))
        packed = pack([len(ids) for ids in answers.ids], self._width)
        for rows in passes(packed, world.rank, world.size, self._step):
            batch = Packed.of(answers.ids, rows, self._pad, answers.weights).to(world.device)
            sums += [[float(part) for part in weighted(self.model, batch)]]
        loss, weight = world.gather(sums).sum(0).tolist()
        return loss, weight

    def _hits(self, held: Held, world: World) -> np.ndarray:
        """[N, 2 · cut-offs] HR and NDCG of each prompt, on all workers."""
        # Every worker scores as many, the last ones perhaps again: sharded models need that.
        share = -(-len(held.prompts) // world.size)
        mine = [min(share * world.rank + i, len(held.prompts) - 1) for i in range(share)]
        scores = self.scorer([held.prompts[i] for i in mine], held.names, self._how)
        parts = hits(scores, [held.right[i] for i in mine])
        return world.gather(parts)[: len(held.prompts)]


def weighted(model: nn.Module, batch: Packed) -> tuple[Tensor, Tensor]:
    """(Σ w · −log p, Σ w) over the batch: the tokens that something weighs."""
    assert batch.weights is not None
    weights = batch.weights[:, 1:]
    return (token_losses(model, batch) * weights).sum(), weights.sum()


def hits(scores: Tensor, right: Sequence[int]) -> np.ndarray:
    """HR@k for each cut-off, then NDCG@k [N, 2 · cut-offs]: one relevant candidate [N] of V.

    right: −1 where none is; that counts as a miss.
    """
    count, candidates = scores.shape
    labels = np.zeros((count, candidates), np.int64)
    known = np.array(right) >= 0
    labels[np.flatnonzero(known), np.array(right)[known]] = 1
    groups = np.repeat(np.arange(count), candidates)
    blocks = tie_blocks(scores.double().numpy().ravel(), labels.ravel(), groups, count)
    columns = [metric(blocks, k) for metric in (ranking.hit_rate, ranking.ndcg) for k in CUTOFFS]
    return np.nan_to_num(np.stack(columns, 1))
