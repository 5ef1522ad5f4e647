"""Collapse alarm: do vectors still tell anything apart?"""

import torch
from torch import Tensor


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred x [N, D], from 1 to
    min(N − 1, D) (Roy and Vetterli 2007); 1 where all rows are equal."""
    centred = x.double() - x.double().mean(0)
    values = torch.linalg.svdvals(centred)
    total = values.sum()
    if len(x) < 2 or not total > 1e-9 * max(1.0, float(x.abs().max())):
        return 1.0
    share = values / total
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))


def mean_cosine(x: Tensor) -> float:
    """Mean cosine of all pairs of different rows of x [N, D]; 1: all point the same way."""
    count = len(x)
    if count < 2:
        return 1.0
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    # |Σ u|² holds every pair twice, and each row with itself.
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1)))
