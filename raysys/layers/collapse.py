"""Whether vectors still differ: the alarm for collapsed embeddings (LARR §6, property 11)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """How N vectors use their D dimensions.

    effective_rank: exp of the entropy of the normalised singular values of the centred
        vectors (Roy & Vetterli 2007), from 1 (all on a line) to min(N − 1, D).
    mean_cosine: mean cosine of two different vectors, 1 if all are alike.
    """

    effective_rank: float
    mean_cosine: float

    @property
    def collapsed(self) -> bool:
        """True where downstream use would see next to nothing but one vector."""
        return self.mean_cosine > 0.95 or self.effective_rank < 2.0


def spread(vectors: Tensor) -> Spread:
    """The spread of vectors [N, D], N ≥ 2, of any length but zero."""
    unit = torch.nn.functional.normalize(vectors.detach().double(), dim=-1)
    count = len(unit)
    mean_cosine = (unit.sum(0).square().sum() - count) / (count * (count - 1))
    values = torch.linalg.svdvals(unit - unit.mean(0))
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum()
    return Spread(float(entropy.exp()), float(mean_cosine))
