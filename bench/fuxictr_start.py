"""What our side of a comparison takes over from FuxiCTR: how weights begin, and the weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raysys.layers.mlp import Dice

INIT_STD = 1e-4
Weights = dict[str, Tensor]


def start_as_fuxictr(model: nn.Module) -> None:
    """Xavier's normal weights, biases 0, and the momentum of its running averages."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Dice):
            module.norm.momentum = 0.01


def fuxictr_weights(path: Path) -> Weights:
    """What `fuxictr_longctr.py --weights-before` or `--weights-after` wrote, by its names."""
    return {name: torch.from_numpy(value) for name, value in np.load(path).items()}


def tables(theirs: Weights, items: Sequence[str], contexts: Sequence[str]) -> Weights:
    """Our tables of items and contexts; theirs has one for each feature."""
    table = "embedding_layer.embedding_layer.embedding_layers.{}.weight".format
    return {
        "items.fields.table.weight": torch.cat([theirs[table(name)] for name in items]),
        "contexts.table.weight": torch.cat([theirs[table(name)] for name in contexts]),
    }


def stack(theirs: Weights, prefix: str, ours: str) -> Weights:
    """The linear layers of an MLP, which on both sides alternate with activations."""
    names = [name for name in theirs if name.startswith(f"{prefix}.")]
    return {name.replace(prefix, ours, 1): theirs[name] for name in names}
