"""Which units matter least: scores of weights, and of the units they belong to (§2.2)."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raysys.homodistil.groups import Group
from raysys.homodistil.keep import Keep

Score = Literal["magnitude", "sensitivity", "sensitivity_ema", "platon", "random", "activation"]
ScoreAt = Literal["pre_step", "post_step"]
Norm = Literal["mean", "none", "rank"]
_OF_GRADIENTS = ("sensitivity", "sensitivity_ema", "platon")
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

        I = mean of |θ ⊙ g| over a window,  Ī ← β1·Ī + (1 − β1)·I,
        Ū ← β2·Ū + (1 − β2)·|I − Ī|,  platon = Ī ⊙ Ū

    with g the gradient of a whole step, before it is scaled or clipped, and θ before the step
    (PLATON, Zhang et al., ICML 2022, reads it behind the step: `at=post_step`). `sensitivity` is I
    of the last window, `sensitivity_ema` is Ī.

    model: whose parameters, of which `names` are in a group. window: in steps, ΔT.
    """

    def __init__(
        self,
        kind: Score,
        model: nn.Module,
        names: Iterable[str],
        at: ScoreAt = "pre_step",
        window: int = 1,
    ) -> None:
        super().__init__()
        self.kind, self.names, self.at, self.window = kind, set(names), at, window
        self._waiting: dict[str, Tensor] = {}
        self.now, self.average, self.uncertainty = Named(), Named(), Named()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for name, parameter in self._own(model):
            for store, kinds in (
                (self.now, _OF_GRADIENTS),
                (self.average, _OF_GRADIENTS),
                (self.uncertainty, ("platon",)),
            ):
                if kind in kinds:
                    store[name] = torch.zeros_like(parameter, dtype=torch.float32)

    @torch.no_grad()
    def update(self, model: nn.Module, scale: float = 1.0) -> None:
        """Take the gradients of a step, times `scale`; before it is done."""
        if self.kind not in _OF_GRADIENTS:
            return
        for name, parameter in self._own(model):
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float() * scale
            if self.at == "post_step":
                self._waiting[name] = gradient
            else:
                self._add(name, parameter, gradient)
        if self.at == "pre_step":
            self._step_done()

    @torch.no_grad()
    def settle(self, model: nn.Module) -> None:
        """Take what waited for the weights behind the step."""
        if not self._waiting:
            return
        for name, parameter in self._own(model):
            if name in self._waiting:
                self._add(name, parameter, self._waiting.pop(name))
        self._step_done()

    def _add(self, name: str, parameter: Tensor, gradient: Tensor) -> None:
        self.now[name] = self.now[name] + (parameter.detach().float() * gradient).abs()

    def _step_done(self) -> None:
        self.count += 1
        if int(self.count) == self.window:
            self._close()

    def _close(self) -> None:
        count = int(self.count)
        if not count:
            return
        for name, total in list(self.now.items()):
            mean = total / count
            self.now[name] = torch.zeros_like(total)
            if self.kind != "sensitivity":
                mean, now = BETA_1 * self.average[name] + (1 - BETA_1) * mean, mean
                if self.kind == "platon":
                    spread = (now - mean).abs()
                    old = self.uncertainty[name]
                    self.uncertainty[name] = BETA_2 * old + (1 - BETA_2) * spread
            self.average[name] = mean
        self.count.zero_()

    @torch.no_grad()
    def of_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The score of each weight by parameter, a window that has begun included; 0 before the
        first step, but for magnitudes."""
        if self.kind == "magnitude":
            return {n: p.detach().float().abs() for n, p in self._own(model)}
        self._close()
        if self.kind != "platon":
            return dict(self.average.items())
        return {name: mean * self.uncertainty[name] for name, mean in self.average.items()}

    def slice(self, kept: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Follow a model that was made smaller."""
        for store in (self.now, self.average, self.uncertainty):
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
        for store in (self.now, self.average, self.uncertainty):
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


def drawn(groups: Sequence[Group], seed: int) -> dict[str, Tensor]:
    """A draw for each unit, the same whenever it is asked for."""
    found = {}
    for group in groups:
        generator = torch.Generator().manual_seed(seed + (zlib.crc32(group.name.encode()) << 20))
        found[group.name] = torch.rand(group.size, generator=generator)
    return found


def best(units: Mapping[str, Tensor], left: Mapping[str, int]) -> Keep:
    """The units of each group with the highest scores, `left` of them; of equals the first."""
    return {
        name: found.argsort(descending=True, stable=True)[: left[name]].sort().values
        for name, found in units.items()
    }
