"""How far the student is from its teacher (§2.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

_SIMILARITY_TAU = 0.05
Weight = Annotated[float, Field(ge=0)]


class LossWeights(BaseModel):
    """L = task·L_task + kl·L_KL + hidden·L_hid + attention·L_attn + embedding·L_emb; temperature:
    τ of L_KL. The paper's values are not known.

    similarity: of a sentence encoder, KL of the similarities among some rows, of its own vectors
    and at a temperature of 0.05: what is compared later is not projected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Weight = 1.0
    kl: Weight = 1.0
    hidden: Weight = 1.0
    attention: Weight = 0.0
    embedding: Weight = 1.0
    similarity: Weight = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True)
class Distances:
    """L_KL, L_hid, L_attn, L_emb and the KL of similarities, each a mean over rows."""

    kl: Tensor
    hidden: Tensor
    attention: Tensor
    embedding: Tensor
    similarity: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """Their weighted sum, without the task."""
        return (
            weights.kl * self.kl
            + weights.hidden * self.hidden
            + weights.attention * self.attention
            + weights.embedding * self.embedding
            + weights.similarity * self.similarity
        )


class Projections(nn.Module):
    """W of the embedding and of each layer [d_s, d_t], the identity to begin with, so that a
    student that is still its teacher has no distance at all; of a thinner one its first rows."""

    def __init__(self, layers: int, width: int, wide: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.eye(width, wide))
        self.hidden = nn.ParameterList(nn.Parameter(torch.eye(width, wide)) for _ in range(layers))

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
    layers: Sequence[int] | None = None,
    together: int = 1,
) -> Distances:
    """Of two Hugging Face outputs on one batch, `hidden_states` and, where asked for,
    `attentions` and `logits` included.

    Args:
        mask: [B, S] bool, True = a real token; padding counts nowhere.
        predicted: [B, S] bool, where the task predicts; all real tokens by default.
        heads: layer → the teacher's attention heads that the student still has, in its order.
        layers: the teacher's layer of each of the student's, the same by default.
        together: so many rows, one after the other, are compared with each other.
    """
    real = mask.unsqueeze(-1)
    zero = student.hidden_states[0].sum() * 0.0
    kl = zero
    if getattr(student, "logits", None) is not None:
        where = mask if predicted is None else predicted & mask
        kl = _kl(student.logits[where], teacher.logits[where], temperature)
    if layers is None:
        layers = range(len(teacher.hidden_states) - 1)
    hidden = [
        _mse(own @ w, teacher.hidden_states[layer + 1], real)
        for own, layer, w in zip(student.hidden_states[1:], layers, projections.hidden, strict=True)
    ]
    similarity = zero
    if together > 1 and getattr(student, "logits", None) is None:
        similarity = _similarities(mean_pooled(student, mask), mean_pooled(teacher, mask), together)
    attention = zero
    if getattr(student, "attentions", None):
        pairs = (mask.unsqueeze(1) & mask.unsqueeze(2)).unsqueeze(1)
        found = []
        for layer, own in enumerate(student.attentions):
            other = teacher.attentions[layers[layer]]
            if heads is not None:
                other = other[:, heads[layer].to(other.device)]
            found.append(_mse(own, other, pairs))
        attention = torch.stack(found).mean()
    return Distances(
        kl=kl,
        hidden=torch.stack(hidden).mean(),
        attention=attention,
        embedding=_mse(
            student.hidden_states[0] @ projections.embedding, teacher.hidden_states[0], real
        ),
        similarity=similarity,
    )


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """τ²·KL(teacher ‖ student), the mean over positions [N, V]; 0 without one."""
    if not len(student):
        return student.sum() * 0.0
    own = torch.log_softmax(student / temperature, -1)
    other = torch.log_softmax(teacher / temperature, -1)
    return temperature**2 * (other.exp() * (other - own)).sum(-1).mean()


def mean_pooled(output: Any, mask: Tensor) -> Tensor:
    """[B, D] the mean of the last states of real tokens."""
    real = mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
    total: Tensor = (output.last_hidden_state * real).sum(1)
    return total / real.sum(1)


def _similarities(student: Tensor, teacher: Tensor, together: int) -> Tensor:
    """KL(teacher ‖ student) of softmax(cosines to the other rows / τ), the mean over rows."""
    found = []
    for own, other in zip(student.split(together), teacher.split(together), strict=True):
        if len(own) > 2:  # with one other row there is nothing to tell
            itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
            logits = [
                (normalize(x) @ normalize(x).T / _SIMILARITY_TAU)[~itself].view(len(own), -1)
                for x in (own, other)
            ]
            found.append(_kl(*logits, temperature=1.0) * len(own))
    return torch.stack(found).sum() / len(student) if found else student.sum() * 0.0


def _mse(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Mean square over the real entries of each row, and over rows; mask broadcasts."""
    square = (a - b).square() * mask
    real = mask.expand_as(square).flatten(1).sum(1).clamp(min=1)
    return (square.flatten(1).sum(1) / real).mean()
