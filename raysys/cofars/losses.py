"""The losses of the selector (§4.3), per request."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

_FLOOR = 1e-6


def recommendation_loss(
    scores: Tensor, z: Tensor, labels: Tensor, mask: Tensor, *, literal: bool = False
) -> Tensor:
    """L_REC [R], summed over the real candidates of each request.

    scores [R, P, C] are õ·v, divided by √D unless `literal`; z [R, P]; labels [R, C]; mask [R, C]
    bool. Default: the mean of BCE(σ(score)) over the prototypes that are on, weighed by z, so
    that a gate learns which of them predict. Literal: BCE(z·score) clamped, summed over all.
    """
    wanted = labels.unsqueeze(1).expand_as(scores)
    if literal:
        said = (z.unsqueeze(-1) * scores).clamp(_FLOOR, 1 - _FLOOR)
        per_candidate = binary_cross_entropy(said, wanted, reduction="none").sum(1)
    else:
        losses = binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        total = z.sum(1, keepdim=True).clamp_min(_FLOOR)
        per_candidate = (z.unsqueeze(-1) * losses).sum(1) / total
    return (per_candidate * mask.to(scores.dtype)).sum(1)


def draw_pairs(first: Tensor, count: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers in first[r]..first[r] + count[r] − 1 for each of n pairs: [R, n] each.

    With replacement, by uniform numbers `drawn` [2, R, n]; `first` where there is nothing to draw.
    """
    # A float32 below 1 times a count stays below the count.
    within = (drawn * count.view(1, -1, 1)).long()
    left, right = first.view(1, -1, 1) + within
    return left, right
