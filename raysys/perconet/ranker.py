"""PerCoNet as a ranker: persona and latent interest behind a gate (§2.3), in parts (§2.4)."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from raysys.artifacts.persona import EntityPart, PersonaExplanation
from raysys.data.batch import Batch
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST
from raysys.data.features import FeatureSpace
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError
from raysys.layers.attention import AdditivePooling, SelfAttention, masked_softmax
from raysys.layers.losses import sampled_softmax
from raysys.layers.mlp import MLP
from raysys.news.base import NewsRanker
from raysys.news.entities import EntityTable, renewed_entities
from raysys.news.entity_vectors import EntityVectors
from raysys.news.words import WordTable, renewed_words
from raysys.perconet.config import PerconetConfig
from raysys.perconet.news import NewsEncoder, WordNewsEncoder
from raysys.perconet.persona import Persona, Prominence
from raysys.perconet.placebo import Placebo
from raysys.perconet.views import cross_view
from raysys.training import World

_DAY_S = 86_400.0
_MATCH = 4.0  # what a persona that is all of one matched entity adds to a score, to begin with


class Parts(NamedTuple):
    """What a score s(u, c) is made of, all times 1/√d and the part's share:

    entities [B, C, K]: of each entity of the persona; clicks [B, C, L]: of each click in the latent
    vector; rest [B, C]: of the learned default, where a user has no clicks, or a persona alone
    has no entity. s is their sum. attention [B, C, K]: a_e; gate [B, C]: the persona's share.
    """

    persona: Persona
    entities: Tensor
    clicks: Tensor
    rest: Tensor
    attention: Tensor
    gate: Tensor

    @property
    def score(self) -> Tensor:
        """s [B, C]."""
        return self.entities.sum(-1) + self.clicks.sum(-1) + self.rest


class Perconet(NewsRanker):
    """s(u, c) = uᵀ r_c/√d, u = g·p + (1 − g)·h.

        a_e ∝ π_e·exp(η·φ(e, c)),  φ = (A e)ᵀ(B r_c)/√d
        p   = Σ_e a_e W e,  h: attention over the clicks as in NRMS,  g = σ(wᵀ[p; h] + b)

    With `persona.match` an entity of the persona that the candidate names adds g·a_e·μ, μ learned:
    vectors of words and of entities know too little of single names. With clicks but no entity
    g = 0; without clicks u is a learned vector. 1/√d, as in `NRMS`, only sets the scale at which
    the softmax over a slate begins.

    Args:
        options: settled.
        widths: of the frozen text vectors by field.
    """

    Config = PerconetConfig
    items: NewsEncoder  # type: ignore[assignment]

    def __init__(self, options: PerconetConfig, widths: dict[str, int]) -> None:
        super().__init__()
        self.options, d = options, options.width
        self.history_length = options.history_length
        self.scale = d**-0.5
        if options.encoder == "frozen":
            self.items = NewsEncoder(widths, options.fields, options.fusion, d, options.query)
        else:
            self.items = WordNewsEncoder(options)
        self.dropout = nn.Dropout(options.dropout)
        self.default = nn.Parameter(torch.zeros(d))
        self.latent = self.explicit = None
        if options.user != "persona":
            self.latent = nn.ModuleDict(
                {
                    "attention": SelfAttention(d, options.heads, residual=options.residual),
                    "pool": AdditivePooling(d, options.query),
                }
            )
        if options.user != "latent":
            persona, fitted = options.persona, options.fitted
            assert fitted is not None
            width = fitted.entity_width
            self.prominence = Prominence(persona, options.history_length)
            self.vectors = EntityVectors(persona, fitted)
            self.explicit = nn.ModuleDict({"value": nn.Linear(width, d, bias=False)})
            if persona.eta:
                self.explicit["key"] = nn.Linear(width, d, bias=False)
                self.explicit["query"] = nn.Linear(d, d, bias=False)
            if persona.match:
                self.match = nn.Parameter(torch.tensor(_MATCH))
            if options.user == "gated":
                self.explicit["gate"] = nn.Linear(2 * d, 1)
        contrast = options.contrast
        self.heads = None
        # Last, so that without the loss all other weights begin alike.
        if contrast.weight:
            self.heads = nn.ModuleList(MLP(d, (d,), out=contrast.width) for _ in range(2))
        self.groups: Tensor
        self.register_buffer("groups", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.table: EntityTable | None = None
        self.word_table: WordTable | None = None
        self.placebo: Placebo | None = None

    @classmethod
    def from_config(cls, config: PerconetConfig, features: FeatureSpace) -> Self:
        """Build for fitted features; only their vectors are used."""
        return cls(config, features.vectors)

    def bind(self, catalogue: Catalogue) -> None:
        """See `Ranker`."""
        self.items.bind(catalogue)

    def bind_words(self, table: WordTable) -> None:
        """Give a model that reads words those of its news."""
        assert isinstance(self.items, WordNewsEncoder)
        self.word_table = table
        self.items.bind_words(table)

    def bind_entities(self, table: EntityTable, placebo: Placebo | None = None) -> None:
        """Give the model the entities of its news, and what a placebo deals out."""
        if self.explicit is not None:
            self.table, self.placebo = table, placebo
            self.prominence.bind(table, placebo)
            self.vectors.bind(table)

    def renew(self, data: Prepared) -> None:
        """See `NewsRanker`."""
        if self.word_table is not None:
            self.bind_words(renewed_words(self.word_table, data, self.options.words))
        if self.explicit is None:
            return
        if self.placebo is not None:
            raise ConfigError("a placebo's personas are of the users it was fitted with")
        assert self.table is not None
        self.bind_entities(renewed_entities(self.table, data, self.options.persona))

    def bar(self, names: Collection[str]) -> None:
        """These entities count for nobody from now on, as if no news named them."""
        assert self.table is not None
        rows = [self.table.row(name) for name in names]
        gone = np.isin(self.table.news, [row for row in rows if row])
        self.table = replace(
            self.table,
            news=np.where(gone, 0, self.table.news),
            confidence=np.where(gone, 0, self.table.confidence).astype(np.float32),
        )
        self.prominence.bind(self.table, self.placebo)

    def bind_texts(self, groups: np.ndarray) -> None:
        """Which news have equal texts [2 + N], see `text_groups`; only training asks."""
        self.groups = torch.from_numpy(groups).to(self.groups.device)

    def save_snapshot(self, folder: Path) -> None:
        """See `Ranker`: words and entities."""
        if self.word_table is not None:
            self.word_table.save(folder)
        if self.explicit is not None:
            assert self.table is not None
            self.table.save(folder)
            if self.placebo is not None:
                self.placebo.save(folder)

    def open_snapshot(self, folder: Path) -> None:
        """See `Ranker`."""
        if self.options.fitted_words is not None:
            fields, count = self.options.fields, self.options.fitted_words
            self.bind_words(WordTable.open(folder, fields, count))
        if self.explicit is None:
            return
        assert self.options.fitted is not None
        table = EntityTable.open(folder, self.options.fitted)
        self.bind_entities(table, Placebo.load(folder))

    def freeze(self) -> None:
        """See `Ranker`."""
        super().freeze()
        if self.explicit is not None:
            self.vectors.freeze()

    def hide(self, batch: Batch, hidden: Sequence[Sequence[str]]) -> Batch:
        """See `Ranker`; entities that the model does not know are hidden anyway."""
        if self.explicit is None or self.table is None:
            return batch
        rows = [[row for name in names if (row := self.table.row(name))] for names in hidden]
        width = max(1, *map(len, rows))
        padded = [[*found, *[0] * (width - len(found))] for found in rows]
        return replace(batch, hidden=torch.tensor(padded, dtype=torch.int64))

    # ------------------------------------------------------------------ scores

    def parts(self, batch: Batch) -> Parts:
        """The exact parts of every score."""
        clicked = self.items(batch.history_items)
        return self._parts(batch, clicked, self.items(batch.candidates))

    def _parts(self, batch: Batch, clicked: Tensor, candidates: Tensor) -> Parts:
        """clicked r [B, L, d], candidates r [B, C, d], both before dropout."""
        mask, kind = batch.history_mask, self.options.user
        candidates = self.dropout(candidates)
        shape = candidates.shape[:2]
        zero = candidates.new_zeros(shape)
        some = mask.any(1, keepdim=True).to(zero.dtype).expand(shape)
        persona, attention, values = self._persona(batch, candidates)
        has = persona.mask.any(1, keepdim=True).to(zero.dtype).expand(shape)
        latent = clicked.new_zeros(*mask.shape, self.options.width)
        if self.latent is not None:
            attended = self.dropout(self.latent["attention"](self.dropout(clicked), mask))
            alpha = self.latent["pool"].weights(attended, mask)
            latent = attended * alpha.unsqueeze(-1)
        p = torch.bmm(attention, values)
        gate, rest = self._shares(kind, p, latent.sum(1), has, some)
        likeness = torch.bmm(self._acted(p, candidates), values.transpose(1, 2))
        if self.explicit is not None and self.options.persona.match:
            likeness = likeness + self.match / self.scale * self._matches(batch, persona)
        entities = attention * likeness
        clicks = torch.bmm(candidates, latent.transpose(1, 2))
        by_default = candidates @ self.default
        return Parts(
            persona=persona,
            entities=entities * (gate * self.scale).unsqueeze(-1),
            clicks=clicks * (rest[0] * self.scale).unsqueeze(-1),
            rest=by_default * rest[1] * self.scale,
            attention=attention,
            gate=gate,
        )

    def _persona(self, batch: Batch, candidates: Tensor) -> tuple[Persona, Tensor, Tensor]:
        """The persona, a_e [B, C, K] and W e [B, K, d]."""
        size, count = candidates.shape[:2]
        if self.explicit is None:
            none = torch.zeros(size, 1, dtype=torch.int64, device=candidates.device)
            persona = Persona(none, none.to(candidates.dtype))
            return (
                persona,
                candidates.new_zeros(size, count, 1),
                candidates.new_zeros(size, 1, self.options.width),
            )
        mask = self._kept(batch)
        persona = self.prominence(batch.history_items, mask, batch.owner, batch.hidden)
        e = self.vectors(persona.entities)
        logits = persona.weight.clamp(min=1e-12).log().unsqueeze(1)
        if "key" in self.explicit:
            queries = self.explicit["query"](candidates)
            phi = torch.bmm(queries, self.explicit["key"](e).transpose(1, 2)) * self.scale
            logits = logits + self.options.persona.eta * phi
        attention = masked_softmax(logits.expand(size, count, -1), persona.mask.unsqueeze(1))
        return persona, attention, self.explicit["value"](e)

    def _matches(self, batch: Batch, persona: Persona) -> Tensor:
        """[B, C, K] 1 where the candidate names the entity of the persona, else 0."""
        named = self.prominence.news[batch.candidates].unsqueeze(2)  # [B, C, 1, E]
        found = (named == persona.entities[:, None, :, None]).any(-1) & persona.mask.unsqueeze(1)
        return found.to(persona.weight.dtype)

    def _kept(self, batch: Batch) -> Tensor:
        """[B, L] the clicks that may count in the persona: those within the time they are kept."""
        days = self.options.persona.retention_days
        if days is None:
            return batch.history_mask
        return batch.history_mask & (batch.history_age_s <= days * _DAY_S)

    def _acted(self, p: Tensor, candidates: Tensor) -> Tensor:
        """What a W e is multiplied with, so that the parts add up to the score, tanh or not."""
        if self.options.persona.act == "linear":
            return candidates
        # tanh(y) = Σ_e (tanh(y)/y)·(a_e W e), dimension by dimension; tanh(y)/y → 1 at 0.
        small = p.abs() < 1e-4
        safe = torch.where(small, torch.ones_like(p), p)
        return candidates * torch.where(small, torch.ones_like(p), safe.tanh() / safe)

    def _shares(
        self, kind: str, p: Tensor, h: Tensor, has: Tensor, some: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Shares [B, C] of the persona, and of the latent vector and the default.

        p [B, C, d]; h [B, d]; has, some [B, C]: whether there are entities and clicks, 0 or 1.
        """
        if kind == "latent":
            return torch.zeros_like(has), (some, 1 - some)
        if kind == "persona":
            return has, (torch.zeros_like(has), 1 - has)
        if kind == "sum":
            return has, (some, 1 - some)
        assert self.explicit is not None
        if self.options.persona.act == "tanh":
            p = p.tanh()
        both = torch.cat([p, h.unsqueeze(1).expand_as(p)], -1)
        gate = torch.sigmoid(self.explicit["gate"](both).squeeze(-1)) * has
        return gate, ((1 - gate) * some, 1 - some)

    def scores(self, batch: Batch) -> Tensor:
        """s(u, c) [B, C]."""
        return self.parts(batch).score

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """L = L_rec + λ·L_cl: softmax cross-entropy of the click in column 0, and the cross-view
        loss over all news of the global batch."""
        history = batch.history_items * batch.history_mask
        candidates = batch.candidates * batch.candidate_mask
        rows, place = torch.unique(
            torch.cat([history.flatten(), candidates.flatten()]), return_inverse=True
        )
        views, present = self.items.views(rows)
        r = nn.functional.embedding(place, self.items.fuse(views, present))
        clicked = r[: history.numel()].view(*history.shape, -1)
        shown = r[history.numel() :].view(*candidates.shape, -1)
        scores = self._parts(batch, clicked, shown).score
        if self.explicit is not None:
            self.vectors.step(self.training)
        total, weight = sampled_softmax(scores, batch.candidate_mask)
        if self.heads is None:
            return total, weight
        real = rows >= FIRST
        part, count = self._contrast(rows[real], views[real], present[real])
        # The loop divides by the rows of all workers; L_cl is a mean over the news of all.
        world = World.current("cpu")
        every = float(world.gather_rows(weight.detach().reshape(1).cpu()).sum())
        return total + self.options.contrast.weight * part * every / max(1, count), weight

    def _contrast(self, rows: Tensor, views: Tensor, present: Tensor) -> tuple[Tensor, int]:
        assert self.heads is not None
        contrast, place = self.options.contrast, self.items.fields.index
        title = place("title")
        if contrast.views == "cross":
            other = place("abstract")
            both = present[:, title] & present[:, other]
            pair = (views[both][:, title], views[both][:, other])
        else:
            both = present[:, title]
            pair = (self.dropout(views[both][:, title]), self.dropout(views[both][:, title]))
        z = [normalize(head(r), dim=-1) for head, r in zip(self.heads, pair, strict=True)]
        world = World.current("cpu")
        return cross_view(world, z[0], z[1], self.groups[rows[both]], contrast.temperature)

    def contrast_views(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """z^t, z^a [n, w] of rows [n], zeros where the text is missing; None without a contrast of
        title and abstract."""
        if self.heads is None or self.options.contrast.views != "cross":
            return None, None
        views, present = self.items.views(rows)
        title, abstract = (self.items.fields.index(name) for name in ("title", "abstract"))
        first, second = (
            normalize(head(views[:, at]), dim=-1) * present[:, at].unsqueeze(-1)
            for head, at in zip(self.heads, (title, abstract), strict=True)
        )
        return first, second

    # ------------------------------------------------------------------ explanations

    def event_weights(self, batch: Batch) -> Tensor:
        """Exact parts of the score by click [B, C, L]: what the click adds to the latent vector,
        and of every entity the share that the click has in its prominence. With the learned
        default they add up to the score."""
        parts = self.parts(batch)
        if self.explicit is None or self.options.persona.placebo is not None:
            return parts.clicks
        support = self.support(batch, parts.persona)
        out = parts.clicks.clone()
        out[..., : support.shape[2]] += torch.bmm(parts.entities, support)
        return out

    def support(self, batch: Batch, persona: Persona) -> Tensor:
        """[B, K, L_p]: the share of each click in the prominence of each entity; 0 where the
        click does not name it."""
        entities, parts = self.prominence.mentions(batch.history_items, self._kept(batch))
        if self.options.persona.prominence == "even":
            parts = (parts > 0).to(parts.dtype)
        same = persona.entities[:, :, None, None] == entities[:, None]
        shares = (same * parts[:, None]).sum(-1) * persona.mask.unsqueeze(-1)
        return shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)

    def explain_persona(
        self, batch: Batch, catalogue: Catalogue
    ) -> list[list[PersonaExplanation]] | None:
        """Per request and candidate (§2.4): every entity of the persona with its contribution, the
        clicks behind it and whether the candidate names it; with the latent part and the default
        they add up to the score. None for a latent user, who has no persona."""
        if self.explicit is None or self.table is None:
            return None
        parts, table = self.parts(batch), self.table
        support = (self.support(batch, parts.persona) > 0).tolist()
        named = self.prominence.news[batch.candidates].tolist()
        entities, weight = parts.persona.entities.tolist(), parts.persona.weight.tolist()
        told, gate = parts.entities.tolist(), parts.gate.tolist()
        latent, default = parts.clicks.sum(-1).tolist(), parts.rest.tolist()
        out = []
        for row, count in enumerate(batch.candidate_mask.sum(1).tolist()):
            items = batch.history_items[row].tolist()
            known = [_id(catalogue, item) if item >= FIRST else None for item in items]
            some = [(k, entity) for k, entity in enumerate(entities[row]) if entity]
            behind = {
                k: tuple(
                    name
                    for name, does in zip(known, support[row][k], strict=False)
                    if does and name is not None
                )
                for k, _ in some
            }
            out.append(
                [
                    PersonaExplanation(
                        entities=tuple(
                            EntityPart(
                                id=table.ids[entity - 1],
                                label=table.labels[entity - 1] or None,
                                type=table.types[entity - 1] or None,
                                weight=weight[row][k],
                                contribution=told[row][column][k],
                                clicks=behind[k],
                                match=entity in named[row][column],
                            )
                            for k, entity in some
                        ),
                        latent=latent[row][column],
                        default=default[row][column],
                        gate=gate[row][column],
                    )
                    for column in range(count)
                ]
            )
        return out


def _id(catalogue: Catalogue, row: int) -> str:
    return str(catalogue.ids(np.array([row]))[0].as_py())
