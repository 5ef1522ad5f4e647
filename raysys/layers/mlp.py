"""Feed-forward stacks and their activations."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raysys.layers.blocked import blocks_pay, dice, mean_var

Activation = Literal["relu", "prelu", "sigmoid", "dice"]


class Dice(nn.Module):
    """Dice(x) = p·x + (1 − p)·α·x, p = σ(BN(x)) (Zhou et al. 2018, eq. 3).

    Batch norm without affine terms over the last axis; leading axes are folded into the batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-9)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] → the same shape."""
        flat = x.reshape(-1, x.shape[-1])
        if not blocks_pay(x):
            gate = torch.sigmoid(self.norm(flat)).view_as(x)
            return gate * x + (1 - gate) * self.alpha * x
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean, norm.running_var
        if self.training:
            mean, var = mean_var(flat)
            self._remember(mean, var, len(flat))
        return dice(flat, self.alpha, mean, var, norm.eps, own=self.training).view_as(x)

    def _remember(self, mean: Tensor, var: Tensor, count: int) -> None:
        """What `BatchNorm1d` does to its running statistics."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (count / max(1, count - 1)), norm.momentum)
        norm.num_batches_tracked += 1


class PReLU(nn.Module):
    """x where positive, α·x elsewhere, one α per unit of the last axis (torch's counts axis 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((width,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] → the same shape."""
        return torch.where(x > 0, x, self.alpha * x)


def activation(name: Activation, width: int) -> nn.Module:
    """The activation module for a layer of `width` units."""
    match name:
        case "relu":
            # In place: a linear layer before it has no use for its output any more.
            return nn.ReLU(inplace=True)
        case "prelu":
            return PReLU(width)
        case "sigmoid":
            return nn.Sigmoid()
        case "dice":
            return Dice(width)


class MLP(nn.Module):
    """Linear layers with an activation and dropout after each; `out` adds a plain last layer."""

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        *,
        out: int | None = None,
        act: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Linear(width, units), activation(act, units)]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = units
        if out is not None:
            layers.append(nn.Linear(width, out))
            width = out
        self.width = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] → [..., out or last hidden]."""
        y: Tensor = self.layers(x)
        return y
