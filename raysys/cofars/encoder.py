"""Contexts, users and prototypes as vectors, and as shares of attribute values (§4.1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raysys.cofars.config import Activation, Similarity
from raysys.layers.divergence import Divergence, Kind
from raysys.layers.embedding import FieldEmbedding
from raysys.layers.mlp import MLP


class ContextEncoder(nn.Module):
    """c = u + ĉ, o = u + ô and P(x): [..., D] → [..., W].

    Args:
        cardinalities: codes of each context feature.
        contexts: rows of the context table, row 0 (unseen) included.
        users: users with vectors of their own.
        widths: number of values of each attribute field; they add up to W.
        dim: D.
        hidden: units of the MLP behind P.
        prototypes: P.
        activation, similarity, joint_only, joint_dropout, user_dropout: see `EncoderConfig`.
        divergence, smoothing: see `Divergence`.
        mean_user: unknown users get the mean vector instead of 0.
        init_std: of all vectors.
    """

    def __init__(
        self,
        *,
        cardinalities: Sequence[int],
        contexts: int,
        users: int,
        widths: Sequence[int],
        dim: int = 32,
        hidden: Sequence[int] = (64,),
        prototypes: int = 16,
        activation: Activation = "softmax",
        divergence: Kind = "js",
        smoothing: float = 1e-3,
        similarity: Similarity = "divergence",
        joint_only: bool = False,
        joint_dropout: float = 0.0,
        mean_user: bool = False,
        user_dropout: float = 0.1,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.dim = dim
        self.activation = activation
        self.similar_by = similarity
        self.mean_user = mean_user
        self.user_dropout = user_dropout
        self.joint_dropout = 0.0 if joint_only else joint_dropout
        self.divergence = Divergence(widths, divergence, smoothing=smoothing)
        self.values = None if joint_only else FieldEmbedding(cardinalities, dim, init_std=init_std)
        self.joint = FieldEmbedding((contexts,), dim, init_std=init_std)
        self.users = nn.Embedding(users, dim)
        nn.init.normal_(self.users.weight, std=init_std)
        self.prototypes = nn.Parameter(init_std * torch.randn(prototypes, dim))
        self.head = MLP(dim, hidden, out=sum(self.widths))

    def contexts(self, codes: Tensor, rows: Tensor) -> Tensor:
        """ĉ of contexts: codes [..., F], rows [...] of the table (0: unseen) → [..., D].

        The sum of the vectors of the values, and of the combination where it is known.
        """
        joint: Tensor = self.joint(rows.unsqueeze(-1))
        if self.values is None:
            return joint
        values: Tensor = self.values(codes)
        return joint + values.view(*codes.shape, self.dim).sum(-2)

    def forget(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """Rows of the context table [...] with some of them 0, unseen, while training; `drawn`,
        uniform numbers [...], decide which.

        Otherwise the vectors of combinations explain what those of values could, and a combination
        that training never met is told by values that have learned little.
        """
        if not (self.training and self.joint_dropout):
            return rows
        return rows.masked_fill(drawn < self.joint_dropout, 0)

    @torch.no_grad()
    def place_prototypes(
        self, codes: Tensor, rows: Tensor, weight: Tensor, rounds: int = 20
    ) -> None:
        """Put the prototypes on contexts: codes [M, F], rows [M], weight [M] by importance.

        They become medoids of the predicted shares: first the weightiest context, then always
        the one farthest from those chosen; then Voronoi rounds as in k-means. Where there are
        fewer contexts than prototypes, the others stay as they are.
        """
        vectors = self.contexts(codes, rows)
        profile = self.profile(vectors)
        every = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        apart = 1 - self.similarities(profile, profile.unsqueeze(0), every)
        count = min(len(self.prototypes), len(rows))
        chosen = weight.argmax().view(1)
        while len(chosen) < count:
            chosen = torch.cat([chosen, apart[:, chosen].amin(1).argmax().view(1)])
        for _ in range(rounds):
            mine = torch.nn.functional.one_hot(apart[:, chosen].argmin(1), count).to(apart.dtype)
            # Cost [M, count] of each context as the medoid of a cell; only its own may be one.
            cost = apart @ (mine * weight.unsqueeze(1))
            best = cost.masked_fill(mine == 0, float("inf")).argmin(0)
            # Of two contexts alike, one has no cell.
            chosen = torch.where(mine.any(0), best, chosen)
        self.prototypes[:count] = vectors[chosen]

    def user_vectors(self, users: Tensor, drawn: Tensor | None = None) -> Tensor:
        """u [R, D] of users [R], −1 for an unknown one. Training forgets some users.

        drawn: uniform numbers [R] that decide which; by default of torch's global generator.
        """
        known = users >= 0
        if self.training and self.user_dropout:
            if drawn is None:
                drawn = torch.rand(users.shape, device=users.device)
            known = known & (drawn >= self.user_dropout)
        if len(self.users.weight) == 0:
            return self.prototypes.new_zeros(len(users), self.dim)
        vectors = self.users(users.clamp_min(0))
        cold = self.users.weight.mean(0) if self.mean_user else torch.zeros_like(vectors[:1])
        return torch.where(known.unsqueeze(-1), vectors, cold)

    def shares(self, x: Tensor) -> Tensor:
        """P(x): [..., D] → [..., W]; adds up to 1 in each field unless sigmoids are kept raw."""
        fields = self.head(x).split(self.widths, -1)
        if self.activation == "softmax":
            return torch.cat([field.softmax(-1) for field in fields], -1)
        on = [torch.sigmoid(field) for field in fields]
        if self.activation == "sigmoid_shares":
            on = [field / field.sum(-1, keepdim=True) for field in on]
        return torch.cat(on, -1)

    def profile(self, x: Tensor) -> Tensor:
        """What `similarity` compares: P(x) [..., W], or x [..., D] itself for inner products."""
        return x if self.similar_by == "inner" else self.shares(x)

    def similarity(self, p: Tensor, q: Tensor) -> Tensor:
        """sim of profiles [..., W], broadcast against each other → [...]."""
        if self.similar_by == "inner":
            return torch.sigmoid((p * q).sum(-1) / math.sqrt(self.dim))
        return 1 - self.divergence(p, q)

    def similarities(self, p: Tensor, q: Tensor, group: Tensor) -> Tensor:
        """sim of profile n [N, W] and the P profiles of its group [R, P, W] → [N, P].

        group [N] int64 in 0..R − 1.
        """
        if self.similar_by == "inner":
            return self.similarity(p.unsqueeze(1), q[group])
        return 1 - self.divergence.grouped(p, q, group)

    def edge_similarities(self, p: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """sim of profiles left [E] and right [E], rows of p [N, W] → [E]."""
        if self.similar_by == "inner":
            return self.similarity(p[left], p[right])
        return 1 - self.divergence.between(p, left, right)

    def independence_loss(self, prototypes: Tensor) -> Tensor:
        """L_IND [R] of profiles [R, P, W]: −mean over i, j of the divergence of o_i and o_j."""
        requests, count = prototypes.shape[:2]
        group = torch.arange(requests, device=prototypes.device).repeat_interleave(count)
        sim = self.similarities(prototypes.flatten(0, 1), prototypes, group)
        return -(1 - sim).view(requests, -1).mean(-1)

    def pair_loss(self, left: Tensor, right: Tensor, logged: Tensor) -> Tensor:
        """L_MSE [R] of n pairs of contexts each.

        left, right [R, n, D] vectors; logged [R, n] divergences of their logged shares.
        """
        model = 1 - self.similarity(self.profile(left), self.profile(right))
        return (logged - model).square().mean(-1)
