"""Candidate rows of chosen impressions, as the flat columns every baseline works on."""

from dataclasses import dataclass

import numpy as np

from raysys.data.histories import UNKNOWN_TS
from raysys.data.prepared import Prepared
from raysys.metrics.blocks import Ints


@dataclass(frozen=True)
class Rows:
    """R candidate rows of I impressions, impression by impression.

    impression: [R] index into the data set's impressions. item: [R] item rows. click: [R] 0/1.
    start, end: [R] pointers to the history before the request. ts: [R] µs, UNKNOWN_TS if null.
    """

    impression: Ints
    item: Ints
    click: Ints
    start: Ints
    end: Ints
    ts: Ints

    @classmethod
    def of(cls, data: Prepared, impressions: Ints) -> "Rows":
        """All candidates of these impressions, in that order."""
        log = data.impressions
        flat = log.rows(impressions)
        owner = np.repeat(impressions, log.offsets[impressions + 1] - log.offsets[impressions])
        return cls(
            impression=owner,
            item=log.item[flat].astype(np.int64),
            click=log.click[flat].astype(np.int64),
            start=log.start[owner],
            end=log.end[owner],
            ts=log.ts[owner],
        )

    def __len__(self) -> int:
        return int(self.item.size)


def is_timed(data: Prepared) -> bool:
    """Whether every impression has a time; folds of a timeless set have none."""
    return not bool((data.impressions.ts == UNKNOWN_TS).any())
