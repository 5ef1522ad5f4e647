"""From the vectors of K scene features to one scene vector (larr.md §2.3)."""

from typing import Literal

import torch
from torch import Tensor, nn

from raysys.layers.mlp import MLP


class SceneEncoder(nn.Module):
    """m = MLP(z), z the output of a trainable token that attends to the features' vectors.

        X = [agg ; e_k W + type_k]      z = Enc(X, mask)[:, 0]      m = MLP(z)

    A type embedding and no positions: features are a set. A request without any feature gets the
    same learned default as every other one.

    Args:
        features: K.
        width: D of the frozen vectors.
        out: width of m, that of the ID tower.
        hidden: width of the encoder.
        head: hidden width of the MLP.
        aggregate: `agg` as above; `mean` of the present projections as z; `concat`: z is a layer
            on all projections side by side, zeros for missing ones.
        attend_missing: missing features are zero vectors instead of masked.
    """

    def __init__(
        self,
        features: int,
        width: int,
        out: int,
        *,
        hidden: int = 64,
        heads: int = 4,
        layers: int = 1,
        dropout: float = 0.1,
        head: int = 64,
        aggregate: Literal["agg", "mean", "concat"] = "agg",
        attend_missing: bool = False,
    ) -> None:
        super().__init__()
        self.aggregate = aggregate
        self.attend_missing = attend_missing
        self.project = nn.Linear(width, hidden, bias=False)
        self.types = nn.Parameter(torch.randn(features, hidden) * 0.1)
        # The learned default: what is left where nothing is known.
        self.agg = nn.Parameter(torch.randn(hidden) * 0.1)
        self.body: nn.Module | None = None
        if aggregate == "agg":
            layer = nn.TransformerEncoderLayer(
                hidden, heads, 4 * hidden, dropout, batch_first=True, norm_first=True
            )
            self.body = nn.TransformerEncoder(
                layer, layers, norm=nn.LayerNorm(hidden), enable_nested_tensor=False
            )
        elif aggregate == "concat":
            self.body = nn.Sequential(nn.Linear(features * hidden, hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = MLP(hidden, (head,), out=out, dropout=dropout)

    def aggregated(self, vectors: Tensor, present: Tensor) -> Tensor:
        """z [B, hidden] of vectors [B, K, D] and present [B, K] bool (False = missing)."""
        real = present.unsqueeze(-1).to(vectors.dtype)
        # Whatever stands in a missing place must not count.
        x = self.project(vectors.masked_fill(~present.unsqueeze(-1), 0.0)) + self.types
        if self.attend_missing:
            real = torch.ones_like(real)
            present = torch.ones_like(present)
        agg = self.agg.expand(x.shape[0], 1, -1)
        if self.aggregate == "agg":
            assert self.body is not None
            x = torch.cat([agg, x], 1)
            mask = torch.cat([torch.zeros_like(present[:, :1]), ~present], 1)
            z: Tensor = self.body(x, src_key_padding_mask=mask)[:, 0]
            return z
        if self.aggregate == "concat":
            assert self.body is not None
            out: Tensor = self.body((x * real).flatten(1)) + self.agg
            return out
        return (x * real).sum(1) / real.sum(1).clamp(min=1) + self.agg

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """m [B, out] of vectors [B, K, D] and present [B, K] bool (False = missing)."""
        m: Tensor = self.head(self.dropout(self.aggregated(vectors, present)))
        return m
