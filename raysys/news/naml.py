"""NAML on frozen sentence vectors (Wu et al., IJCAI 2019): attention over views and over clicks."""

from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.layers.attention import AdditivePooling
from raysys.news.base import NewsRanker
from raysys.news.views import ViewEncoder

Positive = Annotated[int, Field(ge=1)]


class NAMLConfig(BaseModel):
    """Options of `NAML`. Which views there are, features.vectors and features.items decide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Positive = 256
    query: Positive = 128
    history_length: Positive = 50
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class NAML(NewsRanker):
    """u = Σ_l β_l r_l by additive attention over the clicks, score = u·r_c/√d."""

    Config = NAMLConfig

    def __init__(self, features: FeatureSpace, config: NAMLConfig) -> None:
        super().__init__()
        self.history_length = config.history_length
        self.items = ViewEncoder(features, config.width, config.query)
        self.pool = AdditivePooling(config.width, config.query)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.width**-0.5

    @classmethod
    def from_config(cls, config: NAMLConfig, features: FeatureSpace) -> Self:
        """Build for fitted features."""
        return cls(features, config)

    def scores(self, batch: Batch) -> Tensor:
        """u·r_c/√d [B, C]."""
        user = self.pool(self.dropout(self.items(batch.history_items)), batch.history_mask)
        candidates = self.dropout(self.items(batch.candidates))
        return torch.bmm(candidates, user.unsqueeze(-1)).squeeze(-1) * self.scale

    def event_weights(self, batch: Batch) -> Tensor:
        """Exact parts of the score [B, C, L]: β_l·(r_l·r_c)/√d."""
        clicked = self.items(batch.history_items)
        beta = self.pool.weights(clicked, batch.history_mask)
        parts = torch.bmm(self.items(batch.candidates), clicked.transpose(1, 2))
        return parts * beta.unsqueeze(1) * self.scale
