"""Look-up of scene vectors: from context codes and past items to what the encoder is given."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from raysys.data.contexts import FIRST, ContextCodec
from raysys.larr.config import LarrConfig, RecentItems, TasteSentence
from raysys.larr.table import SceneTable
from raysys.larr.unfrozen import LearnedSentences
from raysys.larr.verbalise import Verbaliser


class SceneLookup(nn.Module):
    """The frozen vectors of K features for B requests; nothing here is learned or encoded, but
    while a ranker with larr.frozen=false is trained (`learn`, until `settle`).

    Features are in this order: texts of the context, tastes, recent items. `bind` gives the
    vectors, `adopt` the vocabulary that codes are of, `add` further vectors at run time.

    Args:
        config: the features.
        verbaliser: makes the texts that vectors are looked up by.
        width: D.
    """

    def __init__(self, config: LarrConfig, verbaliser: Verbaliser, width: int) -> None:
        super().__init__()
        self.verbaliser = verbaliser
        self.tastes = [f for f in config.features if isinstance(f, TasteSentence)]
        self.recents = [f for f in config.features if isinstance(f, RecentItems)]
        self.width = width
        self.codec: ContextCodec | None = None
        self.table: SceneTable | None = None
        self._rows: dict[tuple[str, str], int] = {}
        self._columns: list[list[int]] = []
        self.learned: LearnedSentences | None = None
        self.vectors: Tensor
        self.drawn_context: Tensor | None
        self.drawn_items: Tensor | None
        self.register_buffer("vectors", torch.zeros(1, width), persistent=False)
        self.register_buffer("drawn_context", None, persistent=False)
        self.register_buffer("drawn_items", None, persistent=False)
        for index, _ in enumerate(verbaliser.names):
            self.register_buffer(f"text_{index}", torch.zeros(0).long(), persistent=False)
        for taste in self.tastes:
            self.register_buffer(f"taste_{taste.name}", torch.zeros(0).long(), persistent=False)
        for recent in self.recents:
            self.register_buffer(f"recent_{recent.name}", torch.zeros(0), persistent=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the K features."""
        learned = [f.name for f in (*self.tastes, *self.recents)]
        return (*self.verbaliser.names, *learned)

    def bind(self, table: SceneTable) -> None:
        """Take the vectors; row 0 is that of nothing, and items follow those of a catalogue."""
        self.table = table
        self._rows = {key: row + 1 for key, row in table.rows.items()}
        device = self.vectors.device
        nothing = np.zeros((1, self.width), np.float32)
        self.vectors = torch.from_numpy(np.concatenate([nothing, table.vectors])).to(device)
        for taste in self.tastes:
            rows = np.concatenate([np.zeros(FIRST, np.int64), table.taste[taste.name] + 1])
            setattr(self, f"taste_{taste.name}", torch.from_numpy(rows).to(device))
        for recent in self.recents:
            found = table.recent[recent.name]
            padded = np.concatenate([np.zeros((FIRST, self.width), np.float32), found])
            setattr(self, f"recent_{recent.name}", torch.from_numpy(padded).to(device))
        if table.drawn_context is not None and table.drawn_items is not None:
            self.drawn_context = torch.from_numpy(np.array(table.drawn_context)).to(device)
            self.drawn_items = torch.from_numpy(np.array(table.drawn_items)).to(device)
        self._route()

    def adopt(self, codec: ContextCodec) -> None:
        """Codes are those of `codec` from now on.

        Raises:
            ConfigError: a context feature is missing there.
        """
        self._columns = self.verbaliser.columns(codec)
        self.codec = codec
        self._route()

    def learn(self, sentences: LearnedSentences) -> None:
        """Vectors come from a model from now on: those of the bound table's texts, in its order."""
        self.learned = sentences

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the learned vectors as they are now, and let go of their model."""
        if self.learned is None:
            return
        assert self.table is not None
        vectors = self.learned.eval()().cpu().numpy()
        self.learned = None
        self.bind(replace(self.table, vectors=vectors))

    def known(self, name: str, text: str) -> bool:
        """Whether the text of a feature has a vector."""
        return (name, text) in self._rows

    def add(self, names: Sequence[str], texts: Sequence[str], vectors: Tensor) -> None:
        """Further texts [n] with vectors [n, D], to be found from the next `adopt` on; those that
        are there already keep theirs."""
        fresh = [
            index
            for index, key in enumerate(zip(names, texts, strict=True))
            if key not in self._rows
        ]
        for place, index in enumerate(fresh):
            self._rows[names[index], texts[index]] = len(self.vectors) + place
        self.vectors = torch.cat([self.vectors, vectors[fresh].to(self.vectors)])

    def _route(self) -> None:
        """Code (or combination of codes) → row of `vectors`, 0 where there is none."""
        if self.codec is None:
            return
        device = self.vectors.device
        combined = self.verbaliser.combinations(self.codec)
        for index, (name, texts) in enumerate(zip(self.verbaliser.names, combined, strict=True)):
            rows = [0 if text is None else self._rows.get((name, text), 0) for text in texts]
            setattr(self, f"text_{index}", torch.tensor(rows, device=device))

    def forward(
        self, context: Tensor, items: Tensor, mask: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors [B, K, D], zero where missing, and present [B, K] bool.

        context [B, F] codes of the adopted codec; items [B, L] rows of past items, newest first;
        mask [B, L] bool; draw [B] int64, a number of each request, for the placebo alone.
        """
        if self.drawn_context is not None and self.drawn_items is not None:
            chosen = draw % len(self.drawn_context)
            context, items = self.drawn_context[chosen], self.drawn_items[chosen]
            mask = items != 0
        vectors = self.vectors
        if self.learned is not None:
            vectors = torch.cat([vectors[:1], self.learned()])
        parts, present = [], []
        for index, columns in enumerate(self._columns):
            rows = getattr(self, f"text_{index}")[self._joint(context, columns)]
            parts.append(vectors[rows])
            present.append(rows > 0)
        for taste in self.tastes:
            newest, real = _newest(items, mask, taste.events)
            rows = getattr(self, f"taste_{taste.name}")[newest]
            real = real & (rows > 0)
            parts.append(_mean(vectors[rows], real))
            present.append(real.any(1))
        for recent in self.recents:
            newest, real = _newest(items, mask, recent.events)
            found = getattr(self, f"recent_{recent.name}")[newest]
            real = real & (found != 0).any(-1)
            parts.append(_mean(found, real))
            present.append(real.any(1))
        return torch.stack(parts, 1), torch.stack(present, 1)

    def _joint(self, context: Tensor, columns: list[int]) -> Tensor:
        assert self.codec is not None
        out = torch.zeros_like(context[:, 0])
        for column in columns:
            out = out * self.codec.features[column].cardinality + context[:, column]
        return out


def _newest(items: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` of items [B, L] and of their mask."""
    if torch.compiler.is_exporting():
        # An exported program must not depend on the length of its window.
        return items, mask & (torch.arange(items.shape[1], device=items.device) < count)
    return items[:, :count], mask[:, :count]


def _mean(vectors: Tensor, real: Tensor) -> Tensor:
    """Mean [B, D] of the real ones of vectors [B, L, D]; zeros without any."""
    weight = real.unsqueeze(-1).to(vectors.dtype)
    return (vectors * weight).sum(1) / weight.sum(1).clamp(min=1)
