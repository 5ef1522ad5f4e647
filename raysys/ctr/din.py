"""DIN: target attention over the recent history (Zhou et al., KDD 2018), with contexts."""

from collections.abc import Sequence
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from raysys.ctr.ranker import CTRConfig, CTRRanker, Width
from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.layers.attention import TargetAttention
from raysys.layers.mlp import MLP, Activation


class DINConfig(CTRConfig):
    """Options of `DIN`."""

    attention_hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 32)
    attention_activation: Activation = "relu"
    attention_softmax: bool = False
    activation: Activation = "relu"
    match: bool = True  # candidate ∘ interest as an input of the towers


class DIN(CTRRanker):
    """Candidates attend to past events; the request's context is part of the query and each
    event's own context part of its key, so that the match may depend on the situation.
    """

    Config = DINConfig

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        vector_widths: dict[str, int],
        *,
        attention_hidden: Sequence[int] = (64, 32),
        attention_activation: Activation = "relu",
        attention_softmax: bool = False,
        hidden: Sequence[int] = (128, 64),
        activation: Activation = "relu",
        match: bool = True,
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
        self.attention = TargetAttention(
            self.event_width,
            attention_hidden,
            act=attention_activation,
            softmax=attention_softmax,
        )
        self.match = match
        width = self.items.width * (2 if match else 1) + self.event_width + self.request_width

        def tower() -> MLP:
            return MLP(width, hidden, out=1, act=activation, dropout=dropout)

        self.click = tower()
        self.order = tower() if orders else None

    @classmethod
    def from_config(cls, config: DINConfig, features: FeatureSpace) -> Self:
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
        interest = self.attention(
            self.query_vectors(batch, candidates), self.event_vectors(batch), batch.history_mask
        )
        request = self.request_vectors(batch).unsqueeze(1).expand(*candidates.shape[:2], -1)
        parts = [candidates, interest, request]
        if self.match:
            # The item part of an event comes first in its vector, field by field as in the
            # candidate's: their product says directly which fields agree with the past.
            parts.append(candidates * interest[..., : self.items.width])
        x = torch.cat(parts, -1)
        click = self.click(x).squeeze(-1)
        return click, None if self.order is None else self.order(x).squeeze(-1)

    def event_weights(self, batch: Batch) -> Tensor:
        """The attention weights of DIN's activation unit [B, C, L]."""
        query = self.query_vectors(batch, self.candidate_vectors(batch))
        return self.attention.weights(query, self.event_vectors(batch), batch.history_mask)
