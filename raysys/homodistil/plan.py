"""When a student becomes thinner and how thin, known before the first step; and what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from raysys.homodistil.groups import LLAMA, Group, Kind
from raysys.homodistil.schedule import Schedule, units_left

Sizes = dict[Kind, int]


@dataclass(frozen=True)
class Event:
    """After `step` updates, so many units of each kind of group are left; last: none follows."""

    step: int
    sizes: Sizes
    last: bool


def events(
    groups: Sequence[Group], schedule: Schedule, goal: Mapping[Kind, int], every: int, steps: int
) -> list[Event]:
    """All events of T steps: every ΔT of them and where the schedule ends, if units go; the last
    one leaves what is to be left.

    groups: of the whole teacher; those of one kind are equally large.
    """
    of_kind = {group.kind: group for group in groups}
    sizes: Sizes = {kind: group.size for kind, group in of_kind.items()}
    found = []
    for step in range(1, steps + 1):
        ends = step >= schedule.end * steps > step - 1
        if step % every and not ends:
            continue
        share = schedule.remaining(step, steps)
        left = {
            kind: min(sizes[kind], units_left(group, share, goal[kind]))
            for kind, group in of_kind.items()
        }
        if ends:  # a rounded ratio may not be that of whole heads
            left = {kind: goal[kind] for kind in of_kind}
        if left != sizes:
            sizes = left
            found.append(Event(step, left, last=left == dict(goal)))
    return found


@dataclass(frozen=True)
class Shape:
    """The sizes that decide what a forward pass costs. queries, keys: heads × width of a head."""

    layers: int
    width: int
    neurons: int
    queries: int
    keys: int
    vocabulary: int
    gated: bool
    head: bool
    transform: bool

    @classmethod
    def of(cls, model: nn.Module) -> "Shape":
        """Of a model that `groups_of` covers."""
        config: Any = model.config
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        names = [name for name, _ in model.named_parameters()]
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            neurons=config.intermediate_size,
            queries=heads * width,
            keys=groups * width,
            vocabulary=config.vocab_size,
            gated=config.model_type in LLAMA,
            head=type(model).__name__.endswith(("ForCausalLM", "ForMaskedLM")),
            transform=any("transform.dense" in name for name in names),
        )

    def at(self, sizes: Mapping[Kind, int], units: int) -> "Shape":
        """With so many units left; units: of attention, in the whole model."""
        return replace(
            self,
            width=sizes["residual"],
            neurons=sizes["ffn"],
            queries=self.queries // units * sizes["attn"],
            keys=self.keys // units * sizes["attn"],
        )

    def forward(self, row: int) -> float:
        """FLOPs of one token in rows of so many: 2 a weight that multiplies, 4·S·width of the
        heads for attention in each layer, and the LM head."""
        layer = 2.0 * self.width * (2 * self.queries + 2 * self.keys)
        layer += (3 if self.gated else 2) * 2.0 * self.width * self.neurons
        layer += 4.0 * row * self.queries
        head = 2.0 * self.vocabulary * self.width if self.head else 0.0
        if self.transform:
            head += 2.0 * self.width**2
        return self.layers * layer + head


def training_flops(
    teacher: Shape,
    student: Shape,
    planned: Sequence[Event],
    steps: int,
    *,
    units: int,
    row: int,
    step_tokens: int,
    taught: bool = True,
    compact: bool = True,
) -> float:
    """Counted FLOPs of a whole training: a forward pass of the teacher and three times the
    student's, its projections included, as thin as it is at each step.

    units: of attention in the whole teacher. taught: there is a teacher at all. compact: what is
    lost is not computed with.
    """
    total, shape = 0.0, student
    begins = [0, *(event.step for event in planned)]
    shapes = [student, *(student.at(event.sizes, units) for event in planned)]
    for begin, end, thin in zip(begins, [*begins[1:], steps], shapes, strict=True):
        shape = thin if compact else student
        token = 3 * shape.forward(row)
        if taught:
            token += teacher.forward(row)
            token += 3 * (shape.layers + 1) * 2.0 * shape.width * teacher.width
        total += (min(end, steps) - min(begin, steps)) * token
    return total * step_tokens
