"""The selector: which prototypes a request wants, before any candidate is looked at (§4.2, 4.3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raysys.cofars.encoder import ContextEncoder
from raysys.cofars.graph import GraphAggregator, edges
from raysys.cofars.losses import draw_pairs, recommendation_loss
from raysys.cofars.requests import Requests
from raysys.errors import DataError
from raysys.layers.draws import mixed, uniform
from raysys.layers.embedding import ItemEncoder
from raysys.layers.gates import Gate

# What numbers are drawn for.
_USERS, _EDGES, _CHOICES, _PAIRS = range(4)


@dataclass(frozen=True)
class Selection:
    """What the selector made of R requests with S context nodes.

    z [R, P] gates of prototypes, at least one 1 per request unless switched off; beta [R, P]
    their probabilities; target [R, P] similarity of the request's context and the prototypes
    after aggregation; membership [S, P] bool: contexts of each prototype, without noise;
    similarity [S, P] of contexts and prototypes before aggregation; prototypes [R, P, D] after
    it; profiles [R, P, W] of the prototypes before it; users [R, D]; density scalar, share of
    open prototype–context edges.
    """

    z: Tensor
    beta: Tensor
    target: Tensor
    membership: Tensor
    similarity: Tensor
    prototypes: Tensor
    profiles: Tensor
    users: Tensor
    density: Tensor


@dataclass(frozen=True)
class Losses:
    """Sums over the real candidates of R requests; `weight` is their number.

    A request's L_MSE and L_IND count once per candidate, so that parts of a batch add up.
    """

    total: Tensor
    rec: Tensor
    mse: Tensor
    ind: Tensor
    weight: Tensor


@dataclass(frozen=True)
class _Aggregate:
    """Of R requests with S context nodes: users [R, D]; profiles [R, P, W], similarity [S, P]
    and gates [S, P] before the graph; upper [R, P, D] prototypes, lower [S, D] contexts after it.
    """

    users: Tensor
    profiles: Tensor
    similarity: Tensor
    gates: Tensor
    upper: Tensor
    lower: Tensor


class CofarsSelector(nn.Module):
    """Encoder, graph, short-term state and gates.

    Args:
        encoder: vectors of contexts, users and prototypes.
        item_cardinalities: codes of each item field; `items.bind` gives the catalogue.
        item_dim: width of one item field.
        vector_widths: widths of the frozen text vectors by field.
        temperature, calibrated, soft, fallback: see `GateConfig`.
        layers, attention, self_loops, residual: see `GraphConfig`.
        mse, ind, literal, raw: see `LossConfig`.
        pairs: pairs of contexts drawn per request for L_MSE.
    """

    def __init__(
        self,
        encoder: ContextEncoder,
        item_cardinalities: Sequence[int],
        *,
        item_dim: int = 16,
        vector_widths: dict[str, int] | None = None,
        temperature: float = 1.0,
        calibrated: bool = True,
        soft: bool = False,
        fallback: bool = True,
        layers: int = 1,
        attention: Literal["similarity", "dot"] = "similarity",
        self_loops: bool = True,
        residual: bool = False,
        mse: float = 5e-2,
        ind: float = 1e-3,
        literal: bool = False,
        raw: bool = False,
        pairs: int = 32,
    ) -> None:
        super().__init__()
        dim = encoder.dim
        self.encoder = encoder
        self.items = ItemEncoder(item_cardinalities, item_dim, vector_widths)
        self.project = nn.Linear(self.items.width, dim)
        self.graph = GraphAggregator(dim, layers, attention, residual)
        self.state = nn.GRU(dim, dim, batch_first=True)
        self.edge_gate = Gate(temperature=temperature, calibrated=calibrated, soft=soft)
        self.choice_gate = Gate(temperature=temperature, calibrated=calibrated, soft=soft)
        self.fallback = fallback
        self.self_loops = self_loops
        self.mse, self.ind = mse, ind
        self.literal, self.raw = literal, raw
        self.pairs = pairs
        # What L_MSE compares with; logs of the training time, so no part of the weights.
        for name in ("seen_codes", "seen_rows", "seen_shares"):
            self.register_buffer(name, torch.zeros(0), persistent=False)
        self.seen_codes: Tensor
        self.seen_rows: Tensor
        self.seen_shares: Tensor

    def bind_shares(self, codes: Tensor, rows: Tensor, shares: Tensor) -> None:
        """Logged shares of M well supported contexts: codes [M, F], rows [M], shares [M, W].

        Raises:
            DataError: fewer than two contexts: there is nothing to compare.
        """
        if len(rows) < 2:
            raise DataError(
                f"{len(rows)} contexts have enough events to compare their preferences; lower "
                "preferences.support or take fewer context features"
            )
        device = self.encoder.prototypes.device
        self.seen_codes, self.seen_rows = codes.to(device), rows.to(device)
        self.seen_shares = shares.to(device)

    def short_term(self, items: Tensor, mask: Tensor) -> Tensor:
        """l [R, D] of the newest events: items [R, r] rows, newest first; mask [R, r] bool.

        Zero where there is no event.
        """
        length = mask.sum(1)
        last = (length - 1).clamp_min(0).unsqueeze(1)
        # Oldest first and padding last, so that no state has passed through padding.
        place = (last - torch.arange(items.shape[1], device=items.device)).clamp_min(0)
        states, _ = self.state(self.project(self.items(items.gather(1, place))))
        final = states.gather(1, last.unsqueeze(-1).expand(-1, -1, states.shape[-1])).squeeze(1)
        return final * (length > 0).unsqueeze(1).to(final.dtype)

    def forward(self, requests: Requests) -> Selection:
        """Gates of the prototypes; the candidates have no part in them."""
        graph = self._aggregate(requests)
        target, beta = self._beta(requests, graph)
        return Selection(
            z=self._choose(beta, requests.draw),
            beta=beta,
            target=target,
            membership=self.edge_gate.on(graph.similarity),
            similarity=graph.similarity,
            prototypes=graph.upper,
            profiles=graph.profiles,
            users=graph.users,
            density=(graph.gates.detach() > 0.5).float().mean(),
        )

    def aggregated(self, requests: Requests) -> tuple[Tensor, Tensor]:
        """Prototypes [R, P, D] after the graph, and their sim [S, P] with the contexts after it."""
        encoder, graph = self.encoder, self._aggregate(requests)
        profiles = encoder.profile(graph.upper)
        lower = encoder.profile(graph.lower)
        return graph.upper, encoder.similarities(lower, profiles, requests.node_request)

    def chosen(self, prototypes: Tensor, sim: Tensor, recent: Tensor, mask: Tensor) -> Tensor:
        """Which prototypes are on without noise [R, P] bool, as z of `forward` in eval mode.

        Of what `aggregated` gave: prototypes [R, P, D], their sim [R, P] with the target context;
        recent, mask [R, r] as of `Requests`.
        """
        beta = self._activation(prototypes, sim, recent, mask)
        on = self.choice_gate.on(beta)
        # Where any is on, the best one is.
        return on.scatter(1, beta.argmax(1, keepdim=True), True) if self.fallback else on

    def _aggregate(self, requests: Requests) -> "_Aggregate":
        encoder = self.encoder
        users = self._users(requests)
        contexts = encoder.contexts(requests.node_codes, requests.node_row)
        contexts = contexts + users.index_select(0, requests.node_request)
        prototypes = users.unsqueeze(1) + encoder.prototypes
        profiles = encoder.profile(prototypes)
        similarity = encoder.similarities(
            encoder.profile(contexts), profiles, requests.node_request
        )
        gates = self.edge_gate(similarity, self._edge_noise(requests))
        graph = edges(
            gates,
            requests.node_request,
            len(requests),
            requests.steps,
            self_loops=self.self_loops,
            every=self.training,
        )
        nodes = torch.cat([prototypes.flatten(0, 1), contexts])
        nodes = self.graph(nodes, graph, encoder)
        upper, lower = nodes.split([len(nodes) - len(contexts), len(contexts)])
        return _Aggregate(
            users, profiles, similarity, gates, upper=upper.view_as(prototypes), lower=lower
        )

    def prototype_shares(self, users: Tensor) -> Tensor:
        """P(prototype) [R, P, W] of users with the vectors [R, D]."""
        return self.encoder.shares(users.unsqueeze(1) + self.encoder.prototypes)

    def _beta(self, requests: Requests, graph: "_Aggregate") -> tuple[Tensor, Tensor]:
        """Similarity of the target and the prototypes, and what the gates make of it [R, P]."""
        encoder, nodes = self.encoder, graph.lower
        alone = encoder.contexts(requests.target_codes, requests.target_row) + graph.users
        inside = (requests.target >= 0).unsqueeze(1)
        # A row of zeros stands in where a batch has no node at all.
        held = torch.cat([nodes, torch.zeros_like(nodes[:1] if len(nodes) else alone[:1])])
        target = torch.where(inside, held[requests.target], alone)
        everyone = torch.arange(len(requests), device=target.device)
        sim = encoder.similarities(encoder.profile(target), encoder.profile(graph.upper), everyone)
        return sim, self._activation(graph.upper, sim, requests.recent, requests.recent_mask)

    def _activation(self, prototypes: Tensor, sim: Tensor, recent: Tensor, mask: Tensor) -> Tensor:
        liking = (prototypes * self.short_term(recent, mask).unsqueeze(1)).sum(-1)
        if self.raw:
            return sim * liking
        return sim * torch.sigmoid(liking / math.sqrt(self.encoder.dim))

    def _users(self, requests: Requests) -> Tensor:
        draw = requests.draw
        drawn = None if draw is None else uniform(mixed(_USERS, draw))
        return self.encoder.user_vectors(requests.user, drawn)

    def _edge_noise(self, requests: Requests) -> Tensor | None:
        """[S, P] numbers that depend on request, context and prototype alone."""
        if requests.draw is None or not self.training:
            return None
        node = mixed(_EDGES, requests.draw[requests.node_request], *requests.node_codes.unbind(-1))
        return uniform(mixed(0, node.unsqueeze(-1), self._numbers(node)))

    def _numbers(self, like: Tensor) -> Tensor:
        return torch.arange(len(self.encoder.prototypes), device=like.device)

    def _choose(self, beta: Tensor, draw: Tensor | None = None) -> Tensor:
        drawn = None
        if draw is not None and self.training:
            drawn = uniform(mixed(_CHOICES, draw.unsqueeze(-1), self._numbers(draw)))
        z: Tensor = self.choice_gate(beta, drawn)
        if not self.fallback:
            return z
        none = ~(z.detach() > 0.5).any(1, keepdim=True)
        best = torch.zeros_like(z, dtype=torch.bool).scatter(1, beta.argmax(1, keepdim=True), True)
        # The gate keeps its gradient; only its value becomes 1.
        return z + (none & best).to(z.dtype) * (1 - z.detach())

    def loss(self, requests: Requests, candidates: Tensor, labels: Tensor, mask: Tensor) -> Losses:
        """L = L_REC + γ·L_MSE + λ·L_IND; candidates [R, C] item rows, labels, mask [R, C]."""
        chosen = self(requests)
        scores = self._scores(chosen, candidates)
        rec = recommendation_loss(scores, chosen.z, labels, mask, literal=self.literal).sum()
        count = mask.sum(1).to(scores.dtype)
        mse = ind = rec * 0
        learns = self.encoder.prototypes.requires_grad  # else both are constants
        if self.mse and learns:
            mse = (self.pair_loss(requests, chosen.users) * count).sum()
        if self.ind and learns:
            ind = (self.encoder.independence_loss(chosen.profiles) * count).sum()
        return Losses(rec + self.mse * mse + self.ind * ind, rec, mse, ind, count.sum())

    def _scores(self, chosen: Selection, candidates: Tensor) -> Tensor:
        """õ·v [R, P, C], divided by √D unless `literal`."""
        scores = chosen.prototypes @ self.project(self.items(candidates)).transpose(1, 2)
        return scores if self.literal else scores / math.sqrt(self.encoder.dim)

    def relevance(self, chosen: Selection, candidates: Tensor) -> Tensor:
        """How well the candidates [R, C] suit the prototypes that are on: mean σ(õ·v) [R, C]."""
        weight = chosen.z / chosen.z.sum(1, keepdim=True).clamp_min(1e-6)
        return (weight.unsqueeze(-1) * torch.sigmoid(self._scores(chosen, candidates))).sum(1)

    def warm_up_loss(self, requests: Requests, weight: Tensor, *, spread: bool) -> Losses:
        """γ·L_MSE + λ·L_IND, each request with its weight [R]; `spread`: with L_IND."""
        encoder = self.encoder
        users = self._users(requests)
        mse = ind = (self.pair_loss(requests, users) * weight).sum()
        if spread:
            profiles = encoder.profile(users.unsqueeze(1) + encoder.prototypes)
            ind = (encoder.independence_loss(profiles) * weight).sum()
        total = self.mse * mse + (self.ind * ind if spread else 0)
        return Losses(total, mse * 0, mse, ind if spread else mse * 0, weight.sum())

    def pair_loss(self, requests: Requests, users: Tensor) -> Tensor:
        """L_MSE [R] of `pairs` pairs of contexts per request, seen by its user.

        Pairs are drawn from the bound contexts, or from the user's own where `node_shares` is
        given.
        """
        encoder, shares = self.encoder, self.seen_shares
        codes, rows = self.seen_codes, self.seen_rows
        first, count = torch.zeros_like(requests.user), torch.full_like(requests.user, len(rows))
        if requests.node_shares is not None:
            shares = requests.node_shares
            codes, rows = requests.node_codes, requests.node_row
            owner = requests.node_request[: len(shares)]
            count = torch.bincount(owner, minlength=len(requests))
            first = count.cumsum(0) - count
            if not len(shares):
                return users.new_zeros(len(users))
            first = first.clamp_max(len(shares) - 1)
        noise = self._pair_noise(requests)
        left, right = draw_pairs(first, count, noise[:2])
        near, far = (
            encoder.contexts(codes[side], encoder.forget(rows[side], drawn)) + users.unsqueeze(1)
            for side, drawn in ((left, noise[2]), (right, noise[3]))
        )
        logged = encoder.divergence(shares[left], shares[right])
        loss = encoder.pair_loss(near, far, logged)
        return loss * (count > 0).to(loss.dtype)

    def _pair_noise(self, requests: Requests) -> Tensor:
        """[4, R, n] numbers that depend on the request alone: two that draw the contexts of a
        pair, two that decide which of them are seen through their values only."""
        device = requests.user.device
        if requests.draw is None:
            return torch.rand((4, len(requests), self.pairs), device=device)
        side = torch.arange(4, device=device).view(4, 1, 1)
        place = torch.arange(self.pairs, device=device)
        return uniform(mixed(_PAIRS, requests.draw.view(1, -1, 1), side, place))

    @torch.no_grad()
    def silence(self) -> None:
        """Graph (with residual) and short-term state that have learned nothing add nothing."""
        for part in (self.graph, self.state):
            for parameter in part.parameters():
                parameter.zero_()

    @torch.no_grad()
    def calibrate(self, requests: Requests, edges: float, choice: float) -> None:
        """Set both thresholds at percentiles of what this batch shows, without noise.

        Of use once the encoder tells contexts apart: with fresh vectors all similarities are 1.
        """
        training = self.training
        self.eval()
        self.edge_gate.calibrate(self(requests).similarity, edges)
        self.choice_gate.calibrate(self(requests).beta, choice)
        self.train(training)
