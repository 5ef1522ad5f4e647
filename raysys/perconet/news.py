"""News vectors out of frozen text vectors of title and abstract, or out of their words (§2.1)."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysys.data.catalogue import Catalogue
from raysys.errors import ConfigError
from raysys.layers.attention import AdditivePooling, SelfAttention, masked_softmax
from raysys.news.words import OTHER, PADDING, WordTable
from raysys.perconet.config import FIELDS, Fusion, PerconetConfig

_WINDOW = 3  # words under a filter
_AT_ONCE = 4096  # rows that are encoded together when a catalogue is frozen


class NewsEncoder(nn.Module):
    """Catalogue rows → r [..., d].

    Each view v of a news has r^v = LN(W_v x^v), zeros where the text is missing. `attn` weighs
    them, r = Σ_v α_v r^v with α = softmax_v(qᵀ tanh(U r^v + b)) over the views there are;
    `concat_vec` maps [r^t; r^a] to d; the others have one view.

    Args:
        widths: of the frozen text vectors by field.
        fields: the views, those that `fusion` reads first; others are only for the contrast.
        width: d. query: of the attention over views.
    """

    def __init__(
        self,
        widths: dict[str, int],
        fields: tuple[str, ...],
        fusion: Fusion,
        width: int,
        query: int,
    ) -> None:
        super().__init__()
        self.fields, self.fused, self.width = fields, FIELDS[fusion], width
        self._read(widths, fusion, query)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in fields})
        self.project = self.query = self.join = None
        if fusion == "attn":
            self.project = nn.Linear(width, query)
            self.query = nn.Linear(query, 1, bias=False)
        elif fusion == "concat_vec":
            self.join = nn.Linear(2 * width, width)
        self.table: Tensor | None
        self.register_buffer("table", None, persistent=False)

    def _read(self, widths: dict[str, int], fusion: Fusion, query: int) -> None:
        """Make what reads a text."""
        missing = [name for name in self.fields if name not in widths]
        if missing:
            raise ConfigError(
                f"news/perconet: fusion={fusion} reads the vectors of {', '.join(self.fields)}; "
                f"set features.vectors to [{', '.join(self.fields)}]"
            )
        self.projections = nn.ModuleDict(
            {name: nn.Linear(widths[name], self.width) for name in self.fields}
        )
        for name in self.fields:
            self.register_buffer(f"vectors_{name}", torch.zeros(0), persistent=False)

    def text(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """W_v x^v [n, d] of rows [n] before it is normalised, and where there is a text [n]."""
        x = getattr(self, f"vectors_{name}")[rows]
        return self.projections[name](x), (x != 0).any(-1)

    @property
    def count(self) -> int:
        """Catalogue rows that are known."""
        return len(getattr(self, f"vectors_{self.fields[0]}"))

    def bind(self, catalogue: Catalogue) -> None:
        """Take the text vectors of a catalogue."""
        device = next(self.parameters()).device
        self.table = None
        for name in self.fields:
            values = torch.from_numpy(catalogue.vectors[name]).to(device)
            setattr(self, f"vectors_{name}", values)

    def freeze(self) -> None:
        """Encode all rows once, in parts; scoring then gathers."""
        with torch.no_grad():
            everything = torch.arange(self.count, device=self.device)
            parts = [self.fuse(*self.views(rows)) for rows in everything.split(_AT_ONCE)]
            self.table = torch.cat(parts)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> "NewsEncoder":
        """Training makes a frozen table stale."""
        if mode:
            self.table = None
        super().train(mode)
        return self

    def views(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """r^v [n, V, d] of rows [n], and which of them there are [n, V] bool."""
        found, present = [], []
        for name in self.fields:
            x, real = self.text(name, rows)
            r = self.norms[name](x)
            found.append(r * real.unsqueeze(-1).to(r.dtype))
            present.append(real)
        return torch.stack(found, 1), torch.stack(present, 1)

    def fuse(self, views: Tensor, present: Tensor) -> Tensor:
        """r [n, d] of the views [n, V, d]; zeros where no view is there."""
        read = len(self.fused)
        views, present = views[:, :read], present[:, :read]
        if self.join is not None:
            fused: Tensor = self.join(views.flatten(1))
            return fused * present.any(1, keepdim=True).to(fused.dtype)
        if self.query is None or self.project is None:
            return views[:, 0]
        scores = self.query(torch.tanh(self.project(views))).squeeze(-1)
        return torch.bmm(masked_softmax(scores, present).unsqueeze(1), views).squeeze(1)

    def forward(self, rows: Tensor) -> Tensor:
        """r [..., d] of catalogue rows [...]."""
        if self.table is not None:
            return nn.functional.embedding(rows, self.table)
        # A batch names the same news over and over.
        unique, inverse = torch.unique(rows, return_inverse=True)
        return nn.functional.embedding(inverse, self.fuse(*self.views(unique)))


class WordNewsEncoder(NewsEncoder):
    """The same out of words: r^v = LN(Σ_m α_m h_m), h by self-attention over the words (`mhsa`, as
    in NRMS, Wu et al., EMNLP 2019, §2.1) or by filters over three of them (`cnn`, as in NAML, Wu
    et al., IJCAI 2019, §2.1), α by additive attention. Title and abstract share all weights.
    """

    def __init__(self, options: PerconetConfig) -> None:
        assert options.fitted_words is not None
        self.options = options
        super().__init__({}, options.fields, options.fusion, options.width, options.query)

    def _read(self, widths: dict[str, int], fusion: Fusion, query: int) -> None:
        options, count = self.options, self.options.fitted_words
        assert count is not None
        width = options.words.width
        self.embedding = nn.Embedding(OTHER + 1 + count, width, padding_idx=PADDING)
        self.dropout = nn.Dropout(options.dropout)
        self.attention = self.filters = None
        if options.encoder == "mhsa":
            self.attention = SelfAttention(self.width, options.heads, in_width=width)
        else:
            self.filters = nn.Conv1d(width, self.width, _WINDOW, padding=_WINDOW // 2)
        self.pool = AdditivePooling(self.width, query)
        for name in self.fields:
            empty = torch.zeros(0, 1, dtype=torch.int64)
            self.register_buffer(f"tokens_{name}", empty, persistent=False)

    def bind(self, catalogue: Catalogue) -> None:
        """Words are bound by `bind_words`; vectors of a catalogue are not read."""
        self.table = None

    def bind_words(self, table: WordTable) -> None:
        """Take the words of a catalogue's news."""
        self.table = None
        for name in self.fields:
            setattr(self, f"tokens_{name}", torch.from_numpy(table.tokens[name]).to(self.device))

    def start_from(self, vectors: npt.NDArray[np.float32]) -> None:
        """Take pretrained vectors [2 + V, width]; words without one keep those they were drawn."""
        known = torch.from_numpy(vectors.any(1))
        with torch.no_grad():
            self.embedding.weight[known] = torch.from_numpy(vectors)[known]

    @property
    def count(self) -> int:
        """See `NewsEncoder`."""
        return len(getattr(self, f"tokens_{self.fields[0]}"))

    def text(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `NewsEncoder`."""
        tokens = getattr(self, f"tokens_{name}")[rows]
        mask = tokens != PADDING
        # No longer than the longest of these.
        most = max(1, int(mask.sum(1).max())) if len(rows) else 1
        tokens, mask = tokens[:, :most], mask[:, :most]
        x = self.dropout(self.embedding(tokens))
        if self.attention is not None:
            h = self.attention(x, mask)
        else:
            assert self.filters is not None
            h = torch.relu(self.filters(x.transpose(1, 2))).transpose(1, 2)
        return self.pool(self.dropout(h), mask), mask.any(1)
