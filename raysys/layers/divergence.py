"""Divergences of distributions over the values of F fields, laid side by side in W columns.

Log side (counted shares) and model side (predicted shares) use the same functions.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Kind = Literal["js", "half_jeffreys"]
_TINY = 1e-30
_CELLS = 1 << 22  # numbers per block: 16 MiB in float32


def _xlog2(x: Tensor) -> Tensor:
    # Not torch.xlogy: its gradient at 0 is −inf, and 0 times that is NaN.
    return x * torch.log2(x.clamp_min(_TINY))


class Divergence:
    """How far two rows of shares [..., W] are apart, as the mean over their fields.

    `js`: Jensen-Shannon with the mixture, base 2: in [0, 1], 0 iff equal, zero cells allowed.
    `half_jeffreys`: ½(KL(p‖q) + KL(q‖p)) in nats, as CoFARS prints it (Feng et al. 2024, §4.1):
    unbounded. Each field is smoothed to (p + ε)/(1 + ε·values) before.

    Args:
        widths: number of values of each field; they add up to W.
        kind: which divergence.
        smoothing: ε of `half_jeffreys`.
    """

    def __init__(
        self, widths: Sequence[int], kind: Kind = "js", *, smoothing: float = 1e-3
    ) -> None:
        self.widths = tuple(widths)
        self.kind = kind
        self.smoothing = smoothing
        self._bounds = torch.tensor([0, *self.widths]).cumsum(0).tolist()

    def __call__(self, p: Tensor, q: Tensor) -> Tensor:
        """p, q [..., W], broadcast against each other → [...]."""
        return self._mean(self._with_logs(p), self._with_logs(q))

    def by_field(self, p: Tensor, q: Tensor) -> Tensor:
        """p, q [..., W], broadcast against each other → [..., F], one divergence per field."""
        cells = self._cells(self._with_logs(p), self._with_logs(q))
        parts = [cells[..., low:high].sum(-1) for low, high in pairwise(self._bounds)]
        return self._bounded(torch.stack(parts, -1))

    def pairwise(self, p: Tensor, q: Tensor) -> Tensor:
        """Every row of p [N, W] against every row of q [M, W] → [N, M]."""
        return self.grouped(p, q[None], torch.zeros(len(p), dtype=torch.int64, device=p.device))

    def grouped(self, p: Tensor, q: Tensor, group: Tensor) -> Tensor:
        """Row n of p [N, W] against the M rows of its group in q [G, M, W] → [N, M].

        group [N] int64. The cells [N, M, W] are laid out block by block; for the gradient they
        are computed again rather than kept.
        """
        left, right = self._with_logs(p), self._with_logs(q)

        def block(row: Tensor, of: Tensor) -> Tensor:
            # index_select: the gradient of indexing by tensors is many times slower.
            return self._mean(left.index_select(1, row).unsqueeze(2), right.index_select(1, of))

        rows = torch.arange(len(p), device=p.device)
        return _in_blocks(block, rows, group, q.shape[1] * p.shape[-1])

    def between(self, p: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Rows left [E] of p [N, W] against its rows right [E] → [E], block by block."""
        both = self._with_logs(p)

        def block(a: Tensor, b: Tensor) -> Tensor:
            return self._mean(both.index_select(1, a), both.index_select(1, b))

        return _in_blocks(block, left, right, p.shape[-1])

    def _with_logs(self, p: Tensor) -> Tensor:
        """Shares and their logarithms [2, ..., W], so that a pair costs at most one more."""
        if self.kind == "js":
            return torch.stack([p, _xlog2(p)])
        p = self._smooth(p)
        return torch.stack([p, p.log()])

    def _cells(self, p: Tensor, q: Tensor) -> Tensor:
        if self.kind == "js":
            return 0.5 * (p[1] + q[1]) - _xlog2(0.5 * (p[0] + q[0]))
        return 0.5 * (p[0] - q[0]) * (p[1] - q[1])

    def _mean(self, p: Tensor, q: Tensor) -> Tensor:
        return self._bounded(self._cells(p, q).sum(-1) / len(self.widths))

    def _smooth(self, p: Tensor) -> Tensor:
        eps = self.smoothing
        scale = [1 + eps * width for width in self.widths for _ in range(width)]
        return (p + eps) / p.new_tensor(scale)

    def _bounded(self, value: Tensor) -> Tensor:
        # Rounding leaves the range by a few 1e-8.
        return value.clamp(0, 1) if self.kind == "js" else value.clamp_min(0)


def _in_blocks(
    block: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor, cells: int
) -> Tensor:
    """`block` on slices of both index tensors, concatenated; `cells` numbers per row."""
    rows = max(1, _CELLS // max(1, cells))
    if len(left) <= rows:
        return block(left, right)
    slices = zip(torch.split(left, rows), torch.split(right, rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([block(a, b) for a, b in slices])
    return torch.cat(
        [checkpoint(block, a, b, use_reentrant=False, preserve_rng_state=False) for a, b in slices]
    )
