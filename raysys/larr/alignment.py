"""InfoNCE between scene vectors and the ID tower, over the whole batch of all workers."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raysys.layers.infonce import info_nce
from raysys.training import World


class Aligned(NamedTuple):
    """total: sum of the losses of this worker's pairs. pairs: those of all workers."""

    total: Tensor
    pairs: int


def aligned(
    world: World,
    anchors: Tensor,
    targets: Tensor,
    identity: Tensor,
    group: Tensor,
    temperature: float,
) -> Aligned:
    """The loss of this worker's n pairs against the targets of all workers; similarity is the
    cosine.

    anchors, targets [n, D]; identity [n] int64: what each target is; group [n] int64: whose pair
    it is, numbered within a worker. Not a negative of a pair is what has its identity, or its
    group: another target of the same request is no error. With fewer than two pairs in all there
    is nothing to tell apart: the loss is 0 on every worker alike. Every worker has to call this
    equally often, be it with no pairs.
    """
    counts = world.gather_rows(torch.tensor([len(anchors)])).flatten().tolist()
    # Also without pairs of its own a worker hands gradients back to the others.
    nothing = anchors.sum() * 0.0 + targets.sum() * 0.0
    if sum(counts) < 2:
        return Aligned(nothing, sum(counts))
    keys = world.gather_with_gradient(targets, counts)
    # Groups of different workers are different requests.
    names = torch.stack([identity, group * world.size + world.rank], 1)
    if world.size > 1:
        names = torch.cat(world.gather_ragged(names))
    own = sum(counts[: world.rank]) + torch.arange(len(anchors), device=anchors.device)
    negative = (names[own, None] != names).all(-1)
    similarity = normalize(anchors, dim=-1) @ normalize(keys, dim=-1).T
    losses = info_nce(similarity, own, negative, temperature)
    return Aligned(losses.sum() + keys.sum() * 0.0 + nothing, sum(counts))
