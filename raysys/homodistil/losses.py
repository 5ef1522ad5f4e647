"""How far the student is from its teacher (§2.4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Weight = Annotated[float, Field(ge=0)]


class LossWeights(BaseModel):
    """L = task·L_task + kl·L_KL + hidden·L_hid + attention·L_attn + embedding·L_emb; temperature:
    τ of L_KL. The paper's values are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Weight = 1.0
    kl: Weight = 1.0
    hidden: Weight = 1.0
    attention: Weight = 0.0
    embedding: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True)
class Distances:
    """L_KL, L_hid, L_attn and L_emb, each a mean."""

    kl: Tensor
    hidden: Tensor
    attention: Tensor
    embedding: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """Their weighted sum, without the task."""
        return (
            weights.kl * self.kl
            + weights.hidden * self.hidden
            + weights.attention * self.attention
            + weights.embedding * self.embedding
        )


class Projections(nn.Module):
    """W of the embedding and of each layer [d_s, d_t], the identity to begin with, so that a
    student that is still its teacher has no distance at all."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.eye(width))
        self.hidden = nn.ParameterList(nn.Parameter(torch.eye(width)) for _ in range(layers))

    def shrink(self, kept: Tensor) -> None:
        """Follow the student's residual stream; kept: indices of what is left of it."""
        self.embedding = nn.Parameter(self.embedding.detach()[kept].clone())
        self.hidden = nn.ParameterList(
            nn.Parameter(own.detach()[kept].clone()) for own in self.hidden
        )


def distances(
    student: Any,
    teacher: Any,
    projections: Projections,
    mask: Tensor,
    predicted: Tensor | None = None,
    *,
    temperature: float = 1.0,
    heads: Mapping[int, Tensor] | None = None,
) -> Distances:
    """Of two Hugging Face outputs on one batch, `hidden_states` and, where asked for,
    `attentions` and `logits` included.

    Args:
        mask: [B, S] bool, True = a real token; padding counts nowhere.
        predicted: [B, S] bool, where the task predicts; all real tokens by default.
        heads: layer → the teacher's attention heads that the student still has, in its order.
    """
    real = mask.unsqueeze(-1)
    zero = student.hidden_states[0].sum() * 0.0
    kl = zero
    if getattr(student, "logits", None) is not None:
        where = mask if predicted is None else predicted & mask
        kl = _kl(student.logits[where], teacher.logits[where], temperature)
    layers = [
        _mse(own @ w, other, real)
        for own, other, w in zip(
            student.hidden_states[1:], teacher.hidden_states[1:], projections.hidden, strict=True
        )
    ]
    attention = zero
    if getattr(student, "attentions", None):
        pairs = (mask.unsqueeze(1) & mask.unsqueeze(2)).unsqueeze(1)
        found = []
        for layer, own in enumerate(student.attentions):
            other = teacher.attentions[layer]
            if heads is not None:
                other = other[:, heads[layer].to(other.device)]
            found.append(_mse(own, other, pairs))
        attention = torch.stack(found).mean()
    return Distances(
        kl=kl,
        hidden=torch.stack(layers).mean(),
        attention=attention,
        embedding=_mse(
            student.hidden_states[0] @ projections.embedding, teacher.hidden_states[0], real
        ),
    )


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """τ²·KL(teacher ‖ student), the mean over positions [N, V]; 0 without one."""
    if not len(student):
        return student.sum() * 0.0
    own = torch.log_softmax(student / temperature, -1)
    other = torch.log_softmax(teacher / temperature, -1)
    return temperature**2 * (other.exp() * (other - own)).sum(-1).mean()


def _mse(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Mean square over real entries; mask broadcasts."""
    square = (a - b).square() * mask
    return square.sum() / mask.expand_as(square).sum().clamp(min=1)
