"""Losses: sums over rows beside their weights, so that shards add up to the global batch."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def pointwise_bce(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the click over real candidates.

    logits, labels [B, C]; mask [B, C] bool → (sum of losses, number of real candidates).
    """
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
    real = mask.to(losses.dtype)
    return (losses * real).sum(), real.sum()


def esmm_bce(
    click_logits: Tensor, order_logits: Tensor, clicks: Tensor, orders: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """BCE of the click plus BCE of click-and-order over ALL impressions (ESMM, Ma et al. 2018).

    pCTCVR = σ(click)·σ(order); all arguments [B, C] → (sum of losses, number of candidates).
    The logs are taken of the logits, so that small probabilities keep their gradients.
    """
    log_both = logsigmoid(click_logits) + logsigmoid(order_logits)
    log_not = torch.log1p(-log_both.exp().clamp(max=1 - 1e-6))
    losses = -(orders * log_both + (1 - orders) * log_not)
    losses = losses + binary_cross_entropy_with_logits(click_logits, clicks, reduction="none")
    real = mask.to(losses.dtype)
    return (losses * real).sum(), real.sum()


def sampled_softmax(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the click in column 0 against the other columns.

    scores [B, C], mask [B, C] bool → (sum of losses, number of rows with a candidate).
    """
    some = mask.any(1, keepdim=True)
    # A row without a candidate weighs nothing; a softmax of nothing but −∞ would be NaN.
    log_prob = torch.log_softmax(scores.masked_fill(~mask & some, float("-inf")), -1)
    real = some[:, 0].to(scores.dtype)
    return -(log_prob[:, 0] * real).sum(), real.sum()
