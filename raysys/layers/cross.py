"""Explicit feature crosses."""

import torch
from torch import Tensor, nn


class CrossNetV2(nn.Module):
    """x_{l+1} = x_0 ∘ (W_l x_l + b_l) + x_l (DCN-V2, Wang et al. 2021, eq. 1)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] → [..., D]."""
        y = x
        for layer in self.layers:
            y = torch.addcmul(y, x, layer(y))
        return y
