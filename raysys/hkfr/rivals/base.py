"""What every arm of next-order prediction is."""

from typing import Protocol

import numpy as np

from raysys.hkfr.next_task import Ints, NextTask
from raysys.metrics.blocks import Floats


class NextRanker(Protocol):
    """Learns from the questions of training, and ranks all candidates for others.

    A score may look at nothing of its own question but what lies before the cut, and at the place
    and the time of day where it is asked. For a user without any event it is popularity.
    """

    def fit(self, train: NextTask, valid: NextTask, seed: int) -> None:
        """Learn; `valid` only says when to stop."""
        ...

    def scores(self, queries: NextTask) -> Floats:
        """[Q, V], higher is better."""
        ...


def popularity(train: NextTask) -> Floats:
    """[V] share of each candidate among the training answers."""
    target = train.target[train.target >= 0]
    return np.bincount(target, minlength=len(train.names)) / max(1, len(target))


def pair_counts(row: Ints, column: Ints, shape: tuple[int, int]) -> Floats:
    """How often each (row, column) occurs, float64 of this shape."""
    flat = np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1])
    return flat.reshape(shape).astype(np.float64)
