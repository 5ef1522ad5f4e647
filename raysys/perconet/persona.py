"""The explicit persona: which entities are prominent among a user's newest clicks (§2.3)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from raysys.layers.draws import mixed
from raysys.news.entities import EntityTable
from raysys.perconet.config import PersonaOptions
from raysys.perconet.placebo import Placebo


class Persona(NamedTuple):
    """entities [B, K] int64, most prominent first, 0 behind the last; weight π [B, K], adding up
    to 1, or all 0 without an entity."""

    entities: Tensor
    weight: Tensor

    @property
    def mask(self) -> Tensor:
        """[B, K], True where there is an entity."""
        return self.entities != 0


class Prominence(nn.Module):
    """Clicks → persona:

        f_u(e) = idf(e) · Σ_i γ^i · conf_i(e) · 1[e ∈ E(n_i)],    i = 0 the newest,

    over the newest L_p clicks; the K largest are kept, π = f/Σf. Of equals the entity of the
    smaller row comes first. Which factors count is told by `options.prominence`; `learned` gives
    idf, conf and γ exponents that are weights, 1 to begin with.
    """

    def __init__(self, options: PersonaOptions, history_length: int | None = None) -> None:
        """history_length: no longer history is ever given; None: any may be."""
        super().__init__()
        self.options = options
        # An exported program is told no more about L than that it is at most the history length.
        self.cut = history_length is None or history_length > options.clicks
        kind = options.prominence
        self.exponents = nn.Parameter(torch.ones(3)) if kind == "learned" else None
        self.news: Tensor
        self.confidence: Tensor
        self.idf: Tensor
        self.drawn: Tensor
        self.owner: Tensor
        self.popular: Tensor
        self.popular_weight: Tensor
        for name in ("news", "drawn", "owner", "popular"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64), persistent=False)
        for name in ("confidence", "idf", "popular_weight"):
            self.register_buffer(name, torch.zeros(0), persistent=False)

    def bind(self, table: EntityTable, placebo: Placebo | None = None) -> None:
        """Take the entities of a catalogue, and what a placebo deals out."""
        device = self.news.device
        for name in ("news", "confidence", "idf"):
            setattr(self, name, torch.tensor(getattr(table, name)).to(device))
        if placebo is not None:
            for name in ("drawn", "owner", "popular", "popular_weight"):
                setattr(self, name, torch.tensor(getattr(placebo, name)).to(device))

    def forward(
        self,
        clicks: Tensor,
        mask: Tensor,
        owner: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Persona:
        """clicks [B, L] catalogue rows, newest first; mask [B, L] bool (True = real); owner [B]:
        whose they are, see `Batch`, which the placebo `shuffled` asks; hidden [B, H] entities that
        do not count, as if no news named them."""
        size = self.options.size
        if self.options.placebo == "popular":
            told = mask.any(1, keepdim=True)
            entities = self.popular[None] * told
            return Persona(entities, self.popular_weight[None] * told)
        if self.options.placebo == "shuffled":
            clicks, mask = self._others(clicks, mask, owner)
        entities, parts = self.mentions(clicks, mask)
        if hidden is not None:
            seen = (entities.unsqueeze(-1) != hidden[:, None, None, :]).all(-1)
            entities, parts = entities * seen, parts * seen
        # Of few mentions, too, K are kept: padding is no entity.
        pad = (0, size)
        entities = nn.functional.pad(entities.flatten(1), pad)
        parts = nn.functional.pad(parts.flatten(1), pad)
        order = entities.argsort(dim=1, stable=True)
        entities, parts = entities.gather(1, order), parts.gather(1, order)
        first = torch.ones_like(entities, dtype=torch.bool)
        first[:, 1:] = entities[:, 1:] != entities[:, :-1]
        place = first.cumsum(1) - 1
        total = torch.zeros_like(parts).scatter_add(1, place, parts)
        distinct = torch.zeros_like(entities).scatter(1, place, entities)
        total = total * (distinct != 0)
        if self.options.prominence == "even":
            total = (total > 0).to(total.dtype)
        # Entities ascend, so a stable order breaks ties by row.
        best = total.detach().argsort(dim=1, descending=True, stable=True)[:, :size]
        kept, f = distinct.gather(1, best), total.gather(1, best)
        kept = kept * (f > 0)
        f = f * (f > 0)
        return Persona(kept, f / f.sum(1, keepdim=True).clamp(min=1e-12))

    def mentions(self, clicks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Entities [B, L_p, E] of the newest clicks and what each mention adds to f of its entity;
        0 where there is none."""
        if self.cut:
            clicks, mask = clicks[:, : self.options.clicks], mask[:, : self.options.clicks]
        rows = clicks * mask
        entities = self.news[rows]
        real = entities != 0
        # Clicks are counted as they stand, gaps included: i = 0 is the newest.
        age = (mask.cumsum(1) - 1).clamp(min=0).unsqueeze(-1)
        return entities, self._weight(age, self.confidence[rows], self.idf[entities]) * real

    def _weight(self, age: Tensor, confidence: Tensor, idf: Tensor) -> Tensor:
        kind = self.options.prominence
        gamma = 2.0 ** (-1.0 / self.options.half_life)
        if self.exponents is not None:
            recency, rare, sure = self.exponents
            # Padding has confidence 0, whose powers have no gradient.
            sure_of = torch.where(confidence > 0, confidence, torch.ones_like(confidence))
            power = gamma ** (recency * age)
            return power * idf.clamp(min=1e-6) ** rare * sure_of**sure
        weight = torch.ones_like(confidence)
        if kind in ("all", "recency"):
            weight = weight * gamma**age
        if kind in ("all", "confidence"):
            weight = weight * confidence
        if kind in ("all", "idf"):
            weight = weight * idf
        return weight

    def _others(self, clicks: Tensor, mask: Tensor, owner: Tensor | None) -> tuple[Tensor, Tensor]:
        """Clicks of drawn users with about as many; the same for a request in any batch, and never
        those of its own user."""
        length = mask.sum(1).clamp(max=self.options.clicks)
        bins, wanted = _bin((self.drawn != 0).sum(1)), _bin(length)
        begin = torch.searchsorted(bins, wanted)
        size = torch.searchsorted(bins, wanted, right=True) - begin
        draw = mixed(self.options.placebo_seed, (clicks * mask).sum(1), length)
        # Where nobody has about as many, whoever comes next.
        row = (begin + draw.remainder(size.clamp(min=1))).clamp(max=len(self.drawn) - 1)
        if owner is not None:
            beside = torch.where(row + 1 < len(self.drawn), row + 1, row - 1)
            row = torch.where(self.owner[row] == owner, beside, row)
        found = self.drawn[row] * (length > 0).unsqueeze(1)
        return found, found != 0


def _bin(length: Tensor) -> Tensor:
    """Bins of history lengths: 0, 1, 2–3, 4–7, …"""
    return torch.where(length > 0, length.clamp(min=1).log2().floor() + 1, length * 0.0)
