"""Transformer blocks of the sequence rivals."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def visible(mask: Tensor, *, causal: bool) -> Tensor:
    """Which event [B, 1, L, L] each event sees: real ones, and if `causal` no newer ones.

    Every event sees itself: padding must not be a softmax of nothing, whose gradient is NaN.
    mask [B, L] bool.
    """
    length = mask.shape[1]
    own = torch.eye(length, dtype=torch.bool, device=mask.device)
    seen = mask[:, None, :].expand(-1, length, -1)
    if causal:
        seen = seen & torch.ones_like(own).tril()
    return (seen | own)[:, None]


class Block(nn.Module):
    """Self-attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def projected(self, x: Tensor, kind: Tensor) -> Tensor:
        """Queries, keys and values [B, L, 3 D] of events [B, L, D]; kind [B, L]."""
        return self.qkv(x)

    def bias(self, kind: Tensor, seen: Tensor) -> Tensor:
        """What is added to attention scores, or which count: [B, 1 or H, L, L]."""
        return seen

    def forward(self, x: Tensor, kind: Tensor, seen: Tensor) -> Tensor:
        """x [B, L, D], kind [B, L], seen [B, 1, L, L] bool → [B, L, D]."""
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.projected(self.before(x), kind).chunk(3, -1)
        )
        y = scaled_dot_product_attention(q, k, v, attn_mask=self.bias(kind, seen))
        x = x + self.dropout(self.out(y.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.feed(self.between(x)))


class KindBlock(Block):
    """A block that projects each event by its own kind, with a bias for every pair of kinds."""

    def __init__(self, width: int, heads: int, dropout: float, kinds: int) -> None:
        super().__init__(width, heads, dropout)
        self.qkv = nn.Linear(width, 3 * width * kinds)
        self.pair = nn.Embedding(kinds * kinds, heads)
        nn.init.zeros_(self.pair.weight)
        self.kinds = kinds

    def projected(self, x: Tensor, kind: Tensor) -> Tensor:
        """See `Block`."""
        every = self.qkv(x).unflatten(-1, (self.kinds, -1))
        own = kind[..., None, None].expand(*kind.shape, 1, every.shape[-1])
        return every.gather(2, own).squeeze(2)

    def bias(self, kind: Tensor, seen: Tensor) -> Tensor:
        """See `Block`."""
        pairs = kind[:, :, None] * self.kinds + kind[:, None, :]
        bias = self.pair(pairs).permute(0, 3, 1, 2)
        return bias.masked_fill(~seen, float("-inf"))
