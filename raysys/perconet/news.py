"""News vectors out of frozen text vectors of title and abstract (§2.1)."""

import torch
from torch import Tensor, nn

from raysys.data.catalogue import Catalogue
from raysys.errors import ConfigError
from raysys.layers.attention import masked_softmax
from raysys.perconet.config import FIELDS, Fusion


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
        missing = [name for name in fields if name not in widths]
        if missing:
            raise ConfigError(
                f"news/perconet: fusion={fusion} reads the vectors of {', '.join(fields)}; set "
                f"features.vectors to [{', '.join(fields)}]"
            )
        self.fields, self.fused, self.width = fields, FIELDS[fusion], width
        self.projections = nn.ModuleDict({name: nn.Linear(widths[name], width) for name in fields})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in fields})
        self.project = self.query = self.join = None
        if fusion == "attn":
            self.project = nn.Linear(width, query)
            self.query = nn.Linear(query, 1, bias=False)
        elif fusion == "concat_vec":
            self.join = nn.Linear(2 * width, width)
        self.table: Tensor | None
        self.register_buffer("table", None, persistent=False)
        for name in fields:
            self.register_buffer(f"vectors_{name}", torch.zeros(0), persistent=False)

    def bind(self, catalogue: Catalogue) -> None:
        """Take the text vectors of a catalogue."""
        device = next(self.parameters()).device
        self.table = None
        for name in self.fields:
            values = torch.from_numpy(catalogue.vectors[name]).to(device)
            setattr(self, f"vectors_{name}", values)

    def freeze(self) -> None:
        """Encode all rows once; scoring then gathers."""
        with torch.no_grad():
            count = len(getattr(self, f"vectors_{self.fields[0]}"))
            self.table = self.fuse(*self.views(torch.arange(count, device=self.device)))

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
            x = getattr(self, f"vectors_{name}")[rows]
            real = (x != 0).any(-1)
            r = self.norms[name](self.projections[name](x))
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
