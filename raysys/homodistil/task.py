"""Distillation as a task of the training loop: losses, scores, and smaller shapes on time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from raysys.errors import ConfigError
from raysys.homodistil.activations import Activations
from raysys.homodistil.groups import Kind
from raysys.homodistil.losses import Distances, LossWeights, distances, mean_pooled
from raysys.homodistil.plan import Event
from raysys.homodistil.rows import Rows
from raysys.homodistil.student import Student
from raysys.training import World

_AT_ONCE = 16


class DistillTask:
    """L of every row of a batch, the rows' mean being the loss.

    planned: when the student becomes thinner. layers: the teacher's layer of each of the student's,
    the same by default. together: so many rows are compared with each other. masked: labels are of
    the very tokens, else of the next ones. A model without an LM head, a sentence encoder, is held
    against the mean of its teacher's last states instead of the task and the teacher's predictions.
    """

    def __init__(
        self,
        student: Student,
        teacher: nn.Module,
        weights: LossWeights,
        planned: Sequence[Event],
        held_out: Rows,
        *,
        masked: bool,
        layers: Sequence[int] | None = None,
        together: int = 1,
    ) -> None:
        self.model, self.teacher = student, teacher.eval().requires_grad_(False)
        self.weights, self.held_out, self.masked = weights, held_out, masked
        self.planned, self.layers = {event.step: event for event in planned}, layers
        self.goal = planned[-1].sizes if planned else None
        self.together, self.headed = together, headed(teacher)
        self.taught = taught(weights, teacher)
        self._more: dict[str, Any] = dict(output_hidden_states=True)
        if weights.attention:
            self._more["output_attentions"] = True

    def loss(self, batch: Rows) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        rows = len(batch.input_ids)
        if self.taught:
            task, found = self.parts(batch)
            total = self.weights.task * task + found.total(self.weights)
        else:
            self.model.steady()
            own = self.model.net(input_ids=batch.input_ids, attention_mask=batch.mask.long())
            total = self.weights.task * self._task(own, self._labels(batch))
        return total * rows, torch.tensor(float(rows))

    def parts(self, batch: Rows) -> tuple[Tensor, Distances]:
        """L_task and the distances, each the mean over the batch's rows; every row predicts
        equally many tokens, so that means over tokens are means over rows."""
        self.model.steady()
        given = dict(input_ids=batch.input_ids, attention_mask=batch.mask.long(), **self._more)
        own = self.model.net(**given)
        heads = self.model.heads()
        if self.model.masks is not None and getattr(own, "attentions", None):
            own.attentions = tuple(
                maps[:, heads[layer].to(maps.device)] for layer, maps in enumerate(own.attentions)
            )
        self.teacher.to(batch.input_ids.device)  # the loop moves the student only
        with torch.no_grad():
            other = self.teacher(**given)
        labels = self._labels(batch)
        found = distances(
            own,
            other,
            self.model.projections,
            batch.mask,
            labels != -100,
            temperature=self.weights.temperature,
            heads=heads,
            layers=self.layers,
            together=self.together,
        )
        if getattr(own, "logits", None) is not None:
            return self._task(own, labels), found
        pooled = mean_pooled(own, batch.mask) @ self.model.projections.hidden[-1]
        return 1 - cosine_similarity(pooled, mean_pooled(other, batch.mask)).mean(), found

    def _answer(self, batch: Rows, generator: torch.Generator) -> Tensor:
        given = dict(input_ids=batch.input_ids, attention_mask=batch.mask.long())
        pooled = normalize(mean_pooled(self.model.net(**given), batch.mask), dim=-1)
        draw = torch.randn(pooled.shape, generator=generator).to(pooled.device)
        return (pooled * draw).sum()

    def _labels(self, batch: Rows) -> Tensor:
        if self.masked:
            return batch.labels
        labels = torch.full_like(batch.labels, -100)
        labels[:, :-1] = batch.labels[:, 1:]
        return labels

    @staticmethod
    def _task(own: Any, labels: Tensor) -> Tensor:
        return cross_entropy(own.logits.flatten(0, 1), labels.flatten())

    def validate(self, world: World) -> dict[str, float]:
        """What `measure` finds on the held-out rows, the same for every student."""
        return self.measure(self.held_out)

    def measure(self, held: Rows) -> dict[str, float]:
        """`loss`, `hidden`, and `kl` or of a sentence encoder `similarity`; `share`: of the
        teacher's weights that are left."""
        sums = np.zeros(5)
        for begin in range(0, len(held.input_ids), _AT_ONCE):
            device = next(self.model.parameters()).device
            part = Rows(*(rows[begin : begin + _AT_ONCE].to(device) for rows in held))
            task, found = self.parts(part)
            values = (task, found.kl, found.hidden, found.similarity)
            sums += len(part.input_ids) * np.array([*map(float, values), 1])
        own, whole = self.model.count(), sum(p.numel() for p in self.teacher.parameters())
        names = ("loss", "kl", "hidden", "similarity")
        found_here = dict(zip(names, sums[:4] / sums[4], strict=True))
        del found_here["similarity" if self.headed else "kl"]
        return {**found_here, "share": own / whole}

    # ------------------------------------------------------- see `Shrinking`

    def observe(self, scale: float) -> None:
        """Bring the scores up to date, while they are still asked for."""
        if self.planned and self.model.sizes() != self.goal:
            self.model.scores.update(self.model.net, scale)

    def shrink(self, step: int, steps: int) -> Mapping[str, Mapping[int, Tensor]] | None:
        """What is planned."""
        self.model.scores.settle(self.model.net)
        event = self.planned.get(step)
        return None if event is None else self.model.prune(event.sizes, last=event.last)

    def reshape(self, stored: Mapping[str, Tensor]) -> None:
        """Lose what had been lost."""
        self.model.reshape(stored)

    # ---------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Rows], goal: Mapping[Kind, int]) -> None:
        """Prune before the first step, by scores of so many batches that nothing learns from.

        The loss of an uncut encoder is 0 and so is its gradient: it is scored by how its vectors
        answer instead, the gradient of v·pooled with v drawn anew for every row. The expected
        square of that is what the squared distance of the vectors grows by (Gauss and Newton).

        Raises:
            ConfigError: no loss by which anything could be scored.
        """
        student, units = self.model, None
        student.train()
        if student.scores.kind == "activation":
            with Activations(student.net, student.groups) as found, torch.no_grad():
                for batch in batches:
                    found.mask = batch.mask
                    student.net(input_ids=batch.input_ids, attention_mask=batch.mask.long())
            units = found.sums
        else:
            generator = torch.Generator().manual_seed(student.seed)
            for batch in batches:
                rows = len(batch.input_ids)
                total = self.loss(batch)[0] if self.headed else self._answer(batch, generator)
                if not float(total.detach()) and student.scores.kind != "magnitude":
                    raise ConfigError(
                        "calibration: the loss of an uncut student is 0; give loss.task a weight"
                    )
                total.backward()
                student.scores.update(student.net, 1.0 / rows)
                student.scores.settle(student.net)
                student.zero_grad(set_to_none=True)
        student.prune(goal, last=True, units=units)


def headed(model: nn.Module) -> bool:
    """Whether a model predicts tokens."""
    return type(model).__name__.endswith(("ForCausalLM", "ForMaskedLM"))


def taught(weights: LossWeights, teacher: nn.Module) -> bool:
    """Whether the teacher is asked for anything that is learned from."""
    asked = (weights.kl, weights.hidden, weights.attention, weights.embedding)
    return not headed(teacher) or any(asked)
