"""The graph over a request's contexts and the prototypes, and its aggregation (§4.2)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from raysys.cofars.encoder import ContextEncoder


@dataclass(frozen=True)
class Edges:
    """E directed edges between nodes: source, target [E] int64; weight [E], 0 = no edge.

    The weight carries the gradient of the gates. The first `links` edges are those from
    prototypes to contexts, the next `links` their reverse, in the same order.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    links: int


def edges(
    gates: Tensor, request: Tensor, requests: int, steps: Tensor, *, self_loops: bool, every: bool
) -> Edges:
    """Edges of a batch. Node r·P + i is prototype i of request r, node R·P + s context s.

    Args:
        gates: z [S, P] of prototype–context edges, both directions.
        request: [S] request of each context.
        requests: R.
        steps: [2, T] contexts of consecutive events, from and to.
        self_loops: every node precedes itself (once).
        every: keep edges of weight 0, whose gates still learn.
    """
    contexts, prototypes = gates.shape
    base = requests * prototypes
    kept = torch.ones_like(gates, dtype=torch.bool) if every else gates > 0
    context, prototype = kept.nonzero(as_tuple=True)
    weight = gates.flatten().index_select(0, context * prototypes + prototype)
    upper = request[context] * prototypes + prototype
    lower = base + context
    before, after = steps
    loops = steps.new_zeros(0)
    if self_loops:
        apart = before != after
        before, after = before[apart], after[apart]
        loops = torch.arange(base + contexts, device=gates.device)
    certain = gates.new_ones(len(before) + len(loops))
    return Edges(
        source=torch.cat([upper, lower, base + before, loops]),
        target=torch.cat([lower, upper, base + after, loops]),
        weight=torch.cat([weight, weight, certain]),
        links=len(weight),
    )


def edge_softmax(scores: Tensor, graph: Edges, nodes: int) -> Tensor:
    """α [E]: softmax of scores [E] over the predecessors of each target, weighed by the edges.

    Nodes without a predecessor take part in nothing.
    """
    real = scores.masked_fill(graph.weight == 0, float("-inf")).detach()
    top = scores.new_full((nodes,), float("-inf"))
    top = top.scatter_reduce(0, graph.target, real, "amax").clamp_min(-1e30)
    # An absent edge may score above all real ones; its mass is 0 whatever it scores.
    mass = (scores - top[graph.target]).clamp_max(0).exp() * graph.weight
    total = mass.new_zeros(nodes).index_add(0, graph.target, mass)
    return mass / total.clamp_min(1e-30).index_select(0, graph.target)


class GraphAggregator(nn.Module):
    """H_i' = ReLU(Σ_j α_ij H_j W), α the softmax of LeakyReLU(sim(H_i W, H_j W)), L layers.

    Args:
        dim: D.
        layers: L; 0 leaves all vectors as they are.
        attention: sim of the profiles of HW, as printed, or their inner product over √D.
        residual: H' = H + ReLU(...), so that a node stays what P was fitted on.
    """

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        attention: Literal["similarity", "dot"] = "similarity",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.dim = dim
        self.attention = attention
        self.layers = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(layers))

    def forward(self, nodes: Tensor, graph: Edges, encoder: ContextEncoder) -> Tensor:
        """Nodes [N, D] → aggregated nodes [N, D]."""
        for layer in self.layers:
            message = layer(nodes)
            alpha = self.weights(message, graph, encoder)
            summed = torch.zeros_like(message).index_add(
                0, graph.target, alpha.unsqueeze(-1) * message.index_select(0, graph.source)
            )
            nodes = nodes + torch.relu(summed) if self.residual else torch.relu(summed)
        return nodes

    def weights(self, message: Tensor, graph: Edges, encoder: ContextEncoder) -> Tensor:
        """α [E] of the edges; message [N, D] is HW."""
        # Both directions of a link score alike.
        one_way = slice(graph.links, None)
        target, source = graph.target[one_way], graph.source[one_way]
        if self.attention == "dot":
            pair = message.index_select(0, target) * message.index_select(0, source)
            score = pair.sum(-1) / math.sqrt(self.dim)
        else:
            score = encoder.edge_similarities(encoder.profile(message), target, source)
        score = torch.cat([score[: graph.links], score])
        return edge_softmax(leaky_relu(score), graph, len(message))
