"""Attention over histories: DIN's target attention, additive pooling, self-attention."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raysys.layers.blocked import pair_linear
from raysys.layers.mlp import MLP, Activation, activation


def _never_empty(mask: Tensor) -> Tensor:
    """The mask, but all True where a row has no real entry.

    Softmax over a row of −inf is 0/0, whose gradient is NaN even if the value is thrown away.
    """
    return mask | ~mask.any(-1, keepdim=True)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the real entries of the last axis; zeros where masked or nothing is real.

    scores [..., L], mask bool, broadcastable to it (True = real) → [..., L].
    """
    filled = scores.masked_fill(~_never_empty(mask), float("-inf"))
    return torch.softmax(filled, -1) * mask.to(scores.dtype)


class TargetAttention(nn.Module):
    """DIN's activation unit (Zhou et al. 2018, §4.3), its first layer factorised.

    The unit scores each (candidate q, event k) by an MLP on [q, k, q − k, q∘k]. Its first
    layer W·[q, k, q − k, q∘k] equals (Wq + Wd)·q + (Wk − Wd + Wp·diag(q))·k: a vector and a
    matrix per candidate, so that a pair costs one product with its event instead of four, and
    the products [B, C, L, D] are never laid out in memory.

    Args:
        width: D of candidates and events.
        hidden: units of the MLP.
        act: its activation.
        softmax: normalise scores over the history; DIN itself does not.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int] = (64, 32),
        *,
        act: Activation = "relu",
        softmax: bool = False,
    ) -> None:
        super().__init__()
        first, *rest = hidden
        # One Linear over the four blocks, initialised as the unfactorised layer would be.
        self.first = nn.Linear(4 * width, first)
        self.act = activation(act, first)
        self.rest = MLP(first, rest, out=1, act=act)
        self.softmax = softmax

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """query [B, C, D], keys [B, L, D] → raw scores [B, C, L]."""
        wq, wk, wd, wp = self.first.weight.chunk(4, dim=1)
        by_query = nn.functional.linear(query, wq + wd, self.first.bias)
        hidden = pair_linear(keys, by_query, query, wk - wd, wp)  # [B, L, C, H]
        return self.rest(self.act(hidden)).squeeze(-1).transpose(1, 2)

    def weights(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Attention weights [B, C, L], 0 for padding; arguments as in `forward`."""
        scores = self.scores(query, keys)
        real = mask if mask.ndim == 3 else mask.unsqueeze(1)
        if not self.softmax:
            return scores * real.to(scores.dtype)
        return masked_softmax(scores, real)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Interest of each candidate in the history.

        query [B, C, D], keys [B, L, D], mask [B, L] or, where candidates have different events,
        [B, C, L] bool (True = real) → [B, C, D]; zeros where nothing is real.
        """
        return torch.bmm(self.weights(query, keys, mask), keys)


class AdditivePooling(nn.Module):
    """Σ_l α_l x_l with α = softmax(qᵀ tanh(U x_l + b)) over real positions (NAML, NRMS)."""

    def __init__(self, width: int, query: int = 128) -> None:
        super().__init__()
        self.project = nn.Linear(width, query)
        self.query = nn.Linear(query, 1, bias=False)

    def weights(self, x: Tensor, mask: Tensor) -> Tensor:
        """α [B, L], 0 for padding; arguments as in `forward`."""
        scores = self.query(torch.tanh(self.project(x))).squeeze(-1)
        return masked_softmax(scores, mask)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, L, D], mask [B, L] bool (True = real) → [B, D]; zeros where all is masked."""
        return torch.bmm(self.weights(x, mask).unsqueeze(1), x).squeeze(1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over one sequence; requests never see each other.

    residual: each position keeps its own vector beside what it attends to. in_width: of the
    vectors that are read, `width` by default.
    """

    def __init__(
        self, width: int, heads: int, *, residual: bool = False, in_width: int | None = None
    ) -> None:
        super().__init__()
        self.residual, self.width = residual, width
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(in_width or width, 3 * width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, L, D_in], mask [B, L] bool (True = real) → [B, L, D]; masked rows are zero."""
        batch, length, width = *x.shape[:2], self.width
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        keep = _never_empty(mask)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        y = y.transpose(1, 2).reshape(batch, length, width)
        if self.residual:
            y = y + x
        return y * mask.unsqueeze(-1).to(y.dtype)
