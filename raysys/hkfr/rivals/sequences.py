"""Histories as sequences for neural rivals, and what all of these share.

Every model reads the same events, oldest first: what it was (the candidate of the event's item),
which behaviour, how long before the cut. It gives the state of the history; candidates are scored
by log popularity + state · embedding, so that a user without events gets popularity.
Notation: B questions, L events, D width, V candidates.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raysys.hkfr.next_task import FIRST_TOKEN, Ints, NextTask

AGES = 16  # buckets of log2 hours before the cut: the last begins after two years
_NO_ANSWER = -100


class SequenceBatch(NamedTuple):
    """token, kind, age [B, L] int64, oldest event first, 0 behind the newest; mask [B, L] bool,
    True = a real event; user [B] int64, 0 for one whom training did not meet; target [B] int64."""

    token: Tensor
    kind: Tensor
    age: Tensor
    mask: Tensor
    user: Tensor
    target: Tensor


@dataclass(frozen=True)
class Sequences:
    """Reads questions as batches; fitted on training questions.

    kind_of: kind by code of `BEHAVIOURS`, from 1; 0 for those that training did not meet, and for
    all where behaviours are not to be told apart.
    user_of: [U] by row of the histories' users, from 1. length: newest events that are read.
    """

    kind_of: Ints
    user_of: Ints
    length: int

    @classmethod
    def fit(cls, train: NextTask, length: int, *, typed: bool) -> "Sequences":
        """Number the kinds and the users of training."""
        histories = train.histories
        met = histories.behaviour[histories.ts < train.bounds[0]] if typed else np.zeros(0)
        return cls(
            kind_of=_numbered(np.unique(met).astype(np.int64), int(np.iinfo(np.int8).max)),
            user_of=_numbered(np.unique(train.user), len(histories.users)),
            length=length,
        )

    @property
    def kinds(self) -> int:
        """Kinds, 0 included."""
        return int(self.kind_of.max(initial=0)) + 1

    @property
    def users(self) -> int:
        """Users, 0 included."""
        return int(self.user_of.max(initial=0)) + 1

    def batch(self, task: NextTask, chosen: Ints) -> SequenceBatch:
        """Chosen questions of a task."""
        window = task.window(chosen, self.length)
        hours = np.maximum(window.age_s, 0) / 3600
        age = np.minimum(np.log2(1 + hours).astype(np.int64), AGES - 1)
        counts = window.mask.sum(1)
        columns = (
            *(
                _oldest_first(column, counts)
                for column in (window.items, self.kind_of[window.behaviour], age, window.mask)
            ),
            self.user_of[task.user[chosen]],
            task.target[chosen],
        )
        return SequenceBatch(*map(torch.from_numpy, columns))


def _numbered(values: Ints, size: int) -> Ints:
    out = np.zeros(size, np.int64)
    out[values] = np.arange(1, len(values) + 1)
    return out


def _oldest_first(values: npt.NDArray[np.generic], counts: Ints) -> npt.NDArray[np.generic]:
    """Rows [B, L] whose first `counts` entries, newest first, are turned round; 0 behind."""
    place = counts[:, None] - 1 - np.arange(values.shape[1])
    turned = np.take_along_axis(values, np.maximum(place, 0), 1)
    return np.where(place >= 0, turned, np.zeros((), values.dtype))


class EventEmbedding(nn.Module):
    """Σ of the embeddings of token, kind, age and place from the newest event; padding is zero."""

    def __init__(
        self, candidates: int, kinds: int, length: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        # One row more than tokens: the mask that a Cloze puts in the place of a token.
        self.mask_token = FIRST_TOKEN + candidates
        self.token = nn.Embedding(self.mask_token + 1, width)
        self.kind = nn.Embedding(kinds, width)
        self.age = nn.Embedding(AGES, width)
        self.place = nn.Embedding(length + 1, width)
        self.dropout = nn.Dropout(dropout)
        for table in self.children():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=width**-0.5)

    def forward(self, token: Tensor, kind: Tensor, age: Tensor, mask: Tensor) -> Tensor:
        """Arguments [B, L] as in `SequenceBatch` → [B, L, D]."""
        place = mask.sum(1, keepdim=True) - 1 - torch.arange(token.shape[1], device=token.device)
        x = self.token(token) + self.kind(kind) + self.age(age) + self.place(place.clamp(min=0))
        return self.dropout(x) * mask.unsqueeze(-1)


class SequenceModel(nn.Module, ABC):
    """A model of the state of a history.

    Args:
        log_popularity: [V] of training answers.
        sizes: what the data are numbered by.
        width: D.
        dropout: of embeddings and layers.
    """

    def __init__(
        self, log_popularity: Tensor, sizes: Sequences, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.log_popularity: Tensor
        self.register_buffer("log_popularity", log_popularity)
        self.events = EventEmbedding(len(log_popularity), sizes.kinds, sizes.length, width, dropout)

    @abstractmethod
    def state(self, batch: SequenceBatch) -> Tensor:
        """[B, D] of histories with at least one event; anything for empty ones."""

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Scores [B, V]."""
        some = batch.mask.any(1, keepdim=True)
        return self.logits(self.state(batch) * some)

    def logits(self, state: Tensor) -> Tensor:
        """[..., D] → [..., V]."""
        candidates = self.events.token.weight[FIRST_TOKEN : self.events.mask_token]
        return state @ candidates.T + self.log_popularity

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """(sum of cross-entropies of the answers, number of questions)."""
        loss = cross_entropy(self(batch), batch.target, reduction="sum")
        return loss, torch.tensor(float(len(batch.target)))


def newest(states: Tensor, mask: Tensor) -> Tensor:
    """States [B, L, D] of histories, oldest first → that of the newest event [B, D]."""
    last = (mask.sum(1) - 1).clamp(min=0)
    return states[torch.arange(len(states), device=states.device), last]


def token_answers(token: Tensor, asked: Tensor) -> Tensor:
    """Candidates [B, L] of tokens where `asked`; −100 elsewhere, and for no candidates."""
    return torch.where(asked & (token >= FIRST_TOKEN), token - FIRST_TOKEN, _NO_ANSWER)
