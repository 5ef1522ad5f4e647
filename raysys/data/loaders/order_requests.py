"""Requests of logs that record orders: one per order, for the line that weighs most.

The lines of an order are a user's events of behaviour `order` at one moment.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.derived import derived_lists
from raysys.data.loaders.lists import codes_of, pair_codes
from raysys.data.loaders.negatives import NegativeRule
from raysys.data.loaders.reading import combined
from raysys.data.split import SplitArray, split_names

Int64Array = npt.NDArray[np.int64]


def main_lines(events: pa.Table) -> Int64Array:
    """The row of most `value` of each order [O], ascending; of equal ones that of the first id.

    events: user_id, ts, item_id, behaviour, value.
    """
    bought = pc.equal(combined(events["behaviour"]), "order").to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(bought)
    lines = events.take(pa.array(rows))
    user = codes_of(combined(lines["user_id"]))
    keys = {
        "order": pair_codes(user, lines["ts"].to_numpy()),
        "value": pc.negate(lines["value"].fill_null(0.0)),
        "item": lines["item_id"],
    }
    ranked = pc.sort_indices(pa.table(keys), sort_keys=[(key, "ascending") for key in keys])
    order = keys["order"][ranked.to_numpy()]
    return np.sort(rows[ranked.to_numpy()[np.flatnonzero(np.diff(order, prepend=-1))]])


def order_requests(
    rule: NegativeRule,
    events: pa.Table,
    lines: Int64Array,
    *,
    asked: pa.Array,
    offered: npt.NDArray[np.bool_],
    split: SplitArray,
) -> pa.Table:
    """Impressions [O], without ids, whose only click and order is the item of a line.

    Args:
        rule: of the negatives.
        events: N rows with user_id, ts, tz_offset_min, item_id, context.
        lines: event rows [O], ascending, as `main_lines` gives them.
        asked: µs UTC [O], when each request is made.
        offered: [N], whose items may be negatives.
        split: codes [N]; those of `lines` are the requests'.
    """
    ids = combined(events["item_id"])
    chosen = np.zeros(len(events), bool)
    chosen[lines] = True
    candidates, clicks = derived_lists(
        rule,
        items=ids.unique(),
        item=codes_of(ids),
        moment=pair_codes(codes_of(combined(events["user_id"])), events["ts"].to_numpy()),
        split=split,
        chosen=chosen,
        offered=offered,
    )
    taken = events.select(["user_id", "tz_offset_min", "context"]).take(pa.array(lines))
    return pa.table(
        {
            **{name: taken[name] for name in taken.column_names},
            "ts": asked,
            "candidates": candidates,
            "clicks": clicks,
            "orders": clicks,
            "split": split_names(split[lines]),
        }
    )
