"""Locality-sensitive hashing by random hyperplanes (Charikar, STOC 2002), and what is built on it.

ETA: End-to-end Target Attention (Chen et al. 2021, arXiv 2108.04468).
SDIM: Sampling-based Deep Interest Modeling (Cao et al., CIKM 2022, arXiv 2205.10249).
"""

import torch
from torch import Tensor, nn

from raysys.ctr.retrievers.base import Attention, Pairs, Retriever, TopK


class SimHash(nn.Module):
    """Signs of the projections on fixed random vectors; two signs differ with probability θ/π."""

    def __init__(self, width: int, bits: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.planes: Tensor
        self.register_buffer("planes", torch.randn(width, bits, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] → [..., bits] bool, True where the projection is not negative."""
        return x.detach() @ self.planes >= 0


class HammingSearch(TopK):
    """ETA: the K events whose signatures of m bits differ in the fewest from the candidate's.

    Signatures are taken of the item parts of the vectors, with the embeddings as they are at the
    moment, so that the search follows the learning of the ranker.

    Args:
        count: K.
        item: width of the item part of the vectors.
        bits: m.
        seed: of the hyperplanes.
    """

    def __init__(self, count: int, item: int, bits: int, seed: int) -> None:
        super().__init__(count)
        self.item = item
        self.hash = SimHash(item, bits, seed)

    def relevance(self, pairs: Pairs) -> Tensor:
        """Bits that agree less bits that differ, m − 2·distance; see `TopK`."""
        asked, lived = (
            self.hash(x[..., : self.item]).to(x.dtype) * 2 - 1 for x in (pairs.query, pairs.keys)
        )
        return torch.bmm(asked, lived.transpose(1, 2))


class BucketSums(Retriever):
    """SDIM: Attn(q, S) = 1/G Σ_g ℓ2( Σ_{j: h_g(s_j) = h_g(q)} s_j ), ℓ2(x) = x/‖x‖.

    m hashes in G = m/τ groups; an event is in the candidate's bucket of a group if all τ signs
    are the same, which has the probability (1 − θ/π)^τ. The sums of all buckets are made once
    per request, so that a candidate costs G lookups, however long the history is. There is no
    second stage and no target attention.

    Args:
        item: width of the item part of the vectors, which is hashed; what is summed up are the
            whole vectors.
        hashes: m.
        group: τ.
        seed: of the hyperplanes.
    """

    attends = False

    def __init__(self, item: int, hashes: int, group: int, seed: int) -> None:
        super().__init__()
        self.item = item
        self.groups = hashes // group
        self.hash = SimHash(item, hashes, seed)
        self.powers: Tensor
        self.register_buffer("powers", 2 ** torch.arange(group), persistent=False)

    def buckets(self, x: Tensor) -> Tensor:
        """Bucket [..., G] int64 of each vector [..., D] in each group."""
        signs = self.hash(x[..., : self.item]).unflatten(-1, (self.groups, -1))
        return (signs * self.powers).sum(-1)

    def forward(self, pairs: Pairs, attention: Attention | None = None) -> Tensor:
        """See `Retriever`."""
        asked, _, sums = self._sums(pairs)
        unit = nn.functional.normalize(sums, dim=-1)
        interest = torch.zeros_like(pairs.query)
        for group in range(self.groups):
            interest = interest + _of(unit[:, group], asked[..., group])
        return interest / self.groups

    def weights(self, pairs: Pairs, attention: Attention | None = None) -> Tensor:
        """See `Retriever`: forward(...) = weights · keys."""
        asked, lived, sums = self._sums(pairs)
        real = pairs.mask.unsqueeze(1)
        norms = sums.norm(dim=-1, keepdim=True)
        out = pairs.keys.new_zeros(*asked.shape[:2], lived.shape[1])
        for group in range(self.groups):
            norm = _of(norms[:, group], asked[..., group]).clamp(min=1e-12)
            same = asked[:, :, None, group] == lived[:, None, :, group]
            out = out + (same & real).to(out.dtype) / norm
        return out / self.groups

    def _sums(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Buckets of the candidates [B, C, G] and of the events [B, L, G]; sums of the events in
        each bucket [B, G, 2^τ, D]."""
        every = torch.arange(2 ** len(self.powers), device=pairs.keys.device)
        lived = self.buckets(pairs.keys)
        inside = lived.transpose(1, 2).unsqueeze(2) == every.view(1, 1, -1, 1)
        inside &= pairs.mask[:, None, None]
        # One product for all groups: a product of few rows runs at a fraction of the speed.
        sums = torch.bmm(inside.flatten(1, 2).to(pairs.keys.dtype), pairs.keys)
        return self.buckets(pairs.query), lived, sums.unflatten(1, inside.shape[1:3])


def _of(values: Tensor, bucket: Tensor) -> Tensor:
    """values [B, buckets, D], bucket [B, C] → [B, C, D]."""
    return values.gather(1, bucket.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
