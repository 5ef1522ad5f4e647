"""Histories for logs without time, split by folds over rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysys.data.loaders.lists import running_number
from raysys.data.split import TEST, TRAIN


@dataclass(frozen=True)
class FoldHistory:
    """rows [E]: source rows that are events, in event order (users ascending, training part
    first, then valid; never test); end [N]: exclusive history end of each source row."""

    rows: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]


def fold_history(
    owner: npt.NDArray[np.int64], split: npt.NDArray[np.int8], positive: npt.NDArray[np.bool_]
) -> FoldHistory:
    """Which rows are history, and how far each row may look.

    A training row sees the user's positives among the training rows before it, a valid row all
    those of the training part, a test row those of the training and valid parts: nobody sees his
    own label, and nothing of the test fold is ever an event.

    Args:
        owner: user codes [N]; rows of a user keep their order.
        split: split codes [N].
        positive: [N], whether the row becomes an event.
    """
    order = np.lexsort((np.arange(len(owner)), split, owner))
    is_event = (positive & (split != TEST))[order]
    before = np.concatenate([[0], np.cumsum(is_event)])[:-1]
    # Positives of the same user before this row, in (train, valid, test) order.
    start = before[np.arange(len(owner)) - running_number(owner[order])]
    seen = before - start
    part = owner[order] * (TEST + 1) + split[order]
    at_part_start = seen[np.arange(len(owner)) - running_number(part)]
    end = np.empty(len(owner), np.int64)
    end[order] = np.where(split[order] == TRAIN, seen, at_part_start)
    return FoldHistory(rows=order[is_event], end=end)
