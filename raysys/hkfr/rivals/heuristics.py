"""The repeat heuristics that dominate food ordering (§4, cautions): no weights, but counts.

A user without orders gets popularity from each.
Notation: Q questions, V candidates, P (question, earlier order) pairs.
"""

import numpy as np
import pyarrow as pa

from raysys.data.contexts import FIRST
from raysys.data.loaders.lists import codes_of
from raysys.data.loaders.local_time import local_part
from raysys.data.split import DAY_US
from raysys.errors import ConfigError
from raysys.hkfr.next_task import Ints, NextTask
from raysys.hkfr.rivals.base import pair_counts, popularity
from raysys.metrics.blocks import Floats


class AreaPopularity:
    """What is ordered where the user is, backed off to what is ordered anywhere.

    area: the context feature that names the place; None: the same place for all. strength: how many
    orders the popularity of all places weighs.
    """

    def __init__(self, area: str | None = None, strength: float = 10.0) -> None:
        self.area, self.strength = area, strength

    def fit(self, train: NextTask, valid: NextTask, seed: int) -> None:
        """Count.

        Raises:
            ConfigError: the data have no such context feature.
        """
        self.share = popularity(train)
        place = self._place(train)
        told = train.target >= 0
        places = self._places(train)
        self.counts = pair_counts(place[told], train.target[told], (places, len(train.names)))

    def scores(self, queries: NextTask) -> Floats:
        """[Q, V] (orders there + strength · share) / (all orders there + strength)."""
        there = self.counts[self._place(queries)]
        total = there.sum(1, keepdims=True) + self.strength
        return (there + self.strength * self.share) / total

    def _column(self, task: NextTask) -> int:
        names = task.histories.codec.names
        if self.area not in names:
            raise ConfigError(f"no context feature {self.area!r}; there are {', '.join(names)}")
        return names.index(self.area)

    def _places(self, task: NextTask) -> int:
        if self.area is None:
            return FIRST
        return task.histories.codec.features[self._column(task)].cardinality

    def _place(self, task: NextTask) -> Ints:
        """[Q] code of the place; a missing one is a place of its own."""
        if self.area is None:
            return np.zeros(len(task), np.int64)
        return task.orders.context[task.row, self._column(task)].astype(np.int64)


class OwnHabit:
    """Frequency × recency × mealtime of the user's earlier orders.

    An order of age d days weighs 2^(−d / half_life), and `meal` times more if it was made at the
    mealtime of the question. half_life None: only how often counts; 0: only which was last.
    strength: how many orders popularity weighs; by default it only breaks ties.
    """

    def __init__(
        self, half_life: float | None = None, meal: float = 0.0, strength: float = 1e-6
    ) -> None:
        self.half_life, self.meal, self.strength = half_life, meal, strength

    def fit(self, train: NextTask, valid: NextTask, seed: int) -> None:
        """Nothing is learned but popularity."""
        self.share = popularity(train)

    def scores(self, queries: NextTask) -> Floats:
        """[Q, V] weights of earlier orders + strength · share."""
        owner, row = queries.earlier()
        shape = len(queries), len(queries.names)
        weight, pair = np.zeros(shape), (owner, queries.label[row])
        if self.half_life == 0:
            np.maximum.at(weight, pair, 1.0 / (queries.row[owner] - row))  # age in orders
        else:
            np.add.at(weight, pair, self._weight(queries, owner, row))
        return weight + self.strength * self.share

    def _weight(self, queries: NextTask, owner: Ints, row: Ints) -> Floats:
        ts = queries.orders.ts
        weight: Floats = np.ones(len(row))
        if self.half_life is not None:
            age = (ts[queries.row[owner]] - ts[row]) / DAY_US
            weight = np.exp2(-age / self.half_life)
        if self.meal:
            meal = codes_of(local_part("mealtime", pa.array(ts), queries.orders.tz))
            weight = weight * (1.0 + self.meal * (meal[queries.row[owner]] == meal[row]))
        return weight


class Markov:
    """First order: what follows what the user ordered last, backed off to popularity.

    strength: how many orders popularity weighs.
    """

    def __init__(self, strength: float = 5.0) -> None:
        self.strength = strength

    def fit(self, train: NextTask, valid: NextTask, seed: int) -> None:
        """Count pairs of neighbours."""
        self.share = popularity(train)
        last, size = self._last(train), len(train.names)
        told = train.target >= 0
        self.counts = pair_counts(last[told], train.target[told], (size + 1, size))
        self.counts[size] = 0  # nothing follows nothing: popularity

    def scores(self, queries: NextTask) -> Floats:
        """[Q, V] (times that v followed + strength · share) / (all that followed + strength)."""
        after = self.counts[self._last(queries)]
        return (after + self.strength * self.share) / (after.sum(1, keepdims=True) + self.strength)

    @staticmethod
    def _last(task: NextTask) -> Ints:
        """[Q] the label of the newest earlier order that has one; V without one."""
        owner, row = task.earlier()
        out = np.full(len(task), len(task.names), np.int64)
        out[owner] = task.label[row]  # the newest is written last
        return out
