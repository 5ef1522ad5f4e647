"""Units that are gone without the model being smaller: the same numbers at the old size (§2.5)."""

from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor, nn

from raysys.errors import ConfigError
from raysys.homodistil.groups import Group
from raysys.homodistil.keep import Keep, everything, slices


class Masks:
    """Which weights of a model are alive; all of them to begin with."""

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self.model, self.groups = model, groups
        self._whole = slices(groups, everything(groups))
        self.alive: dict[str, Tensor] = {}
        self._bound = False

    def zero(self, keep: Keep) -> dict[str, Tensor]:
        """Set what is not kept to 0, once; gives what is alive by parameter, as bool."""
        alive = self._alive(keep)
        self._apply(alive)
        return alive

    def bind(self, keep: Keep) -> None:
        """Zero what is lost and keep it zero: its gradients are zero too, and norms count survivors
        alone. With `apply` before each forward pass it equals `shrink` to rounding: logits, losses,
        gradients and the next step of Adam. May be called again with fewer units.

        Raises:
            ConfigError: a norm that is neither LayerNorm nor RMSNorm.
        """
        self.alive = self.zero(keep)
        if not self._bound:
            for name, parameter in self.model.named_parameters():
                if name in self._whole:
                    parameter.register_hook(self._only(name))
            self._bound = True
        residual = next(group for group in self.groups if group.kind == "residual")
        survivors = torch.zeros(residual.size)
        survivors[keep[residual.name].cpu()] = 1
        for module in self.model.modules():
            _count_survivors(module, residual.size, survivors)

    def apply(self) -> None:
        """Zero what the optimiser's moments have moved since."""
        self._apply(self.alive)

    def release(self) -> None:
        """Norms count all again: before what is lost is cut off."""
        for module in self.model.modules():
            if hasattr(module, "survivors"):
                del module.survivors, module.forward

    def _apply(self, alive: dict[str, Tensor]) -> None:
        if not alive:
            return
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in alive:
                    # Calibrated before the model was moved.
                    alive[name] = alive[name].to(parameter.device)
                    parameter.mul_(alive[name])

    def _alive(self, keep: Keep) -> dict[str, Tensor]:
        kept = slices(self.groups, keep)
        found = {}
        for name, parameter in self.model.named_parameters():
            if name not in self._whole:
                continue
            alive = torch.ones_like(parameter, dtype=torch.bool)
            for dim, rows in kept[name].items():
                one = torch.zeros(parameter.shape[dim], dtype=torch.bool, device=parameter.device)
                one[rows.to(parameter.device)] = True
                shape = [1] * parameter.dim()
                shape[dim] = -1
                alive &= one.view(shape)
            found[name] = alive
        return found

    def _only(self, name: str) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient * self.alive[name]


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
    alive = self.survivors.to(x.device)
    count = alive.sum()
    mean = (x * alive).sum(-1, keepdim=True) / count
    away = (x - mean) * alive
    spread = (away * away).sum(-1, keepdim=True) / count
    normed = away * torch.rsqrt(spread + self.eps) * self.weight
    return normed if self.bias is None else normed + self.bias


def _rms_norm(self: nn.Module, x: Tensor) -> Tensor:
    alive = self.survivors.to(x.device)
    wide = x.to(torch.float32)
    square = (wide.pow(2) * alive).sum(-1, keepdim=True) / alive.sum()
    eps: float = self.variance_epsilon
    out: Tensor = self.weight * (wide * torch.rsqrt(square + eps)).to(x.dtype)
    return out
