"""InfoNCE between scene vectors and the ID tower, over the whole batch of all workers."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


class Aligned(NamedTuple):
    """total: sum of the losses of this worker's pairs. pairs: those of all workers."""

    total: Tensor
    pairs: int


def info_nce(
    anchors: Tensor,
    targets: Tensor,
    identity: Tensor,
    group: Tensor,
    temperature: float,
    *,
    offset: int = 0,
) -> Tensor:
    """Sum over n anchors of −log( e^{s(m_i, c_i)/τ} / Σ_j e^{s(m_i, c_j)/τ} ), s the cosine.

    anchors [n, D]; targets [N, D], of which row offset + i belongs to anchor i; identity [N]: what
    each target is; group [N]: whose pair it is. Not a negative of i is what has its identity, or
    its group: another target of the same request is no error.
    """
    count = len(anchors)
    own = torch.arange(offset, offset + count, device=anchors.device)
    scores = normalize(anchors, dim=-1) @ normalize(targets, dim=-1).T / temperature
    same = (identity[own, None] == identity) | (group[own, None] == group)
    same[torch.arange(count, device=anchors.device), own] = False
    return cross_entropy(scores.masked_fill(same, float("-inf")), own, reduction="sum")


def aligned(
    anchors: Tensor, targets: Tensor, identity: Tensor, group: Tensor, temperature: float
) -> Aligned:
    """The loss of this worker's n pairs against the targets of all workers.

    identity [n] and group [n] int64; groups are numbered within a worker. With fewer than two
    pairs in all there is nothing to tell apart: the loss is 0 on every worker alike. Every worker
    has to call this equally often, be it with no pairs.
    """
    nothing = anchors.sum() * 0.0 + targets.sum() * 0.0
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        if len(anchors) < 2:
            return Aligned(nothing, len(anchors))
        return Aligned(info_nce(anchors, targets, identity, group, temperature), len(anchors))
    rank, size = dist.get_rank(), dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=anchors.device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(anchors)], device=anchors.device))
    each = [int(count) for count in counts]
    if sum(each) < 2:
        return Aligned(nothing, sum(each))
    widest = max(each)
    parts: Tensor = _Gather.apply(_padded(targets, widest))
    every = torch.cat([part[:n] for part, n in zip(parts, each, strict=True)])
    # Groups of different workers are different requests.
    labels = torch.stack([identity, group * size + rank], 1)
    told = [torch.zeros(widest, 2, dtype=labels.dtype, device=labels.device) for _ in range(size)]
    dist.all_gather(told, _padded(labels, widest))
    names = torch.cat([part[:n] for part, n in zip(told, each, strict=True)])
    offset = sum(each[:rank])
    # Without pairs of its own a worker still hands gradients back to the others.
    loss = info_nce(anchors, every, names[:, 0], names[:, 1], temperature, offset=offset)
    return Aligned(loss + every.sum() * 0.0 + nothing, sum(each))


class _Gather(torch.autograd.Function):
    """Equal shapes [n, D] of all workers as [workers, n, D]; the gradient of a worker's rows is
    the sum of what all workers' losses say of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))])
