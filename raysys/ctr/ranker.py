"""What all CTR rankers share: representations of items, contexts and events, heads and loss."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raysys.artifacts.ranker import Ranker, Scores
from raysys.data.batch import Batch
from raysys.data.schema import BEHAVIOURS
from raysys.layers.embedding import FieldEmbedding, ItemEncoder
from raysys.layers.losses import esmm_bce, pointwise_bce

Width = Annotated[int, Field(ge=1)]


class CTRConfig(BaseModel):
    """Options common to all CTR rankers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_dim: Width = 16
    vector_dim: Width = 32
    history_length: Width = 50
    hidden: tuple[Width, ...] = (128, 64)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Learn CTCVR beside CTR (ESMM); None: if the training split holds orders.
    orders: bool | None = None
    behaviours: bool = True  # tell the kinds of past events apart
    # A target attention over products of embeddings hardly moves from 0.01.
    init_std: Annotated[float, Field(gt=0)] = 0.1
    # Update only the item rows in use (lazy Adam): for vocabularies far larger than a batch.
    sparse_embeddings: bool = False


class CTRRanker(Ranker):
    """Embeds what a request consists of and turns the logits of a subclass into probabilities.

    Args:
        item_cardinalities: codes of each item field.
        context_cardinalities: codes of each context feature.
        vector_widths: widths of the frozen text vectors by field.
    """

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        vector_widths: dict[str, int],
        *,
        embedding_dim: int,
        vector_dim: int,
        history_length: int,
        orders: bool,
        behaviours: bool,
        init_std: float,
        sparse_embeddings: bool,
    ) -> None:
        super().__init__()
        self.history_length = history_length
        self.orders = orders
        self.items = ItemEncoder(
            item_cardinalities,
            embedding_dim,
            vector_widths,
            vector_dim,
            sparse=sparse_embeddings,
        )
        self.contexts = FieldEmbedding(context_cardinalities, embedding_dim, init_std=init_std)
        nn.init.normal_(self.items.fields.weight, std=init_std)
        # Code len(BEHAVIOURS) stands for "the candidate" on the query side.
        self.behaviours = nn.Embedding(len(BEHAVIOURS) + 1, embedding_dim) if behaviours else None
        if self.behaviours is not None:
            nn.init.normal_(self.behaviours.weight, std=init_std)
        self.event_width = (
            self.items.width + self.contexts.width + (embedding_dim if behaviours else 0)
        )
        self.request_width = self.contexts.width + 1

    def candidate_vectors(self, batch: Batch) -> Tensor:
        """Item vectors of the candidates [B, C, D]."""
        return self.items(batch.candidates)

    def query_vectors(self, batch: Batch, candidates: Tensor) -> Tensor:
        """What attends to the history: candidate, request context, kind [B, C, event width]."""
        shape = candidates.shape[:2]
        context = self.contexts(batch.context).unsqueeze(1).expand(*shape, -1)
        parts = [candidates, context]
        if self.behaviours is not None:
            parts.append(self.behaviours.weight[-1].expand(*shape, -1))
        return torch.cat(parts, -1)

    def event_vectors(self, batch: Batch) -> Tensor:
        """Past events: item, the event's own context, kind [B, L, event width]."""
        parts = [self.items(batch.history_items), self.contexts(batch.history_context)]
        if self.behaviours is not None:
            parts.append(self.behaviours(batch.history_behaviour))
        return torch.cat(parts, -1)

    def pooled_history(self, batch: Batch) -> Tensor:
        """Mean of the past events [B, event width]; zeros without any."""
        events = self.event_vectors(batch)
        real = batch.history_mask.unsqueeze(-1).to(events.dtype)
        return (events * real).sum(1) / real.sum(1).clamp(min=1)

    @staticmethod
    def mean_weights(batch: Batch) -> Tensor:
        """The part of each event in `pooled_history`, alike for all candidates [B, C, L]."""
        real = batch.history_mask.to(torch.float32)
        weights = real / real.sum(1, keepdim=True).clamp(min=1)
        return weights.unsqueeze(1).expand(-1, batch.candidates.shape[1], -1)

    def request_vectors(self, batch: Batch) -> Tensor:
        """What does not depend on the candidate: context and history length [B, F·d + 1]."""
        activity = torch.log1p(batch.history_length.float()) / math.log(1e4)
        return torch.cat([self.contexts(batch.context), activity.unsqueeze(-1)], -1)

    @abstractmethod
    def logits(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C] of a click, and of an order given a click if orders are learned."""

    def forward(self, batch: Batch) -> Scores:
        """p_order = p_click · p(order | click), so that it never exceeds p_click."""
        click, order = self.logits(batch)
        p_click = torch.sigmoid(click)
        p_order = None if order is None else p_click * torch.sigmoid(order)
        # Sorting by the logit keeps apart what float32 probabilities near 1 would merge.
        return Scores(click, p_click, p_order)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """BCE of the click, plus BCE of click-and-order where orders are learned."""
        return self.cost(*self.logits(batch), batch)

    @staticmethod
    def cost(click: Tensor, order: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of logits [B, C]."""
        assert batch.clicks is not None
        if order is None:
            return pointwise_bce(click, batch.clicks, batch.candidate_mask)
        assert batch.orders is not None
        return esmm_bce(click, order, batch.clicks, batch.orders, batch.candidate_mask)
