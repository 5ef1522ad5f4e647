"""Clicks and views of items before a moment: the counts behind popularity and past CTR.

A count must never contain the label of the row it describes, nor anything later. Every
impression of the log therefore gets a moment, and a row sees the impressions of strictly earlier
moments only (CatBoost's ordered target statistics, Prokhorenkova et al. 2018):

- frozen, evaluated rows: all of the training split, which is what a trained model knows.
- frozen, training rows: the training split is cut into `BLOCKS` by time, or by a seeded random
  order where there is no time, and a row sees the blocks before its own. So its counts are stale
  as they will be at evaluation. Leaving out only a row's own label instead would let a tree that
  recognises an item read the label off the total.
- streaming: every split, up to the time of the impression.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raysys.data.prepared import Prepared
from raysys.errors import DataError
from raysys.metrics.baselines.rows import Rows, is_timed
from raysys.metrics.blocks import Floats, Ints

Counts = Literal["frozen", "streaming"]

BLOCKS = 10
PRIOR_CLICKS = 1.0
PRIOR_VIEWS = 20.0


@dataclass(frozen=True)
class Moments:
    """moment: [I] of every impression of the data set; `counted`: [n] impressions that count.

    Rows of moment 0 see nothing.
    """

    moment: Ints
    counted: Ints

    @classmethod
    def of(cls, data: Prepared, counts: Counts, seed: int) -> "Moments":
        """Raises DataError if streaming counts are wanted from a set without times."""
        log = data.impressions
        timed = is_timed(data)
        if counts == "streaming":
            if not timed:
                raise DataError(
                    f"{data.dataset.path}: impressions without a time have no streaming counts; "
                    "use frozen counts"
                )
            _, moment = np.unique(log.ts, return_inverse=True)
            return cls(moment.astype(np.int64), np.arange(log.ts.size))
        train = log.of("train")
        if timed:
            ts = log.ts[train]
            # Impressions of one time share a block: none of them is the other's past.
            rank = np.searchsorted(np.sort(ts), ts, side="left")
        else:
            rank = np.random.Generator(np.random.Philox(key=seed)).permutation(train.size)
        moment = np.full(log.ts.size, BLOCKS, np.int64)
        moment[train] = rank * BLOCKS // max(train.size, 1)
        return cls(moment, train)


@dataclass(frozen=True)
class ItemCounts:
    """The counted rows of the log, sorted by item and moment.

    when: [n] item · span + moment. clicks: [n + 1] clicks among the first rows.
    """

    moments: Moments
    span: int
    when: Ints
    clicks: Ints

    @classmethod
    def of(cls, data: Prepared, moments: Moments) -> "ItemCounts":
        """Sort once; every question is then a pair of binary searches."""
        past = Rows.of(data, moments.counted)
        span = int(moments.moment.max(initial=0)) + 1
        when = past.item * span + moments.moment[past.impression]
        order = np.argsort(when, kind="stable")
        clicks = np.concatenate([[0], np.cumsum(past.click[order])])
        return cls(moments, span, when[order], clicks)

    def before(self, rows: Rows) -> tuple[Floats, Floats]:
        """[R] clicks and [R] views of each row's item at earlier moments than the row's own."""
        first = np.searchsorted(self.when, rows.item * self.span)
        own = rows.item * self.span + self.moments.moment[rows.impression]
        last = np.searchsorted(self.when, own)
        clicks = self.clicks[last] - self.clicks[first]
        return clicks.astype(np.float64), (last - first).astype(np.float64)


def smoothed_ctr(clicks: Floats, views: Floats) -> Floats:
    """(c + 1) / (v + 20): an item never shown starts at 5 %."""
    ctr: Floats = (clicks + PRIOR_CLICKS) / (views + PRIOR_VIEWS)
    return ctr
