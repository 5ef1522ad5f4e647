"""NRMS on frozen sentence vectors (user side of Wu et al., EMNLP 2019)."""

from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.errors import ConfigError
from raysys.layers.attention import AdditivePooling, SelfAttention
from raysys.layers.embedding import ItemEncoder
from raysys.news.base import NewsRanker


class NRMSConfig(BaseModel):
    """Options of `NRMS`.

    residual: clicks keep their own vectors beside what they attend to, which the paper's NRMS does
    not do. A model of few clicks then begins as the likeness of the candidate to the clicks
    instead of from nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Annotated[int, Field(ge=1)] = 256
    heads: Annotated[int, Field(ge=1)] = 8
    query: Annotated[int, Field(ge=1)] = 128
    history_length: Annotated[int, Field(ge=1)] = 50
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    residual: bool = False


class NRMS(NewsRanker):
    """News vector r = LN(Σ_fields W_f x_f); user vector by self-attention and additive pooling
    over the r of the clicked news; score = u·r_c / √d.

    Args:
        vector_widths: widths of the frozen text vectors by field, e.g. {"title": 384}.
        width: d of news and user vectors.
    """

    Config = NRMSConfig

    def __init__(
        self,
        vector_widths: dict[str, int],
        *,
        width: int = 256,
        heads: int = 8,
        query: int = 128,
        history_length: int = 50,
        dropout: float = 0.2,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if not vector_widths:
            raise ConfigError("news/nrms needs text vectors; set features.vectors, e.g. [title]")
        self.history_length = history_length
        self.items = ItemEncoder((), 1, vector_widths, width)
        self.fuse = nn.Linear(self.items.width, width) if len(vector_widths) > 1 else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.attention = SelfAttention(width, heads, residual=residual)
        self.pool = AdditivePooling(width, query)
        self.scale = width**-0.5

    @classmethod
    def from_config(cls, config: NRMSConfig, features: FeatureSpace) -> Self:
        """Build for fitted features; only their vectors are used."""
        return cls(features.vectors, **config.model_dump())

    def news(self, rows: Tensor) -> Tensor:
        """News vectors [..., d] of catalogue rows [...]."""
        return self.norm(self.fuse(self.items(rows)))

    def user(self, batch: Batch) -> Tensor:
        """User vectors [B, d]; zeros for an empty history."""
        clicked = self.dropout(self.news(batch.history_items))
        attended = self.dropout(self.attention(clicked, batch.history_mask))
        return self.pool(attended, batch.history_mask)

    def event_weights(self, batch: Batch) -> Tensor:
        """Exact parts of the score: α_l · (attended_l · r_c) / √d, [B, C, L]; they add up to it."""
        clicked = self.news(batch.history_items)
        attended = self.attention(clicked, batch.history_mask)
        alpha = self.pool.weights(attended, batch.history_mask)
        parts = torch.bmm(self.news(batch.candidates), attended.transpose(1, 2))
        return parts * alpha.unsqueeze(1) * self.scale

    def scores(self, batch: Batch) -> Tensor:
        """u·r_c / √d, [B, C]."""
        candidates = self.dropout(self.news(batch.candidates))
        return torch.bmm(candidates, self.user(batch).unsqueeze(-1)).squeeze(-1) * self.scale
