"""DCN-V2 on a mean-pooled history (Wang et al., WWW 2021), cross net beside a deep net."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from raysys.ctr.ranker import CTRConfig, CTRRanker, Width
from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.layers.cross import CrossNetV2
from raysys.layers.mlp import MLP


class DCNv2Config(CTRConfig):
    """Options of `DCNv2`."""

    cross_layers: Width = 3


class DCNv2(CTRRanker):
    """Explicit crosses of candidate, context and pooled history; no attention."""

    Config = DCNv2Config

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        vector_widths: dict[str, int],
        *,
        cross_layers: int = 3,
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
        width = self.items.width + self.event_width + self.request_width
        self.cross = CrossNetV2(width, cross_layers)
        self.deep = MLP(width, hidden, dropout=dropout)
        self.heads = nn.Linear(width + self.deep.width, 2 if orders else 1)

    @classmethod
    def from_config(cls, config: DCNv2Config, features: FeatureSpace) -> Self:
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
        x = torch.cat([candidates, shared.unsqueeze(1).expand(*candidates.shape[:2], -1)], -1)
        out = self.heads(torch.cat([self.cross(x), self.deep(x)], -1))
        return out[..., 0], out[..., 1] if self.orders else None

    def event_weights(self, batch: Batch) -> Tensor:
        """Mean pooling counts every event alike: 1 / history length [B, C, L]."""
        return self.mean_weights(batch)
