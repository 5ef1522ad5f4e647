"""Which units matter least: scores of weights, and of the units they belong to (§2.2)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raysys.homodistil.groups import Group
from raysys.homodistil.keep import Keep

Score = Literal["magnitude", "sensitivity", "sensitivity_ema", "platon", "random"]
Norm = Literal["mean", "none", "rank"]
BETA_1, BETA_2 = 0.85, 0.95


class Scores:
    """Scores of single weights, brought up to date once a step.

        I = |θ ⊙ g|,  Ī ← β1·Ī + (1 − β1)·I,  Ū ← β2·Ū + (1 − β2)·|I − Ī|,  platon = Ī ⊙ Ū

    with g the gradient of the whole step, before it is scaled or clipped, and θ before the step
    (PLATON, Zhang et al., ICML 2022).

    names: of the parameters that are in a group. seed: of `random`.
    """

    def __init__(self, kind: Score, names: Iterable[str], seed: int = 0) -> None:
        self.kind, self.names, self.seed = kind, set(names), seed
        self.average: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the gradients of a step."""
        if self.kind in ("magnitude", "random"):
            return
        for name, parameter in model.named_parameters():
            if name not in self.names or parameter.grad is None:
                continue
            now = (parameter.detach().float() * parameter.grad.float()).abs()
            if self.kind == "sensitivity":
                self.average[name] = now
                continue
            before = self.average.get(name, torch.zeros_like(now))
            mean = BETA_1 * before + (1 - BETA_1) * now
            spread = self.uncertainty.get(name, torch.zeros_like(now))
            self.average[name] = mean
            self.uncertainty[name] = BETA_2 * spread + (1 - BETA_2) * (now - mean).abs()

    @torch.no_grad()
    def of_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The score of each weight by parameter; empty before the first step, but for magnitudes
        and draws."""
        if self.kind == "magnitude":
            return {n: p.detach().float().abs() for n, p in self._own(model)}
        if self.kind == "random":
            generator = torch.Generator().manual_seed(self.seed)
            return {n: torch.rand(p.shape, generator=generator) for n, p in self._own(model)}
        if self.kind != "platon":
            return dict(self.average)
        return {name: mean * self.uncertainty[name] for name, mean in self.average.items()}

    def slice(self, kept: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Follow a model that was made smaller."""
        for store in (self.average, self.uncertainty):
            for name, values in store.items():
                for dim, rows in kept.get(name, {}).items():
                    values = values.index_select(dim, rows.to(values.device))
                store[name] = values

    def _own(self, model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in model.named_parameters() if n in self.names)


def of_units(group: Group, weights: Mapping[str, Tensor], norm: Norm = "mean") -> Tensor:
    """[size] score of each unit: Σ over the member matrices of the L1 of its slice, by default
    over the mean slice of that matrix, or the embedding would decide alone."""
    total = torch.zeros(group.size)
    for member in group.members:
        values = weights.get(member.parameter)
        if values is None:
            continue
        rows = values.movedim(member.dim, 0).reshape(group.size, -1).sum(1).cpu()
        if norm == "mean":
            rows = rows / rows.mean().clamp(min=1e-30)
        elif norm == "rank":
            rows = rows.argsort().argsort().float()
        total += rows
    return total


def best(groups: Sequence[Group], weights: Mapping[str, Tensor], left: Mapping[str, int],
         norm: Norm = "mean") -> Keep:  # fmt: skip
    """The units of each group with the highest scores, `left` of them; of equals the first."""
    keep: Keep = {}
    for group in groups:
        order = of_units(group, weights, norm).argsort(descending=True, stable=True)
        keep[group.name] = order[: left[group.name]].sort().values
    return keep
