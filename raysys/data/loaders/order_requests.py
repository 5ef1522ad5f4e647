"""Requests of logs that record orders: one per order, for the line that weighs most.

The lines of an order are a user's events of behaviour `order` at one moment.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raysys.data.loaders.base import Options
from raysys.data.loaders.derived import derived_lists
from raysys.data.loaders.lists import codes_of, pair_codes
from raysys.data.loaders.negatives import NegativeRule
from raysys.data.loaders.reading import combined
from raysys.data.split import TimeCut, split_by_time, split_names
from raysys.errors import DataError

Int64Array = npt.NDArray[np.int64]


class OrderOptions(Options):
    """Shares of the orders that are tested and validated, by time; which negatives are drawn."""

    valid_share: float = Field(0.1, gt=0, lt=1)
    test_share: float = Field(0.2, gt=0, lt=1)
    rule: Literal["uniform", "popularity"] = "popularity"
    negatives: int = Field(19, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_to_train(self) -> "OrderOptions":
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share and test_share leave nothing to train on")
        return self

    @property
    def cut(self) -> TimeCut:
        """Where the log is cut."""
        return TimeCut(valid_share=self.valid_share, test_share=self.test_share)

    @property
    def negative_rule(self) -> NegativeRule:
        """How negatives are drawn."""
        return NegativeRule(rule=self.rule, count=self.negatives, seed=self.seed)


def main_lines(events: pa.Table) -> Int64Array:
    """The row of most `value` of each order [O], ascending; of equal ones that of the first id.

    events: user_id, ts, item_id, behaviour, value.

    Raises:
        DataError: there are no orders.
    """
    bought = pc.equal(combined(events["behaviour"]), "order").to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(bought)
    if not len(rows):
        raise DataError("no orders in the log, or none of the chosen users; choose more users")
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
    log: pa.Table,
    lines: Int64Array,
    *,
    bounds: tuple[int, int],
    offered: npt.NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Impressions [O], without ids, whose only click and order is the item of a line.

    Args:
        rule: of the negatives.
        log: N rows with user_id, item_id, and ts, tz_offset_min and context of the request that
            each would make.
        lines: rows [O] of the log, ascending, as `main_lines` gives them.
        bounds: µs, where validation and test begin.
        offered: [N], whose items may be negatives; all by default.
    """
    ids, ts = combined(log["item_id"]), log["ts"].to_numpy()
    split = split_by_time(ts, bounds)
    chosen = np.zeros(len(log), bool)
    chosen[lines] = True
    candidates, clicks = derived_lists(
        rule,
        items=ids.unique(),
        item=codes_of(ids),
        moment=pair_codes(codes_of(combined(log["user_id"])), ts),
        split=split,
        chosen=chosen,
        offered=offered,
    )
    taken = log.select(["user_id", "ts", "tz_offset_min", "context"]).take(pa.array(lines))
    return pa.table(
        {
            **{name: taken[name] for name in taken.column_names},
            "candidates": candidates,
            "clicks": clicks,
            "orders": clicks,
            "split": split_names(split[lines]),
        }
    )
