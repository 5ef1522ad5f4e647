"""FuxiCTR's DIN out of our layers.

What differs from `raysys.ctr.din` is only what goes in: contexts and nothing else stand beside
the items in the last MLP, and past events are their items.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.fuxictr_start import INIT_STD, fuxictr_weights, stack, start_as_fuxictr, tables
from raysys.ctr.din import DIN
from raysys.data.batch import Batch
from raysys.layers.attention import TargetAttention
from raysys.layers.mlp import MLP


class EqualDIN(DIN):
    """DIN with FuxiCTR's inputs, initial values and running averages."""

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        *,
        embedding_dim: int,
        attention_units: Sequence[int],
        hidden: Sequence[int],
        history_length: int,
    ) -> None:
        super().__init__(
            item_cardinalities,
            context_cardinalities,
            {},
            embedding_dim=embedding_dim,
            history_length=history_length,
            orders=False,
            behaviours=False,
            match=False,
            init_std=INIT_STD,
        )
        self.attention = TargetAttention(self.items.width, attention_units, act="dice")
        self.click = MLP(2 * self.items.width + self.contexts.width, hidden, out=1)
        start_as_fuxictr(self)

    def query_vectors(self, batch: Batch, candidates: Tensor) -> Tensor:
        return candidates

    def event_vectors(self, batch: Batch) -> Tensor:
        return self.items(batch.history_items)

    def request_vectors(self, batch: Batch) -> Tensor:
        return self.contexts(batch.context)

    def load_fuxictr(
        self, path: Path, item_names: Sequence[str], context_names: Sequence[str]
    ) -> None:
        """Take over weights that the peer's script wrote."""
        theirs = fuxictr_weights(path)
        ours = tables(theirs, item_names, context_names) | stack(theirs, "dnn.mlp", "click.layers")
        # Their stack is one list; ours keeps the first layer, which it factorises, apart.
        for name, value in stack(theirs, "attention_layers.attention_layer.mlp", "").items():
            place, part = name[1:].split(".", 1)
            own = {"0": "first", "1": "act"}.get(place, f"rest.layers.{int(place) - 2}")
            ours[f"attention.{own}.{part.replace('bn.', 'norm.')}"] = value
        # They put the contexts first, we last.
        split = self.contexts.width
        first = ours["click.layers.0.weight"]
        ours["click.layers.0.weight"] = torch.cat([first[:, split:], first[:, :split]], 1)
        self.load_state_dict(ours)
