"""How much units are used: norms of activations over some batches, as Minitron scores them."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from raysys.homodistil.groups import Group


class Activations:
    """Sums of a model's activations while it is open. `mask` [B, S]: real tokens of the batch that
    comes next; all of them by default.

    A neuron is scored by the mean of |what goes into the second matrix|, a head by the mean L2 norm
    of what it gives to the output matrix, a dimension of the residual stream by the mean of |what
    the norms give|, summed over them (Muralidharan et al., NeurIPS 2024).
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.sums = {group.name: torch.zeros(group.size) for group in groups}
        self.mask: Tensor | None = None
        self._hooks: list[Any] = []
        modules = dict(model.named_modules())
        for group in groups:
            for member in group.members:
                owner, _, kind = member.parameter.rpartition(".")
                module = modules[owner]
                if group.kind == "residual":
                    if kind == "weight" and "norm" in type(module).__name__.lower():
                        self._hooks.append(module.register_forward_hook(self._given(group)))
                elif member.dim == 1 and isinstance(module, nn.Linear):
                    hook = self._taken(group, member.width)
                    self._hooks.append(module.register_forward_pre_hook(hook))

    def __enter__(self) -> "Activations":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _real(self, values: Tensor) -> Tensor:
        """[N, D] those of real tokens."""
        flat = values.detach().float().flatten(0, -2)
        return flat if self.mask is None else flat[self.mask.flatten()]

    def _given(self, group: Group) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Tensor) -> None:
            self.sums[group.name] += self._real(out).abs().mean(0).cpu()

        return hook

    def _taken(self, group: Group, width: int) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any) -> None:
            found = self._real(given[0])
            units = found.view(len(found), group.size, width).norm(dim=-1)
            self.sums[group.name] += units.mean(0).cpu()

        return hook
