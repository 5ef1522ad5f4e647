"""A news ranker that knows entities but no persona: KRED's news, DKN's attention, both light."""

from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError
from raysys.layers.attention import TargetAttention, masked_softmax
from raysys.layers.embedding import ItemEncoder
from raysys.news.base import NewsRanker
from raysys.news.entities import EntityFit, EntityOptions, EntityTable, renewed_entities
from raysys.news.entity_vectors import EntityVectors

Positive = Annotated[int, Field(ge=1)]
_AT_ONCE = 4096  # rows that are encoded together when a catalogue is frozen


class KREDOptions(BaseModel):
    """Options of `KRED` that are chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Positive = 256
    attention: Positive = 64
    history_length: Positive = 50
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    entity: EntityOptions = EntityOptions()


class KREDConfig(KREDOptions):
    """Options of `KRED`, settled."""

    fitted: EntityFit


class KnowledgeEncoder(ItemEncoder):
    """Catalogue rows [...] → r [..., width] = LN(W [x; Σ_e α_e e]).

    x: all text vectors side by side; α_e = softmax_e(v·ReLU(W_x x + W_e e)) over the entities of
    the news, zeros without one (KRED, Liu et al., RecSys 2020, §3.4, without the graph around the
    entities, which no data set here ships).
    """

    def __init__(self, features: FeatureSpace, config: KREDConfig) -> None:
        super().__init__((), 1, features.vectors, config.width)
        texts, entity = self.width, config.fitted.entity_width
        self.entities = EntityVectors(config.entity, config.fitted)
        self.by_text = nn.Linear(texts, config.attention)
        self.by_entity = nn.Linear(entity, config.attention, bias=False)
        self.score = nn.Linear(config.attention, 1)
        self.join = nn.Linear(texts + entity, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.width = config.width
        self.news: Tensor
        self.register_buffer("news", torch.zeros(0, dtype=torch.int64), persistent=False)

    def bind_entities(self, table: EntityTable) -> None:
        """Take the entities of the catalogue."""
        self.entities.bind(table)
        self.news = torch.tensor(table.news).to(self.news.device)

    def freeze(self) -> None:
        """See `ItemEncoder`; in parts, because entities multiply what a row needs."""
        with torch.no_grad():
            everything = torch.arange(len(self.codes), device=self.codes.device)
            self.table = torch.cat([self._encode(some) for some in everything.split(_AT_ONCE)])

    def forward(self, rows: Tensor) -> Tensor:
        """See `ItemEncoder`; each news of a batch is encoded once."""
        if self.table is not None:
            return nn.functional.embedding(rows, self.table)
        unique, inverse = torch.unique(rows, return_inverse=True)
        return nn.functional.embedding(inverse, self._encode(unique))

    def _encode(self, rows: Tensor) -> Tensor:
        x = super()._encode(rows)
        named = self.news[rows]
        e = self.entities(named)
        hidden = torch.relu(self.by_text(x).unsqueeze(-2) + self.by_entity(e))
        alpha = masked_softmax(self.score(hidden).squeeze(-1), named != 0)
        pooled = (alpha.unsqueeze(-1) * e).sum(-2)
        joined: Tensor = self.norm(self.join(torch.cat([x, pooled], -1)))
        # The padding row stays zero.
        return joined * (rows != 0).unsqueeze(-1).to(joined.dtype)


class KRED(NewsRanker):
    """u_c = Σ_l α_l(c) r_l by an attention network over pairs of click and candidate (DKN, Wang
    et al., WWW 2018, §4.4); score = u_c·r_c/√d."""

    Config = KREDConfig

    def __init__(self, features: FeatureSpace, config: KREDConfig) -> None:
        super().__init__()
        if not features.vectors:
            raise ConfigError("news/kred needs text vectors; set features.vectors, e.g. [title]")
        self.fitted, self.options = config.fitted, config.entity
        self.history_length = config.history_length
        self.items: KnowledgeEncoder = KnowledgeEncoder(features, config)
        self.attention = TargetAttention(config.width, (config.attention,), softmax=True)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.width**-0.5
        self.table: EntityTable | None = None

    @classmethod
    def from_config(cls, config: KREDConfig, features: FeatureSpace) -> Self:
        """Build for fitted features."""
        return cls(features, config)

    def bind_entities(self, table: EntityTable) -> None:
        """Give the model the entities of its news."""
        self.table = table
        self.items.bind_entities(table)

    def renew(self, data: Prepared) -> None:
        """See `NewsRanker`."""
        assert self.table is not None
        self.bind_entities(renewed_entities(self.table, data, self.options))

    def save_snapshot(self, folder: Path) -> None:
        """See `Ranker`: the entities."""
        assert self.table is not None
        self.table.save(folder)

    def open_snapshot(self, folder: Path) -> None:
        """See `Ranker`."""
        self.bind_entities(EntityTable.open(folder, self.fitted))

    def scores(self, batch: Batch) -> Tensor:
        """u_c·r_c/√d [B, C]."""
        clicked = self.dropout(self.items(batch.history_items))
        candidates = self.dropout(self.items(batch.candidates))
        user = self.attention(candidates, clicked, batch.history_mask)
        self.items.entities.step(self.training)
        return (user * candidates).sum(-1) * self.scale

    def event_weights(self, batch: Batch) -> Tensor:
        """Exact parts of the score [B, C, L]: α_l(c)·(r_l·r_c)/√d."""
        clicked, candidates = self.items(batch.history_items), self.items(batch.candidates)
        alpha = self.attention.weights(candidates, clicked, batch.history_mask)
        return alpha * torch.bmm(candidates, clicked.transpose(1, 2)) * self.scale
