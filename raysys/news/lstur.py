"""The short-term half of LSTUR on frozen sentence vectors (An et al., ACL 2019)."""

from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.news.base import NewsRanker
from raysys.news.views import ViewEncoder

Positive = Annotated[int, Field(ge=1)]


class LSTURConfig(BaseModel):
    """Options of `LSTUR`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Positive = 256
    query: Positive = 128
    history_length: Positive = 50
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class LSTUR(NewsRanker):
    """u is the last state of a GRU over the clicks, oldest first; score = u·r_c/√d.

    Without the embedding of the user's id that the paper starts the GRU with: a request is ranked
    by its history here, whoever sends it, so that users unknown in training are ranked as well.
    """

    Config = LSTURConfig

    def __init__(self, features: FeatureSpace, config: LSTURConfig) -> None:
        super().__init__()
        self.history_length = config.history_length
        self.items = ViewEncoder(features, config.width, config.query)
        self.gru = nn.GRU(config.width, config.width, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.width**-0.5

    @classmethod
    def from_config(cls, config: LSTURConfig, features: FeatureSpace) -> Self:
        """Build for fitted features."""
        return cls(features, config)

    def user(self, batch: Batch) -> Tensor:
        """u [B, d]; zeros for an empty history."""
        mask = batch.history_mask
        count = mask.sum(1, keepdim=True)
        place = torch.arange(mask.shape[1], device=mask.device)
        # Newest first with padding behind becomes oldest first with padding behind.
        oldest_first = batch.history_items.gather(1, (count - 1 - place).clamp(min=0))
        states, _ = self.gru(self.dropout(self.items(oldest_first)))
        last = (count - 1).clamp(min=0).unsqueeze(-1).expand(-1, 1, states.shape[2])
        return states.gather(1, last).squeeze(1) * (count > 0)

    def scores(self, batch: Batch) -> Tensor:
        """u·r_c/√d [B, C]."""
        candidates = self.dropout(self.items(batch.candidates))
        return torch.bmm(candidates, self.user(batch).unsqueeze(-1)).squeeze(-1) * self.scale

    def event_weights(self, batch: Batch) -> Tensor:
        """Likeness of each click and candidate, r_l·r_c/√d [B, C, L]; a GRU has no parts that
        add up to its score."""
        clicked = self.items(batch.history_items)
        likeness = torch.bmm(self.items(batch.candidates), clicked.transpose(1, 2))
        return likeness * batch.history_mask.unsqueeze(1) * self.scale
