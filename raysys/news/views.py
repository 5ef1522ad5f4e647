"""News vectors by attention over views: frozen text vectors and embedded fields (NAML)."""

from abc import abstractmethod
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.errors import ConfigError
from raysys.layers.attention import AdditivePooling
from raysys.layers.embedding import ItemEncoder
from raysys.news.base import NewsRanker

Positive = Annotated[int, Field(ge=1)]


class ViewEncoder(ItemEncoder):
    """Catalogue rows [...] → r [..., width] = LN(Σ_v α_v r_v) over the views of a news.

    A view is a text field, r_v = ReLU(W x_v), or an item field such as the category,
    r_v = ReLU(W emb); α by additive attention, as NAML combines title, body and categories
    (Wu et al., IJCAI 2019, §2.1). Views that a news lacks are left out.
    """

    def __init__(self, features: FeatureSpace, width: int, query: int, field_dim: int = 32) -> None:
        if not features.vectors:
            raise ConfigError("news rankers need text vectors; set features.vectors, e.g. [title]")
        super().__init__(features.item_cardinalities, field_dim, features.vectors, width)
        self.width = width
        self.field_dim = field_dim
        self.count = len(features.item_cardinalities)
        self.dense = nn.ModuleList(nn.Linear(field_dim, width) for _ in range(self.count))
        self.attention = AdditivePooling(width, query)
        # Sentence vectors have length 1; without it scores would begin near 0 and stay there long.
        self.norm = nn.LayerNorm(width)

    def _encode(self, rows: Tensor) -> Tensor:
        flat = super()._encode(rows.flatten())
        fields, texts = flat.split([self.count * self.field_dim, flat.shape[1] - self.count *
                                    self.field_dim], 1)  # fmt: skip
        views = list(texts.split(self.width, 1))
        present = [(text != 0).any(1) for text in views]
        codes = self.codes[rows.flatten()]
        for place, dense in enumerate(self.dense):
            field = fields[:, place * self.field_dim : (place + 1) * self.field_dim]
            views.append(dense(field))
            present.append(codes[:, place] != 0)
        stacked, mask = torch.relu(torch.stack(views, 1)), torch.stack(present, 1)
        r = self.norm(self.attention(stacked, mask)) * mask.any(1, keepdim=True)
        return r.view(*rows.shape, self.width)


class ViewConfig(BaseModel):
    """Options of a `ViewRanker`. Which views there are, features.vectors and features.items say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Positive = 256
    query: Positive = 128
    history_length: Positive = 50
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class ViewRanker(NewsRanker):
    """score = u·r_c/√d over the news vectors of a `ViewEncoder`; a subclass makes u [B, d]."""

    Config = ViewConfig

    def __init__(self, features: FeatureSpace, config: ViewConfig) -> None:
        super().__init__()
        self.history_length = config.history_length
        self.items = ViewEncoder(features, config.width, config.query)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.width**-0.5

    @classmethod
    def from_config(cls, config: ViewConfig, features: FeatureSpace) -> Self:
        """Build for fitted features."""
        return cls(features, config)

    @abstractmethod
    def user(self, batch: Batch) -> Tensor:
        """u [B, d]; zeros for an empty history."""

    def scores(self, batch: Batch) -> Tensor:
        """u·r_c/√d [B, C]."""
        candidates = self.dropout(self.items(batch.candidates))
        return torch.bmm(candidates, self.user(batch).unsqueeze(-1)).squeeze(-1) * self.scale

    def likeness(self, batch: Batch) -> Tensor:
        """r_l·r_c/√d [B, C, L] of every click and candidate."""
        clicked, candidates = self.items(batch.history_items), self.items(batch.candidates)
        return torch.bmm(candidates, clicked.transpose(1, 2)) * self.scale
