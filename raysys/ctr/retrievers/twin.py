"""TWIN: TWo-stage Interest Network (Chang et al., KDD 2023, arXiv 2302.02352)."""

import math

import torch
from torch import Tensor, nn

from raysys.ctr.retrievers.base import Attention, Pairs, TopK, Widths
from raysys.layers.attention import masked_softmax


class SplitAttention(nn.Module):
    """softmax(α) K W^v with α = (K_h W^h)(W^q q)ᵀ / √d + (K_c W^c) β, one head.

    K are the vectors of events. K_h are their inherent features, those of the item, whose
    projection could be kept per item; K_c the cross features of user and item, here context and
    kind of behaviour, each field of which W^c presses into one number: a bias that does not
    depend on the candidate.

    Args:
        widths: layout of the vectors.
        width: d of the projections of α.
        out: rows of W^v; None: as many as an event has numbers, and W^v begins as the identity,
            so that the ranker finds each field of the events in its place.
    """

    def __init__(self, widths: Widths, width: int, out: int | None = None) -> None:
        super().__init__()
        self.widths = widths
        self.query = nn.Linear(widths.event, width, bias=False)
        self.key = nn.Linear(widths.item, width, bias=False)
        self.value = nn.Linear(widths.event, widths.event if out is None else out, bias=False)
        if out is None:
            nn.init.eye_(self.value.weight)
        self.cross = nn.Parameter(torch.empty(widths.cross, widths.field))
        nn.init.normal_(self.cross, std=1 / math.sqrt(max(1, widths.field)))
        self.beta = nn.Parameter(torch.ones(widths.cross))

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """α [B, C, L] of query [B, C, D] and keys [B, L, D], in their precision."""
        dtype = keys.dtype
        inherent, crossed = keys.split(
            [self.widths.item, self.widths.cross * self.widths.field], -1
        )
        fields = crossed.unflatten(-1, (self.widths.cross, self.widths.field))
        bias = (fields * self.cross.to(dtype)).sum(-1) @ self.beta.to(dtype)
        asked = nn.functional.linear(query, self.query.weight.to(dtype))
        lived = nn.functional.linear(inherent, self.key.weight.to(dtype))
        products = torch.bmm(asked, lived.transpose(1, 2))
        return products / math.sqrt(asked.shape[-1]) + bias.unsqueeze(1)

    def weights(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """softmax(α) [B, C, L], 0 where padded; mask [B, L] or [B, C, L] bool."""
        real = mask if mask.ndim == 3 else mask.unsqueeze(1)
        return masked_softmax(self.scores(query, keys), real)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """[B, C, out]; arguments as in `weights`."""
        return self.value(torch.bmm(self.weights(query, keys, mask), keys))


class SplitSearch(TopK):
    """The K events of largest α.

    As in the paper both stages share α and its weights, which are thus learned as the weights
    of any target attention. With the ranker's attention as the second stage, which all arms
    share, they are learned from a loss of their own: the first stage pools all events of the
    window by `SplitAttention`, from which the ranker learns to predict clicks.

    Args:
        count: K.
        widths: layout of the vectors.
        width: d of the projections.
        own: whether the second stage is TWIN's own.
    """

    def __init__(self, count: int, widths: Widths, width: int, *, own: bool = True) -> None:
        super().__init__(count)
        self.attends = not own
        self.first_stage_width = 0 if own else width
        self.attention = SplitAttention(widths, width, None if own else width)

    def relevance(self, pairs: Pairs) -> Tensor:
        """α; see `TopK`."""
        return self.attention.scores(pairs.query.double(), pairs.keys.double())

    def second_stage(self, attention: Attention | None) -> Attention:
        """See `TopK`."""
        return super().second_stage(attention) if self.attends else self.attention

    def first_stage(self, pairs: Pairs) -> Tensor:
        """See `Retriever`."""
        return self.attention(pairs.query, pairs.keys, pairs.mask)
