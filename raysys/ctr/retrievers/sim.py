"""SIM: Search-based Interest Model (Pi et al., CIKM 2020, arXiv 2006.05639), first stage."""

import torch
from torch import Tensor, nn

from raysys.ctr.retrievers.base import Pairs, TopK
from raysys.data.contexts import FIRST


class HardSearch(TopK):
    """Hard search: events of the candidate's category, the newest K of them.

    An item without a category, or with one that training has not seen, finds nothing.

    Args:
        count: K.
        field: which item field the category is.
    """

    def __init__(self, count: int, field: int) -> None:
        super().__init__(count)
        self.field = field
        self.category: Tensor
        self.register_buffer("category", torch.zeros(0, dtype=torch.int64), persistent=False)

    def bind(self, codes: Tensor) -> None:
        """See `Retriever`."""
        self.category = codes[:, self.field].clone().to(self.category.device)

    def relevance(self, pairs: Pairs) -> Tensor:
        """See `TopK`."""
        asked = self.category[pairs.candidates].unsqueeze(2)
        same = (asked == self.category[pairs.events].unsqueeze(1)) & (asked >= FIRST)
        return torch.zeros(same.shape, device=same.device).masked_fill(~same, float("-inf"))


class SoftSearch(TopK):
    """Soft search: the K events of largest inner product r_i = (W_b e_i)·(W_a e_a).

    e are the item parts of the vectors. As in the paper, W is learned by an auxiliary click task
    on what the first stage makes of all events: here their mean, weighted by r_i. The paper's
    second stage is an attention of its own, here it is the ranker's.

    Args:
        count: K.
        item: width of the item part of the vectors.
        width: of the projections.
    """

    def __init__(self, count: int, item: int, width: int) -> None:
        super().__init__(count)
        self.first_stage_width = item
        self.behaviour = nn.Linear(item, width, bias=False)
        self.candidate = nn.Linear(item, width, bias=False)

    def relevance(self, pairs: Pairs, dtype: torch.dtype = torch.float64) -> Tensor:
        """See `TopK`."""
        asked, lived = (
            nn.functional.linear(
                x[..., : self.first_stage_width].to(dtype), projection.weight.to(dtype)
            )
            for x, projection in ((pairs.query, self.candidate), (pairs.keys, self.behaviour))
        )
        return torch.bmm(asked, lived.transpose(1, 2))

    def first_stage(self, pairs: Pairs) -> Tensor:
        """See `Retriever`."""
        real = pairs.mask.unsqueeze(1).to(pairs.keys.dtype)
        weights = self.relevance(pairs, real.dtype) * real / real.sum(-1, keepdim=True).clamp(min=1)
        return torch.bmm(weights, pairs.keys[..., : self.first_stage_width])
