"""FinalMLP on a mean-pooled history (Mao et al., AAAI 2023): two gated MLPs, fused bilinearly."""

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from raysys.ctr.ranker import CTRConfig, CTRRanker, Width
from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.layers.mlp import MLP


class FinalMLPConfig(CTRConfig):
    """Options of `FinalMLP`; hidden is that of each stream."""

    gate_hidden: tuple[Width, ...] = (64,)
    heads: Width = 4

    @model_validator(mode="after")
    def _streams(self) -> "FinalMLPConfig":
        if not self.hidden or self.hidden[-1] % self.heads:
            raise ValueError(
                f"the last of hidden={list(self.hidden)} must be a multiple of heads={self.heads}"
            )
        return self


class FinalMLP(CTRRanker):
    """Two MLPs that see the same input through different gates; no attention.

    Streams (feature gating): h_1 = 2σ(g_1(x_1)) ∘ e, h_2 = 2σ(g_2(x_2)) ∘ e, where e is the whole
    input, x_1 what belongs to the user's side (pooled history and request), x_2 the candidate.
    """

    Config = FinalMLPConfig

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        vector_widths: dict[str, int],
        *,
        gate_hidden: Sequence[int] = (64,),
        heads: int = 4,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        embedding_dim: int = 16,
        vector_dim: int = 32,
        history_length: int = 50,
        orders: bool = True,
        behaviours: bool = True,
        init_std: float = 0.1,
        sparse_embeddings: bool = False,
    ) -> None:
        super().__init__(
            item_cardinalities,
            context_cardinalities,
            vector_widths,
            embedding_dim=embedding_dim,
            vector_dim=vector_dim,
            history_length=history_length,
            orders=orders,
            behaviours=behaviours,
            init_std=init_std,
            sparse_embeddings=sparse_embeddings,
        )
        shared = self.event_width + self.request_width
        width = self.items.width + shared
        self.gates = nn.ModuleList(
            MLP(given, gate_hidden, out=width) for given in (shared, self.items.width)
        )
        self.streams = nn.ModuleList(MLP(width, hidden, dropout=dropout) for _ in range(2))
        self.fusions = nn.ModuleList(
            BilinearFusion(hidden[-1], heads) for _ in range(2 if orders else 1)
        )

    @classmethod
    def from_config(cls, config: FinalMLPConfig, features: FeatureSpace) -> Self:
        """Build for fitted features."""
        return cls(
            features.item_cardinalities,
            features.context_cardinalities,
            features.vectors,
            **config.model_dump(),
        )

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C] of click and order."""
        candidates = self.candidate_vectors(batch)
        shared = torch.cat([self.pooled_history(batch), self.request_vectors(batch)], -1)
        wide = shared.unsqueeze(1).expand(*candidates.shape[:2], -1)
        x = torch.cat([candidates, wide], -1)
        # The user's gate is the same for all candidates of a request.
        gated = [
            2 * torch.sigmoid(gate(given)) * x
            for gate, given in zip(self.gates, (shared.unsqueeze(1), candidates), strict=True)
        ]
        one, other = (stream(h) for stream, h in zip(self.streams, gated, strict=True))
        click, *order = (fusion(one, other) for fusion in self.fusions)
        return click, order[0] if order else None

    def event_weights(self, batch: Batch) -> Tensor:
        """Mean pooling counts every event alike: 1 / history length [B, C, L]."""
        return self.mean_weights(batch)


class BilinearFusion(nn.Module):
    """b + w_1·o_1 + w_2·o_2 + Σ_h o_1^hᵀ W^h o_2^h: the bilinear part in chunks, one per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, 1)
        self.bilinear = nn.Parameter(torch.empty(heads, width // heads, width // heads))
        nn.init.xavier_normal_(self.bilinear)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """one, other [..., D] → [...]."""
        heads = len(self.bilinear)
        a, b = (x.unflatten(-1, (heads, -1)) for x in (one, other))
        crossed = torch.einsum("...hi,hij,...hj->...", a, self.bilinear, b)
        return self.linear(torch.cat([one, other], -1)).squeeze(-1) + crossed
