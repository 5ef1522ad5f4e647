"""Distillation as a task of the training loop: losses, scores, and smaller shapes on time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from raysys.homodistil.groups import Kind
from raysys.homodistil.losses import Distances, LossWeights, distances
from raysys.homodistil.rows import Rows
from raysys.homodistil.schedule import Schedule
from raysys.homodistil.student import Student
from raysys.training import World

_AT_ONCE = 16


class DistillTask:
    """L of every row of a batch, the rows' mean being the loss.

    goal: units that are left at the end. every: steps between two events, ΔT. masked: labels are of
    the very tokens, else of the next ones. A model without an LM
    head, a sentence encoder, is held against the mean of its teacher's last states instead of the
    task and the teacher's predictions.
    """

    def __init__(
        self,
        student: Student,
        teacher: nn.Module,
        weights: LossWeights,
        schedule: Schedule | None,
        goal: Mapping[Kind, int],
        every: int,
        held_out: Rows,
        *,
        masked: bool,
    ) -> None:
        self.model, self.teacher = student, teacher.eval().requires_grad_(False)
        self.weights, self.schedule, self.goal, self.every = weights, schedule, goal, every
        self.held_out, self.masked = held_out, masked
        self._more: dict[str, Any] = dict(output_hidden_states=True)
        if weights.attention:
            self._more["output_attentions"] = True

    def loss(self, batch: Rows) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        task, found = self.parts(batch)
        rows = len(batch.input_ids)
        total = self.weights.task * task + found.total(self.weights)
        return total * rows, torch.tensor(float(rows))

    def parts(self, batch: Rows) -> tuple[Tensor, Distances]:
        """L_task and the distances, each the mean over the batch's rows; every row predicts
        equally many tokens, so that means over tokens are means over rows."""
        own = self.model.net(input_ids=batch.input_ids, **self._more)
        self.teacher.to(batch.input_ids.device)  # the loop moves the student only
        with torch.no_grad():
            other = self.teacher(input_ids=batch.input_ids, **self._more)
        mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
        labels = batch.labels
        if not self.masked:
            labels = torch.full_like(batch.labels, -100)
            labels[:, :-1] = batch.labels[:, 1:]
        found = distances(
            own,
            other,
            self.model.projections,
            mask,
            labels != -100,
            temperature=self.weights.temperature,
            heads=self.model.heads(),
        )
        if getattr(own, "logits", None) is not None:
            return cross_entropy(own.logits.flatten(0, 1), labels.flatten()), found
        pooled = own.last_hidden_state.mean(1) @ self.model.projections.hidden[-1]
        return 1 - cosine_similarity(pooled, other.last_hidden_state.mean(1)).mean(), found

    def validate(self, world: World) -> dict[str, float]:
        """`loss`, `kl` and `hidden` on held-out rows, the same for every student; `share`: of the
        teacher's weights that are left."""
        sums = np.zeros(4)
        for begin in range(0, len(self.held_out.input_ids), _AT_ONCE):
            device = next(self.model.parameters()).device
            part = Rows(*(rows[begin : begin + _AT_ONCE].to(device) for rows in self.held_out))
            task, found = self.parts(part)
            sums += len(part.input_ids) * np.array(
                [float(task), float(found.kl), float(found.hidden), 1]
            )
        own, whole = (
            sum(p.numel() for p in net.parameters()) for net in (self.model.net, self.teacher)
        )
        names = ("loss", "kl", "hidden")
        return {**dict(zip(names, sums[:3] / sums[3], strict=True)), "share": own / whole}

    # ------------------------------------------------------- see `Shrinking`

    def observe(self, scale: float) -> None:
        """Bring the scores up to date."""
        if self.schedule is not None:
            self.model.scores.update(self.model.net, scale)

    def shrink(self, step: int, steps: int) -> Mapping[str, Mapping[int, Tensor]] | None:
        """An event every ΔT steps, while the schedule asks for it, and where it ends."""
        schedule = self.schedule
        if schedule is None:
            return None
        ends = step >= schedule.end * steps > step - 1
        if step % self.every and not ends:
            return None
        return self.model.prune(self.model.sizes(schedule.remaining(step, steps), self.goal))

    def reshape(self, stored: Mapping[str, Tensor]) -> None:
        """Lose what had been lost."""
        self.model.reshape(stored)
