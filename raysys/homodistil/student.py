"""The student: a copy of its teacher that becomes thinner, and what is remembered of it."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raysys.errors import ArtifactError, ConfigError
from raysys.homodistil.groups import LLAMA, Attn, Group, Kind, groups_of
from raysys.homodistil.keep import Keep, shrink
from raysys.homodistil.losses import Projections
from raysys.homodistil.masks import Masks
from raysys.homodistil.scores import Named, Norm, Score, ScoreAt, Scores, best, drawn

Kept = dict[str, dict[int, Tensor]]
Mode = Literal["compact", "hard", "soft"]


def targets(model: nn.Module, ratio: float, attn: Attn = "heads") -> dict[Kind, int]:
    """Units of each kind of group that are left at the end.

    Of a BERT-style model the width is heads × width of a head, as stock models want it.

    Raises:
        ConfigError: no whole number of heads, or of their dimensions, has this share of them; names
            the nearest ones.
    """
    config: Any = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    thick = config.hidden_size // config.num_attention_heads
    units, name = (heads, "heads") if attn == "heads" else (thick, "dimensions of a head")
    exact = ratio * units
    count = round(exact)
    if count < 1 or abs(exact - count) > 1e-3:
        near = sorted({max(1, math.floor(exact)), min(units, math.ceil(exact))})
        told = " or ".join(f"{n / units:.6g} ({n} of {units} {name})" for n in near)
        raise ConfigError(f"ratio={ratio:g} leaves {exact:g} {name}; nearest is {told}")
    width = round(ratio * config.hidden_size)
    if config.model_type in LLAMA:
        width = -(-width // 8) * 8
    else:
        width = count * (thick if attn == "heads" else heads)
    neurons = -(-round(ratio * config.intermediate_size) // 8) * 8
    return {"residual": width, "ffn": min(neurons, config.intermediate_size), "attn": count}


class Student(nn.Module):
    """What is trained, and what is remembered of it.

    net: a Hugging Face model, its own from now on. width: of the teacher. score, score_at, window,
    norm: see `Scores` and `of_units`; seed: of `random`. mode: what is lost is cut off
    (`compact`), masked at the old size with the same numbers (`hard`), or zeroed, and may come
    back until the last event (`soft`). attn: see `groups_of`.

    projections: W of the losses; scores: of its weights; kept: of each group the units that it
    began with and that are left.
    """

    def __init__(
        self,
        net: nn.Module,
        width: int,
        score: Score = "platon",
        seed: int = 0,
        *,
        norm: Norm = "mean",
        mode: Mode = "compact",
        attn: Attn = "heads",
        score_at: ScoreAt = "pre_step",
        window: int = 1,
    ) -> None:
        super().__init__()
        self.net, self.norm, self.mode, self.attn = net, norm, mode, attn
        self.groups: list[Group] = groups_of(self.net, attn)
        self.whole, self.seed = self.groups, seed
        config: Any = self.net.config
        self.projections = Projections(config.num_hidden_layers, config.hidden_size, width)
        names = [member.parameter for group in self.groups for member in group.members]
        self.scores = Scores(score, self.net, names, score_at, window)
        self.masks = Masks(self.net, self.groups) if mode != "compact" else None
        # Of a masked student: whether what is lost is lost for good.
        self.register_buffer("bound", torch.zeros((), dtype=torch.bool))
        self.kept = Named()
        for group in self.groups:
            self.kept[group.name] = torch.arange(group.size)

    def prune(
        self, sizes: Mapping[Kind, int], *, last: bool, units: Mapping[str, Tensor] | None = None
    ) -> Kept | None:
        """Keep the best units, so many of each kind of group.

        last: no event follows. units: their scores, by default those of their weights. Gives what
        was kept of which of this module's parameters; None of a masked student, which keeps all.
        """
        if units is None:
            if self.masks is not None:
                self.masks.apply()
            units = self._units()
        left = {group.name: sizes[group.kind] for group in self.groups}
        if self.masks is None:
            return self._cut(best(units, left))
        if self.mode == "hard" or bool(self.bound):
            units = {name: _only(found, self.kept[name]) for name, found in units.items()}
        self._hide(best(units, left), bind=self.mode == "hard" or last)
        return None

    def _units(self) -> dict[str, Tensor]:
        if self.scores.kind != "random":
            return self.scores.of_units(self.groups, self.net, self.norm)
        found = drawn(self.whole, self.seed)
        if self.masks is not None:
            return found
        return {name: draws[self.kept[name].cpu()] for name, draws in found.items()}

    def count(self) -> int:
        """Weights of the net that are left."""
        alive = self.masks.alive if self.masks is not None else {}
        return sum(
            int(alive[name].sum()) if name in alive else p.numel()
            for name, p in self.net.named_parameters()
        )

    def sizes(self) -> dict[Kind, int]:
        """Units that are left of each kind of group; all groups of a kind are equally large."""
        return {group.kind: len(self.kept[group.name]) for group in self.groups}

    def steady(self) -> None:
        """Before each forward pass: what is masked is zero."""
        if self.masks is not None:
            self.masks.apply()

    def reshape(self, stored: Mapping[str, Tensor]) -> None:
        """Lose what the student that was stored had lost; this one has lost nothing, or the same
        before its first step."""
        keep = {g.name: stored[f"kept.{g.name.replace('.', '/')}"] for g in self.groups}
        if all(len(keep[g.name]) == len(self.kept[g.name]) for g in self.groups):
            return
        if self.masks is None:
            self._cut(keep)
        else:
            self._hide(keep, bind=bool(stored["bound"]))

    def adopt(self, kept: Mapping[str, Tensor]) -> None:
        """Be a student that is thin already. kept: units of the teacher that are left, by group.

        Raises:
            ArtifactError: its weights have other sizes.
        """
        for group in self.groups:
            count = len(kept.get(group.name, ()))
            if count != group.size:
                raise ArtifactError(
                    f"{group.name}: {group.size} units in the weights, but {count} are said to be "
                    "kept"
                )
            self.kept[group.name] = kept[group.name]
        layers, wide = len(self.projections.hidden), self.projections.embedding.shape[1]
        self.projections = Projections(layers, wide, wide)
        self.projections.shrink(kept["residual"])

    def finish(self) -> None:
        """Cut off what was masked; the model is a stock one then."""
        if self.masks is not None:
            self._unmask()
        if self.attn == "intra_head":
            _scaled_by_own_width(self.net)

    def _unmask(self) -> None:
        assert self.masks is not None
        self.masks.apply()
        self.masks.release()
        keep = {g.name: self.kept[g.name].cpu() for g in self.groups}
        self.masks = None
        for group in self.groups:
            self.kept[group.name] = torch.arange(group.size)
        self._cut(keep)

    def heads(self) -> dict[int, Tensor]:
        """Layer → the teacher's attention heads that are left."""
        config: Any = self.net.config
        units = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        ratio = config.num_attention_heads // units
        if self.attn == "intra_head":
            return {g.layer: torch.arange(units) for g in self.groups if g.kind == "attn"}
        return {
            group.layer: (
                self.kept[group.name][:, None] * ratio
                + torch.arange(ratio, device=self.kept[group.name].device)
            ).flatten()
            for group in self.groups
            if group.kind == "attn"
        }

    def _hide(self, keep: Keep, *, bind: bool) -> None:
        assert self.masks is not None
        for name, units in keep.items():
            self.kept[name] = units.to(self.kept[name].device)
        if not bind:
            self.masks.zero(keep)
            return
        self.bound.fill_(True)
        self.masks.bind(keep)
        self.scores.forget(self.masks.alive)

    def _cut(self, keep: Keep) -> Kept:
        kept = shrink(self.net, self.groups, keep)
        self.scores.slice(kept)
        residual = keep["residual"]
        self.projections.shrink(residual)
        for name, units in keep.items():
            here = self.kept[name]
            self.kept[name] = here[units.to(here.device)]
        self.groups = groups_of(self.net, self.attn)
        own = {f"net.{name}": dims for name, dims in kept.items()}
        return own | {
            f"projections.{name}": {0: residual} for name, _ in self.projections.named_parameters()
        }


@torch.no_grad()
def _scaled_by_own_width(net: nn.Module) -> None:
    """Stock attention divides by √ of the width that a head has; these were trained with the width
    that it had (§2.5)."""
    for module in net.modules():
        if hasattr(module, "attention_head_size") and hasattr(module, "scaling"):
            own = module.attention_head_size**-0.5
            for values in (module.query.weight, module.query.bias):
                values.mul_(module.scaling / own)
            module.scaling = own


def _only(units: Tensor, among: Tensor) -> Tensor:
    """Scores of what is left; below all others that of what is gone."""
    out = torch.full_like(units, -1.0)
    among = among.to(units.device)
    out[among] = units[among]
    return out
