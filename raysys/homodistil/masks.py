"""Units that are gone without the model being smaller: the same numbers at the old size (§2.5)."""

from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor, nn

from raysys.errors import ConfigError
from raysys.homodistil.groups import Group
from raysys.homodistil.keep import Keep, everything, slices


def mask(model: nn.Module, groups: Sequence[Group], keep: Keep) -> None:
    """Zero what is lost and keep it zero: its gradients are zero too, and norms count survivors
    alone. Equals `shrink` to rounding, logits, losses, gradients and the next step of Adam. May be
    called again with fewer units.

    Raises:
        ConfigError: a norm that is neither LayerNorm nor RMSNorm.
    """
    whole = slices(groups, everything(groups))
    kept = slices(groups, keep)
    for name, parameter in model.named_parameters():
        if name not in whole:
            continue
        alive = torch.ones_like(parameter, dtype=torch.bool)
        for dim, rows in kept[name].items():
            one = torch.zeros(parameter.shape[dim], dtype=torch.bool, device=parameter.device)
            one[rows.to(parameter.device)] = True
            shape = [1] * parameter.dim()
            shape[dim] = -1
            alive &= one.view(shape)
        with torch.no_grad():
            parameter.mul_(alive)
        parameter.register_hook(_only(alive))
    residual = next(group for group in groups if group.kind == "residual")
    survivors = torch.zeros(residual.size)
    survivors[keep[residual.name]] = 1
    for module in model.modules():
        _count_survivors(module, residual.size, survivors)


def _only(alive: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * alive


def _count_survivors(module: nn.Module, width: int, survivors: Tensor) -> None:
    if isinstance(module, nn.LayerNorm):
        if module.normalized_shape == (width,):
            module.survivors = survivors.to(module.weight.device)
            module.forward = MethodType(_layer_norm, module)
    elif type(module).__name__.endswith("RMSNorm"):
        if tuple(module.weight.shape) == (width,):
            module.survivors = survivors.to(module.weight.device)
            module.forward = MethodType(_rms_norm, module)
    elif "norm" in type(module).__name__.lower() and list(module.parameters(recurse=False)):
        raise ConfigError(f"{type(module).__name__} cannot count survivors alone")


def _layer_norm(self: nn.LayerNorm, x: Tensor) -> Tensor:
    alive = self.survivors
    count = alive.sum()
    mean = (x * alive).sum(-1, keepdim=True) / count
    away = (x - mean) * alive
    spread = (away * away).sum(-1, keepdim=True) / count
    normed = away * torch.rsqrt(spread + self.eps) * self.weight
    return normed if self.bias is None else normed + self.bias


def _rms_norm(self: nn.Module, x: Tensor) -> Tensor:
    alive = self.survivors
    wide = x.to(torch.float32)
    square = (wide.pow(2) * alive).sum(-1, keepdim=True) / alive.sum()
    eps: float = self.variance_epsilon
    out: Tensor = self.weight * (wide * torch.rsqrt(square + eps)).to(x.dtype)
    return out
