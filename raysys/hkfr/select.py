"""Which of a user's events are told: at most 300, shared out over their kinds (§2.2)."""

from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def chosen(
    groups: Ints,
    orders: npt.NDArray[np.bool_],
    limit: int,
    order_share: float,
    how: Literal["quota", "recent"],
) -> Ints:
    """Places, ascending, of at most `limit` of E events in time order.

    groups: [E] number of each event's (behaviour, scenario). orders: [E] whether it is an order.
    `quota`: orders get `order_share` of the limit, all other groups equal shares of the rest, each
    its newest events; what a group cannot fill goes to the others.
    """
    if len(groups) <= limit or how == "recent":
        return np.arange(max(0, len(groups) - limit), len(groups))
    sizes = np.bincount(groups)
    ordered = np.zeros(len(sizes), bool)
    ordered[groups[orders]] = True
    quota = _shared(np.where(ordered, sizes, 0), ceil(order_share * limit))
    quota += _shared(np.where(ordered, 0, sizes), limit - int(quota.sum()))
    quota += _shared(sizes - quota, limit - int(quota.sum()))
    newest = [
        np.flatnonzero(groups == g)[len_ - q :]
        for g, (len_, q) in enumerate(zip(sizes, quota, strict=True))
        if q
    ]
    return np.sort(np.concatenate(newest))


def _shared(sizes: Ints, total: int) -> Ints:
    """Shares [G] of `total` for groups of these sizes [G]: as equal as their sizes allow."""
    shares = np.zeros_like(sizes)
    while (left := min(total, int(sizes.sum())) - int(shares.sum())) > 0:
        unfilled = np.flatnonzero(shares < sizes)
        each = left // len(unfilled)
        if not each:
            shares[unfilled[:left]] += 1
            break
        shares[unfilled] = np.minimum(sizes[unfilled], shares[unfilled] + each)
    return shares
