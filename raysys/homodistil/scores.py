"""Which units matter least: scores of weights, and of the units they belong to (§2.2)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raysys.homodistil.groups import Group
from raysys.homodistil.keep import Keep

Score = Literal["magnitude", "sensitivity", "sensitivity_ema", "platon", "random", "activation"]
ScoreAt = Literal["pre_step", "post_step"]
Norm = Literal["mean", "none", "rank"]
BETA_1, BETA_2 = 0.85, 0.95


class Named(nn.Module):
    """Buffers by the names of parameters, whose dots a buffer's name must not hold."""

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "/"))

    def __setitem__(self, name: str, values: Tensor) -> None:
        self.register_buffer(name.replace(".", "/"), values)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values."""
        return ((name.replace("/", "."), values) for name, values in self.named_buffers())


class Scores(nn.Module):
    """Scores of single weights, brought up to date once a step; saved with the model they are of.

        I = |θ ⊙ g|,  Ī ← β1·Ī + (1 − β1)·I,  Ū ← β2·Ū + (1 − β2)·|I − Ī|,  platon = Ī ⊙ Ū

    with g the gradient of the whole step, before it is scaled or clipped, and θ before the step
    (PLATON, Zhang et al., ICML 2022, reads it behind the step: `at=post_step`).

    model: whose parameters, of which `names` are in a group. seed: of `random`.
    """

    def __init__(
        self,
        kind: Score,
        model: nn.Module,
        names: Iterable[str],
        seed: int = 0,
        at: ScoreAt = "pre_step",
    ) -> None:
        super().__init__()
        self.at = at
        self._waiting: dict[str, Tensor] = {}
        self.kind, self.names, self.seed = kind, set(names), seed
        self.average, self.uncertainty = Named(), Named()
        for name, parameter in self._own(model):
            for store, kinds in (
                (self.average, ("sensitivity", "sensitivity_ema", "platon")),
                (self.uncertainty, ("platon",)),
            ):
                if kind in kinds:
                    store[name] = torch.zeros_like(parameter, dtype=torch.float32)

    @torch.no_grad()
    def update(self, model: nn.Module, scale: float = 1.0) -> None:
        """Take the gradients of a step, times `scale`; before it is done."""
        if self.kind in ("magnitude", "random", "activation"):
            return
        for name, parameter in self._own(model):
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float() * scale
            if self.at == "post_step":
                self._waiting[name] = gradient
            else:
                self._take(name, (parameter.detach().float() * gradient).abs())

    @torch.no_grad()
    def settle(self, model: nn.Module) -> None:
        """After the step: take what waited for it."""
        for name, parameter in self._own(model) if self._waiting else ():
            if name in self._waiting:
                self._take(name, (parameter.detach().float() * self._waiting[name]).abs())
        self._waiting = {}

    def _take(self, name: str, now: Tensor) -> None:
        if self.kind == "sensitivity":
            self.average[name] = now
            return
        mean = BETA_1 * self.average[name] + (1 - BETA_1) * now
        self.average[name] = mean
        if self.kind == "platon":
            spread = (now - mean).abs()
            self.uncertainty[name] = BETA_2 * self.uncertainty[name] + (1 - BETA_2) * spread

    @torch.no_grad()
    def of_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The score of each weight by parameter; 0 before the first step, but for magnitudes and
        draws."""
        if self.kind == "magnitude":
            return {n: p.detach().float().abs() for n, p in self._own(model)}
        if self.kind == "random":
            generator = torch.Generator().manual_seed(self.seed)
            return {n: torch.rand(p.shape, generator=generator) for n, p in self._own(model)}
        if self.kind != "platon":
            return dict(self.average.items())
        return {name: mean * self.uncertainty[name] for name, mean in self.average.items()}

    def slice(self, kept: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Follow a model that was made smaller."""
        for store in (self.average, self.uncertainty):
            for name, values in list(store.items()):
                for dim, rows in kept.get(name, {}).items():
                    values = values.index_select(dim, rows.to(values.device))
                store[name] = values

    def of_units(
        self, groups: Sequence[Group], model: nn.Module, norm: Norm = "mean"
    ) -> dict[str, Tensor]:
        """The score of each unit by group."""
        weights = self.of_weights(model)
        return {group.name: of_units(group, weights, norm) for group in groups}

    def forget(self, alive: Mapping[str, Tensor]) -> None:
        """Nothing is known any more of weights that are gone."""
        for store in (self.average, self.uncertainty):
            for name, values in list(store.items()):
                if name in alive:
                    store[name] = values * alive[name]

    def _own(self, model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in model.named_parameters() if n in self.names)


def of_units(group: Group, weights: Mapping[str, Tensor], norm: Norm = "mean") -> Tensor:
    """[size] score of each unit: Σ over the member matrices of the L1 of its slice.

    norm: `mean`: over the mean slice of that matrix, or the embedding would decide alone; `rank`:
    by the place of the slice among those of its matrix; `none`: as it is.
    """
    total = torch.zeros(group.size)
    for member in group.members:
        values = weights.get(member.parameter)
        # Of matrices alone: the gradient of a key's bias is nothing but rounding, and would count
        # as much as a matrix.
        if values is None or values.dim() < 2:
            continue
        mine = values.movedim(member.dim, 0).narrow(0, member.offset, group.size * member.width)
        rows = mine.reshape(group.size, -1).sum(1).cpu()
        if norm == "mean":
            rows = rows / rows.mean().clamp(min=1e-30)
        elif norm == "rank":
            rows = rows.argsort(stable=True).argsort(stable=True).float()
        total += rows
    return total


def best(units: Mapping[str, Tensor], left: Mapping[str, int]) -> Keep:
    """The units of each group with the highest scores, `left` of them; of equals the first."""
    return {
        name: found.argsort(descending=True, stable=True)[: left[name]].sort().values
        for name, found in units.items()
    }
