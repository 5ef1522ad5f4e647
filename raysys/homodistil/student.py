"""The student: a copy of its teacher that becomes thinner, and what is remembered of it."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raysys.errors import ConfigError
from raysys.homodistil.groups import LLAMA, Group, Kind, groups_of
from raysys.homodistil.keep import Keep, shrink
from raysys.homodistil.losses import Projections
from raysys.homodistil.schedule import units_left
from raysys.homodistil.scores import Named, Score, Scores, best

Kept = dict[str, dict[int, Tensor]]


def targets(model: nn.Module, ratio: float) -> dict[Kind, int]:
    """Units of each kind of group that are left at the end.

    Of a BERT-style model the width is heads × width of a head, as stock models want it.

    Raises:
        ConfigError: no whole number of heads has this share of them; names the nearest ones.
    """
    config: Any = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    exact = ratio * heads
    count = round(exact)
    if count < 1 or abs(exact - count) > 1e-3:
        near = sorted({max(1, math.floor(exact)), min(heads, math.ceil(exact))})
        told = " or ".join(f"{n / heads:.6g} ({n} of {heads} heads)" for n in near)
        raise ConfigError(f"ratio={ratio:g} leaves {exact:g} heads; nearest is {told}")
    width = round(ratio * config.hidden_size)
    if config.model_type in LLAMA:
        width = -(-width // 8) * 8
    else:
        width = count * (config.hidden_size // config.num_attention_heads)
    neurons = -(-round(ratio * config.intermediate_size) // 8) * 8
    return {"residual": width, "ffn": min(neurons, config.intermediate_size), "attn": count}


class Student(nn.Module):
    """net: the Hugging Face model; projections: W of the losses; scores: of its weights; kept: of
    each group the teacher's units that are left."""

    def __init__(self, teacher: nn.Module, score: Score, seed: int = 0) -> None:
        super().__init__()
        self.net = copy.deepcopy(teacher)
        self.groups: list[Group] = groups_of(self.net)
        self.whole = {group.name: group for group in self.groups}
        config: Any = self.net.config
        self.projections = Projections(config.num_hidden_layers, config.hidden_size)
        names = [member.parameter for group in self.groups for member in group.members]
        self.scores = Scores(score, self.net, names, seed)
        self.kept = Named()
        for group in self.groups:
            self.kept[group.name] = torch.arange(group.size)

    def sizes(self, share: float, goal: Mapping[Kind, int]) -> dict[str, int]:
        """Units of each group at a remaining share; never more than there are."""
        return {
            group.name: min(group.size, units_left(self.whole[group.name], share, goal[group.kind]))
            for group in self.groups
        }

    def prune(self, left: Mapping[str, int]) -> Kept | None:
        """Keep the best units, so many of each group; None where that is all of them. Gives what
        was kept of which of this module's parameters."""
        if all(left[group.name] == group.size for group in self.groups):
            return None
        return self._cut(best(self.groups, self.scores.of_weights(self.net), left))

    def reshape(self, stored: Mapping[str, Tensor]) -> None:
        """Lose what the student that was stored had lost; this one is still whole."""
        keep = {g.name: stored[f"kept.{g.name.replace('.', '/')}"] for g in self.groups}
        if any(len(keep[group.name]) < group.size for group in self.groups):
            self._cut(keep)

    def heads(self) -> dict[int, Tensor]:
        """Layer → the teacher's attention heads that are left."""
        config: Any = self.net.config
        units = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        ratio = config.num_attention_heads // units
        return {
            group.layer: (
                self.kept[group.name][:, None] * ratio
                + torch.arange(ratio, device=self.kept[group.name].device)
            ).flatten()
            for group in self.groups
            if group.kind == "attn"
        }

    def _cut(self, keep: Keep) -> Kept:
        kept = shrink(self.net, self.groups, keep)
        self.scores.slice(kept)
        residual = keep["residual"]
        self.projections.shrink(residual)
        for name, units in keep.items():
            here = self.kept[name]
            self.kept[name] = here[units.to(here.device)]
        self.groups = groups_of(self.net)
        own = {f"net.{name}": dims for name, dims in kept.items()}
        return own | {
            f"projections.{name}": {0: residual} for name, _ in self.projections.named_parameters()
        }
