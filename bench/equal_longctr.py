"""FuxiCTR's SIM, ETA, SDIM and TWIN with our retrievers: our side of `longctr`.

FuxiCTR shows all four the newest events through one target attention and the long window
through their own search. Here our retriever searches; everything else is theirs.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from bench.fuxictr_start import INIT_STD, fuxictr_weights, stack, start_as_fuxictr, tables
from raysys.ctr.din import DIN
from raysys.ctr.retrievers.base import Pairs, Retriever, TopK, Widths
from raysys.ctr.retrievers.hashing import BucketSums, HammingSearch
from raysys.ctr.retrievers.sim import SoftSearch
from raysys.ctr.retrievers.twin import SplitSearch
from raysys.data.batch import Batch
from raysys.layers.losses import pointwise_bce
from raysys.layers.mlp import MLP

_MASKED = -1e9
_TIED = 1e-6  # of the largest relevance: closer ones may change places by rounding


class LongSizes(BaseModel):
    """A model of FuxiCTR's and its sizes.

    short: its short_seq_len, of which it shows the newest short − 1. width: of the attentions. k:
    of SIM, ETA and TWIN. bits: of a signature of ETA, of a bucket of SDIM. groups: of SDIM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["SIM", "ETA", "SDIM", "TWIN"]
    short: int
    width: int
    k: int
    bits: int
    groups: int


class DotAttention(nn.Module):
    """W_o W_v Σ softmax((W_q q)·(W_k k)/√d) k over the real events; over all places alike where
    none is real, as FuxiCTR has it."""

    def __init__(self, item: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(item, width, bias=False)
        self.key = nn.Linear(item, width, bias=False)
        self.value = nn.Linear(item, width, bias=False)
        self.out = nn.Linear(width, item, bias=False)

    def weights(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """See `raysys.ctr.retrievers.base.Attention`, also for `forward`."""
        real = mask if mask.ndim == 3 else mask.unsqueeze(1)
        scores = torch.bmm(self.query(query), self.key(keys).transpose(1, 2))
        scores = scores / math.sqrt(self.query.out_features)
        return torch.softmax(scores.masked_fill(~real, _MASKED), -1)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """[B, C, D]."""
        pooled: Tensor = self.out(self.value(torch.bmm(self.weights(query, keys, mask), keys)))
        return pooled


class EqualLongCTR(DIN):
    """A model of FuxiCTR's with our retriever: [context, candidate, short and long interest] → MLP.

    Args:
        sizes: which model, and how large.
        seed: of the hyperplanes.
    """

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        *,
        embedding_dim: int,
        hidden: Sequence[int],
        history_length: int,
        sizes: LongSizes,
        seed: int,
    ) -> None:
        super().__init__(
            item_cardinalities,
            context_cardinalities,
            {},
            embedding_dim=embedding_dim,
            history_length=history_length,
            orders=False,
            behaviours=False,
            init_std=INIT_STD,
        )
        self.attention = None
        self.sizes = sizes
        item, width = self.items.width, self.contexts.width
        self.short = DotAttention(item, sizes.width)
        self.long = DotAttention(item, sizes.width) if sizes.model in ("SIM", "ETA") else None
        self.click = MLP(width + 3 * item, hidden, out=1)
        self.first_stage = MLP(width + 2 * item, hidden, out=1) if sizes.model == "SIM" else None
        self.retriever: Retriever = _retriever(sizes, item, embedding_dim, seed)
        start_as_fuxictr(self)

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C] of a click."""
        return self._logits(batch, self.inputs(batch).pairs), None

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """BCE of the click; of SIM also of the click from its first stage alone."""
        pairs = self.inputs(batch).pairs
        loss, weight = self.cost(self._logits(batch, pairs), None, batch)
        if self.first_stage is not None:
            assert batch.clicks is not None
            # FuxiCTR sums the events that ours average.
            found = self.retriever.first_stage(pairs) * pairs.mask.sum(1).view(-1, 1, 1)
            logits = self.first_stage(self._joined(batch, pairs.query, found)).squeeze(-1)
            loss = loss + pointwise_bce(logits, batch.clicks, batch.candidate_mask)[0]
        return loss, weight

    def query_vectors(self, batch: Batch, candidates: Tensor) -> Tensor:
        return candidates

    def event_vectors(self, batch: Batch) -> Tensor:
        return self.items(batch.history_items)

    def certain(self, batch: Batch) -> Tensor:
        """Where FuxiCTR must choose the same events [B, C].

        That is where no two items tie for the last place: which of them it takes is left to its
        sorting. Its SIM besides lets padding, of relevance 0, win over events, so that a window
        with padding is never certain.
        """
        pairs = self.inputs(batch).pairs
        if not isinstance(self.retriever, TopK):
            return torch.ones(pairs.candidates.shape, dtype=torch.bool)
        real = pairs.mask.unsqueeze(1).expand(-1, pairs.candidates.shape[1], -1)
        found = self.retriever.relevance(pairs).double()
        found = found.masked_fill(~real, float("-inf"))
        count = real.sum(-1)
        last = found.topk(min(self.sizes.k, found.shape[-1])).values[..., -1:]
        rounding = _TIED * found.masked_fill(~real, 0).abs().amax(-1, keepdim=True)
        near = real & ((found - last).abs() <= rounding)
        events = pairs.events.unsqueeze(1).expand_as(near)
        lowest = events.masked_fill(~near, torch.iinfo(torch.int64).max).amin(-1)
        same = lowest == events.masked_fill(~near, -1).amax(-1)
        if self.sizes.model == "SIM":
            return (count >= self.history_length) & same
        return (count <= self.sizes.k) | same

    def _logits(self, batch: Batch, pairs: Pairs) -> Tensor:
        shown = self.sizes.short - 1
        # FuxiCTR masks the short window by the mask of the events one place further back.
        older = nn.functional.pad(pairs.mask, (0, 1))[:, 1 : shown + 1]
        short = self.short(pairs.query, pairs.keys[:, :shown], older)
        long = self.retriever(pairs, self.long)
        interests = (long, short) if self.sizes.model == "SDIM" else (short, long)
        logits: Tensor = self.click(self._joined(batch, pairs.query, *interests)).squeeze(-1)
        return logits

    def _joined(self, batch: Batch, *parts: Tensor) -> Tensor:
        context = self.contexts(batch.context).unsqueeze(1).expand(*parts[0].shape[:2], -1)
        return torch.cat([context, *parts], -1)

    def load_fuxictr(
        self, path: Path, item_names: Sequence[str], context_names: Sequence[str]
    ) -> None:
        """Take over weights and hyperplanes that the peer's script wrote."""
        theirs = fuxictr_weights(path)
        ours = tables(theirs, item_names, context_names) | stack(theirs, "dnn.mlp", "click.layers")
        ours |= stack(theirs, "dnn_aux.mlp", "first_stage.layers")
        parts = {"query": "W_q", "key": "W_k", "value": "W_v", "out": "W_o"}
        for place in ("short", "long") if self.long is not None else ("short",):
            for own, name in parts.items():
                ours[f"{place}.{own}.weight"] = theirs[f"{place}_attention.{name}.weight"]
        match self.sizes.model:
            case "SIM":
                ours["retriever.candidate.weight"] = theirs["W_a.weight"]
                ours["retriever.behaviour.weight"] = theirs["W_b.weight"]
            case "ETA" | "SDIM":
                ours["retriever.hash.planes"] = theirs["random_rotations"][0].flatten(1)
            case "TWIN":
                parts = {"query": "W_q", "key": "W_h", "value.0": "W_v", "value.1": "W_o"}
                for own, name in parts.items():
                    theirs_own = theirs[f"long_attention.{name}.weight"]
                    ours[f"retriever.attention.{own}.weight"] = theirs_own
                # No cross features on either side.
                for empty in ("cross", "beta"):
                    name = f"retriever.attention.{empty}"
                    ours[name] = self.state_dict()[name]
        self.load_state_dict(ours)


def _retriever(sizes: LongSizes, item: int, field: int, seed: int) -> Retriever:
    match sizes.model:
        case "SIM":
            return SoftSearch(sizes.k, item, sizes.width)
        case "ETA":
            return HammingSearch(sizes.k, item, sizes.bits, seed)
        case "SDIM":
            return BucketSums(item, sizes.bits * sizes.groups, sizes.bits, seed)
        case "TWIN":
            search = SplitSearch(sizes.k, Widths(item, 0, field), sizes.width)
            # FuxiCTR's W_o W_v, which is learned otherwise than one matrix.
            down = nn.Linear(item, sizes.width, bias=False)
            up = nn.Linear(sizes.width, item, bias=False)
            search.attention.register_module("value", nn.Sequential(down, up))
            return search
