"""Impressions made of chosen items and drawn negatives."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.data.loaders.lists import candidate_lists
from raysys.data.loaders.negatives import NegativeRule, Pool, draw_negatives, slates
from raysys.data.schema import SPLITS
from raysys.data.split import SplitArray

Int64Array = npt.NDArray[np.int64]


def derived_lists(
    rule: NegativeRule,
    *,
    items: pa.Array,
    item: Int64Array,
    moment: Int64Array,
    split: SplitArray,
    chosen: npt.NDArray[np.bool_],
    area: Int64Array | None = None,
    offered: npt.NDArray[np.bool_] | None = None,
) -> tuple[pa.Array, pa.Array]:
    """Candidate and click lists of the chosen rows of a log with N rows.

    Args:
        items: item ids that `item` codes [N] index.
        moment: codes [N] of (user, time); of the user alone where there is no time.
        split: split codes [N]; a draw sees only rows up to the end of its split, both for what
            may be drawn and for what the user chose, so that no negative tells a later choice.
        chosen: [N], which rows become impressions.
        area: codes [N] of where each row happened, for rule same-area.
        offered: [N], rows whose items may be drawn; all by default.
    """
    where = area if area is not None and rule.rule == "same-area" else np.zeros_like(item)
    positive = np.flatnonzero(chosen)
    owners, drawn = [], []
    for code in range(len(SPLITS)):
        mine = np.flatnonzero(split[positive] == code)
        seen = split <= code
        drawable = seen if offered is None else seen & offered
        pool = _pool(rule, item[drawable], where[drawable])
        rows = positive[mine]
        # Each split has a stream of its own.
        seeded = rule.model_copy(update={"seed": (rule.seed * len(SPLITS) + code) % (1 << 63)})
        taken = moment[seen], item[seen]
        owner, found = draw_negatives(seeded, pool, moment[rows], where[rows], taken)
        owners.append(mine[owner])
        drawn.append(found)
    owner, code_of, label = slates(
        rule, item[positive], np.concatenate(owners), np.concatenate(drawn)
    )
    return candidate_lists(owner, items.take(pa.array(code_of)), label, len(positive))


def _pool(rule: NegativeRule, item: Int64Array, area: Int64Array) -> Pool:
    size = int(item.max(initial=0)) + 1
    key, count = np.unique(area * size + item, return_counts=True)
    weight = count.astype(np.float64) if rule.rule == "popularity" else np.ones(len(key))
    return Pool(item=key % size, area=key // size, weight=weight)
