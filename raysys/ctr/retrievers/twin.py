"""TWIN: TWo-stage Interest Network (Chang et al., KDD 2023, arXiv 2302.02352), §4."""

import math

import torch
from torch import Tensor, nn

from raysys.ctr.retrievers.base import Pairs, TopK, Widths
from raysys.layers.attention import masked_softmax


class SplitAttentionSearch(TopK):
    """α = (K_h W^h)(W^q q)ᵀ / √d + (K_c W^c) β, the K largest.

    K_h are the inherent features of events, those of the item, whose projection could be kept
    per item; K_c the cross features of user and item, here context and kind of behaviour, each
    field of which W^c presses into one number: a bias that does not depend on the candidate.

    In the paper both stages share α and its weights. Here the second stage is the attention that
    all arms share, so that α is learned as TWIN's own attention would be: the first stage
    pools softmax(α) (K_h W^v), from which the ranker learns to predict clicks. One head.

    Args:
        count: K.
        widths: layout of the vectors.
        width: d of the projections.
    """

    def __init__(self, count: int, widths: Widths, width: int) -> None:
        super().__init__(count)
        self.widths = widths
        self.first_stage_width = width
        self.query = nn.Linear(widths.event, width, bias=False)
        self.key = nn.Linear(widths.item, width, bias=False)
        self.value = nn.Linear(widths.item, width, bias=False)
        self.cross = nn.Parameter(torch.empty(widths.cross, widths.field))
        nn.init.normal_(self.cross, std=1 / math.sqrt(max(1, widths.field)))
        self.beta = nn.Parameter(torch.ones(widths.cross))

    def relevance(self, pairs: Pairs, dtype: torch.dtype = torch.float64) -> Tensor:
        """α [B, C, L]; see `TopK`."""
        inherent, crossed = pairs.keys.to(dtype).split(
            [self.widths.item, self.widths.cross * self.widths.field], -1
        )
        fields = crossed.unflatten(-1, (self.widths.cross, self.widths.field))
        bias = (fields * self.cross.to(dtype)).sum(-1) @ self.beta.to(dtype)
        asked = nn.functional.linear(pairs.query.to(dtype), self.query.weight.to(dtype))
        lived = nn.functional.linear(inherent, self.key.weight.to(dtype))
        products = torch.bmm(asked, lived.transpose(1, 2))
        return products / math.sqrt(self.first_stage_width) + bias.unsqueeze(1)

    def first_stage(self, pairs: Pairs) -> Tensor:
        """See `Retriever`."""
        weights = masked_softmax(self.relevance(pairs, pairs.keys.dtype), pairs.mask.unsqueeze(1))
        return torch.bmm(weights, self.value(pairs.keys[..., : self.widths.item]))
