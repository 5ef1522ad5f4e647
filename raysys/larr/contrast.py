"""Stage 2, contrastive tuning: L_CL = λ_uu L_uu + λ_pp L_pp + λ_up L_up (§2.2)."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from raysys.larr.batches import ContrastBatch, PairBlock
from raysys.larr.cached import encode_cached
from raysys.larr.collapse import effective_rank, mean_cosine
from raysys.larr.embedding import EmbeddingModel
from raysys.larr.pairs import KINDS, Kind
from raysys.larr.recall import Retrieval, recalls
from raysys.layers.infonce import info_nce
from raysys.llm.packing import Packed, last_hidden, pack
from raysys.llm.tokens import TextTokens
from raysys.training import World

log = logging.getLogger(__name__)
# Beyond these a vector tells next to nothing about its text.
_RANK_ALARM, _COSINE_ALARM = 2.0, 0.95


class Weights(BaseModel):
    """λ of each kind of pairs; 0 leaves a kind out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uu: float = Field(default=1.0, ge=0)
    pp: float = Field(default=1.0, ge=0)
    up: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> "Weights":
        if not self.kinds:
            raise ValueError("all weights are 0: nothing to learn")
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds with a weight."""
        return tuple(kind for kind in KINDS if getattr(self, kind) > 0)


class ContrastTask:
    """An embedding model, the weighted sum of its losses, and its recall on later days."""

    def __init__(
        self,
        model: EmbeddingModel,
        *,
        weights: Weights,
        temperature: float,
        world: World,
        even_passes: bool,
        retrievals: Mapping[Kind, Retrieval],
        cutoffs: Sequence[int],
        tokens: TextTokens,
        row_tokens: int,
        rows_per_chunk: int,
    ) -> None:
        """even_passes: all workers call the model equally often, as a sharded one needs."""
        self.model = model
        self._weights, self._temperature = weights, temperature
        self._world, self._even = world, even_passes
        self._retrievals, self._cutoffs = dict(retrievals), tuple(cutoffs)
        self._tokens, self._row_tokens, self._rows = tokens, row_tokens, rows_per_chunk

    def loss(self, batch: ContrastBatch) -> tuple[Tensor, Tensor]:
        """(this worker's share of L_CL · pairs, its pairs); summed over workers and divided,
        L_CL of the global batch, whatever the number of workers and of chunks."""
        chunks = list(batch.chunks)
        if self._even:
            most = self._world.gather_rows(torch.tensor([len(chunks)])).max()
            chunks += [_nothing(chunks[0])] * (int(most) - len(chunks))
        vectors = encode_cached(self.model, chunks, self._world.device)[batch.order]
        every = sum(block.total for block in batch.pairs.values())
        # Without pairs of its own a worker still takes part, with a zero.
        total = vectors.sum() * 0.0
        for kind, block in batch.pairs.items():
            weight = getattr(self._weights, kind) * every / block.total
            total = total + weight * self._kind_loss(vectors, block)
        pairs = sum(len(block.anchor) for block in batch.pairs.values())
        return total, torch.tensor(float(pairs))

    def _kind_loss(self, vectors: Tensor, block: PairBlock) -> Tensor:
        """Σ L_i of this worker's pairs of one kind, both ways halved where it is symmetric."""
        world, counts = self._world, block.counts
        anchor, positive = vectors[block.anchor], vectors[block.positive]
        keys = world.gather_with_gradient(positive, counts)
        own = block.first + torch.arange(len(anchor), device=vectors.device)
        each = block.negative.shape[1] - block.total
        columns = keys
        if each:
            hard = each // block.total
            spread = [count * hard for count in counts]
            columns = torch.cat([keys, world.gather_with_gradient(vectors[block.hard], spread)])
        loss = info_nce(anchor @ columns.T, own, block.negative, self._temperature).sum()
        if block.backward is None:
            return loss
        others = world.gather_with_gradient(anchor, counts)
        turned = info_nce(positive @ others.T, own, block.backward, self._temperature).sum()
        return (loss + turned) / 2

    def validate(self, world: World) -> dict[str, float]:
        """`recall` of the questions of validation."""
        return self.recall(self._retrievals, world)

    @torch.no_grad()
    def recall(self, retrievals: Mapping[Kind, Retrieval], world: World) -> dict[str, float]:
        """`KIND/recall@K` on later days, `KIND/new/recall@K` for places new to training, and
        the collapse alarm: `effective_rank` and `mean_cosine` of the vectors."""
        self.model.to(world.device).eval()
        values: dict[str, float] = {}
        seen = []
        for kind, retrieval in retrievals.items():
            queries, pool = (
                self.encode(retrieval.queries, world),
                self.encode(retrieval.pool, world),
            )
            found = recalls(queries, pool, retrieval, self._cutoffs)
            values |= {f"{kind}/{name}": value for name, value in found.items()}
            seen.append(pool)
        if seen:
            vectors = torch.from_numpy(np.concatenate(seen))
            values |= {
                "effective_rank": effective_rank(vectors),
                "mean_cosine": mean_cosine(vectors),
            }
            if values["effective_rank"] < _RANK_ALARM or values["mean_cosine"] > _COSINE_ALARM:
                log.warning(
                    "the embeddings have collapsed: effective rank %.1f, mean cosine %.3f; lower "
                    "train.lr or raise temperature",
                    values["effective_rank"],
                    values["mean_cosine"],
                )
        return values

    @torch.no_grad()
    def begin(self, texts: Sequence[str]) -> None:
        """Let the head begin with what the hidden states of these texts differ in."""
        self.model.to(self._world.device).eval()
        ids = self._tokens(texts)
        rows = pack([len(row) for row in ids], self._row_tokens)
        hidden = []
        for start in range(0, len(rows), self._rows):
            chunk = Packed.of(ids, rows[start : start + self._rows], self._tokens.pad)
            hidden.append(last_hidden(self.model.body, chunk.to(self._world.device)))
        self.model.head.whiten(torch.cat(hidden))

    @torch.no_grad()
    def encode(self, texts: Sequence[str], world: World) -> np.ndarray:
        """Vectors [N, d_e] float32 of all texts on every worker, each of which encodes a part."""
        ids = self._tokens(texts)
        rows = pack([len(row) for row in ids], self._row_tokens)
        share = -(-len(rows) // world.size)
        mine = rows[share * world.rank : share * (world.rank + 1)]
        parts = [np.zeros((0, self.model.head.second.out_features), np.float32)]
        for begin in range(0, share, self._rows):
            chunk = Packed.of(ids, mine[begin : begin + self._rows], self._tokens.pad)
            parts.append(self.model(chunk.to(world.device)).float().cpu().numpy())
        out = np.empty((len(ids), parts[0].shape[1]), np.float32)
        out[[index for row in rows for index in row]] = world.gather(np.concatenate(parts))
        return out


def _nothing(like: Packed) -> Packed:
    """A pass over one token and no text."""
    return Packed(like.ids[:1, :1], like.positions[:1, :1] * 0, like.last[:0])
