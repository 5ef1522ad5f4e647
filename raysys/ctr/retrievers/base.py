"""What all retrievers inside a ranker share: the two stages, ties, padding, memory."""

from abc import abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

# Places of events are the low bits of a sort key; windows are far shorter.
_PLACE_BITS = 20
_NOWHERE = torch.iinfo(torch.int64).min


class Widths(NamedTuple):
    """How the vectors of candidates and events are laid out: `item` numbers of the item, then
    `cross` fields of `field` numbers each, of what lies between user and item (context, kind of
    behaviour)."""

    item: int
    cross: int
    field: int

    @property
    def event(self) -> int:
        """D."""
        return self.item + self.cross * self.field


class Pairs(NamedTuple):
    """Candidates and the wide window of past events, newest first.

    query [B, C, D], keys [B, L, D], mask [B, L] bool (True = real); candidates [B, C] and
    events [B, L] rows of the catalogue, 0 where padded.
    """

    query: Tensor
    keys: Tensor
    mask: Tensor
    candidates: Tensor
    events: Tensor


class Attention(Protocol):
    """What weighs events; arguments and results as of `TargetAttention`."""

    def weights(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """[B, C, L], 0 for padding."""

    def __call__(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """[B, C, D]."""


class Retriever(nn.Module):
    """From candidates and their user's past to one vector of interest per candidate.

    attends: whether it needs the ranker's target attention.
    first_stage_width: width of `first_stage`, 0 where nothing has to be learned for searching.
    """

    attends = True
    first_stage_width = 0

    def bind(self, codes: Tensor) -> None:
        """Take what is needed of the item codes [2 + N, F] of a catalogue."""

    def first_stage(self, pairs: Pairs) -> Tensor:
        """What the search alone makes of the past [B, C, first_stage_width]; the ranker learns
        to predict clicks from it, which is how the weights of the search are learned."""
        raise NotImplementedError

    @abstractmethod
    def weights(self, pairs: Pairs, attention: Attention | None) -> Tensor:
        """How much each event counts for each candidate [B, C, L]; 0 where it is not chosen."""

    @abstractmethod
    def forward(self, pairs: Pairs, attention: Attention | None) -> Tensor:
        """Interest [B, C, D]; zeros where nothing is found."""


class TopK(Retriever):
    """Two stages: each candidate's K most relevant events, then attention over these.

    Only the K are gathered: [B, C, K, D] is the largest tensor of the second stage, [B, C, L]
    that of the first. Of equally relevant events the newest are chosen.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    @abstractmethod
    def relevance(self, pairs: Pairs) -> Tensor:
        """Scores [B, C, L] of any events, padding among them; −inf: must not be chosen.

        Ties are many, because items occur again. Sums are taken in double precision, so that
        after rounding to single they are ties wherever in the window the events are.
        """

    def second_stage(self, attention: Attention | None) -> Attention:
        """What weighs the K events; `attention` is the ranker's."""
        assert attention is not None
        return attention

    def weights(self, pairs: Pairs, attention: Attention | None) -> Tensor:
        """See `Retriever`."""
        second = self.second_stage(attention)
        if self._all_fit(pairs):
            return second.weights(pairs.query, pairs.keys, self._found(pairs)[1])
        index, real = self._chosen(pairs)
        query, keys = self._gathered(pairs, index)
        weights = second.weights(query, keys, real.flatten(0, 1)).view_as(index)
        out = weights.new_zeros(*index.shape[:2], pairs.keys.shape[1])
        return out.scatter_add(2, index, weights)

    def forward(self, pairs: Pairs, attention: Attention | None) -> Tensor:
        """See `Retriever`."""
        second = self.second_stage(attention)
        if self._all_fit(pairs):
            return second(pairs.query, pairs.keys, self._found(pairs)[1])
        index, real = self._chosen(pairs)
        query, keys = self._gathered(pairs, index)
        return second(query, keys, real.flatten(0, 1)).view_as(pairs.query)

    def _all_fit(self, pairs: Pairs) -> bool:
        # An exported program must not depend on the length of its window.
        return not torch.compiler.is_exporting() and pairs.keys.shape[1] <= self.count

    def _found(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Relevance [B, C, L], and which of the events may be chosen [B, C, L]."""
        # Choosing has no gradient; a program with a no_grad block in it cannot be exported.
        scores = self.relevance(pairs).detach().float()
        return scores, pairs.mask.unsqueeze(1) & (scores > float("-inf"))

    def _chosen(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Where the K events of each candidate are in the window [B, C, K], and which are real."""
        scores, real = self._found(pairs)
        key = sort_keys(scores).masked_fill(~real, _NOWHERE)
        if torch.compiler.is_exporting():
            key = nn.functional.pad(key, (0, self.count), value=_NOWHERE)
        best, index = key.topk(self.count, sorted=False)
        return index.clamp(max=pairs.keys.shape[1] - 1), best != _NOWHERE

    @staticmethod
    def _gathered(pairs: Pairs, index: Tensor) -> tuple[Tensor, Tensor]:
        """Each candidate as a batch row of its own: query [B·C, 1, D], its events [B·C, K, D]."""
        requests, length, width = pairs.keys.shape
        row = torch.arange(requests, device=index.device)[:, None, None] * length + index
        # A lookup in the flattened window: the gradient of a gather from an expanded one would
        # be as large as [B, C, L, D].
        keys = nn.functional.embedding(row, pairs.keys.reshape(-1, width))
        return pairs.query.reshape(-1, 1, width), keys.flatten(0, 1)


def sort_keys(scores: Tensor) -> Tensor:
    """Scores [..., L] as int64 of the same order, of equals the first place the largest.

    A float's bits are in order as they are, those of a negative one the other way round.
    """
    bits = (scores + 0.0).view(torch.int32)  # −0 becomes 0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    places = torch.arange(scores.shape[-1], device=scores.device)
    return (ordered << _PLACE_BITS) + (2**_PLACE_BITS - 1 - places)
