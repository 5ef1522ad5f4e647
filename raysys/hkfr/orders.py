"""Orders, each as one thing, and what an order is mainly of (§2.3: one sample per order).

A data set has no column for baskets: the lines of an order are a user's events of behaviour
`order` at one moment, and loaders of sets with baskets give all lines of a basket one time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.contexts import FIRST
from raysys.data.features import text_column
from raysys.data.prepared import Prepared, item_rows
from raysys.data.schema import BEHAVIOURS
from raysys.data.spans import bounds
from raysys.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]
_MONEY = 1000  # values are compared as whole thousandths, in which sums are exact
_COLUMNS = ["user_id", "ts", "tz_offset_min", "item_id", "value", "context"]


@dataclass(frozen=True)
class ItemValues:
    """What items are: names [V] ascending; code [2 + N] of each item row, −1 without a value."""

    names: tuple[str, ...]
    code: Ints

    @classmethod
    def of(cls, data: Prepared, source: str) -> "ItemValues":
        """The values of `category:LEVEL` (0 = root), brand, item_id, area or attribute:NAME.

        Raises:
            ConfigError: an unknown source, or one that no item has.
        """
        column = text_column(data.dataset.table("items"), source)
        names = sorted(name for name in pc.unique(column).to_pylist() if name is not None)
        if not names:
            raise ConfigError(f"{data.dataset.path}: no item has a {source}; choose another target")
        found = pc.index_in(column, value_set=pa.array(names, pa.string())).fill_null(-1)
        code = np.full(FIRST + len(column), -1, np.int64)
        code[FIRST:] = np.where(column.is_valid(), found, -1)
        return cls(tuple(names), code)


@dataclass(frozen=True)
class Orders:
    """O orders with M lines in all, by user row, then time; order o owns begin[o]:begin[o + 1].

    user [O] rows of the histories' users; ts [O] µs UTC; tz [O] minutes that local time adds;
    context [O, F] codes of the data's codec; begin [O + 1]; item [M] item rows; value [M], NaN
    where the log tells none.
    """

    user: Ints
    ts: Ints
    tz: Ints
    context: npt.NDArray[np.int32]
    begin: Ints
    item: Ints
    value: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """O."""
        return len(self.user)

    @classmethod
    def read(cls, data: Prepared, behaviour: str = "order") -> "Orders":
        """The orders of a data set; another `behaviour` may stand for them, as `checkin`.

        Raises:
            ConfigError: no such behaviour.
            DataError: no event of it, or one without a time.
        """
        if behaviour not in BEHAVIOURS:
            raise ConfigError(f"no behaviour {behaviour!r}; there are {', '.join(BEHAVIOURS)}")
        files, parts = data.dataset.files("events"), []
        events = data.dataset.parts("events", [*_COLUMNS, "behaviour"])
        for path, part in zip(files, events, strict=True):
            lines = part.filter(pc.equal(part["behaviour"], behaviour))
            if lines["ts"].null_count:
                raise DataError(
                    f"{path}: an event of behaviour {behaviour} has no ts; which order is the "
                    "next one needs times"
                )
            parts.append(lines.select(_COLUMNS))
        if not sum(map(len, parts)):
            raise DataError(f"{data.dataset.path}: no event of behaviour {behaviour}")
        lines = pa.concat_tables(parts)
        # Events lie by user and time, so an order's lines are neighbours.
        user, ts = data.histories.rows(lines["user_id"]), lines["ts"].to_numpy()
        first = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (ts[1:] != ts[:-1])])
        context = pa.concat_arrays(lines["context"].take(pa.array(first)).chunks)
        return cls(
            user=user[first],
            ts=ts[first],
            tz=lines["tz_offset_min"].fill_null(0).to_numpy().astype(np.int64)[first],
            context=data.codec.encode(context),
            begin=bounds(np.diff(first, append=len(user))),
            item=item_rows(data.item_ids, lines["item_id"]).astype(np.int64),
            value=lines["value"].to_numpy().astype(np.float64),
        )

    def main(self, values: ItemValues) -> Ints:
        """What each order [O] is mainly of, as codes of `values`; −1 where no line has one.

        The value with the most money in the order, where all its lines tell their `value`; else
        the one with the most lines. Ties go to the first name.
        """
        order = np.repeat(np.arange(len(self)), np.diff(self.begin))
        told = np.bincount(order, np.isnan(self.value), len(self)) == 0
        money = np.rint(np.nan_to_num(self.value) * _MONEY).astype(np.int64)
        weight = np.where(told[order], money, 1)
        code = values.code[self.item]
        known = code >= 0
        size = len(values.names)
        pair, place = np.unique(order[known] * size + code[known], return_inverse=True)
        total = np.zeros(len(pair), np.int64)
        np.add.at(total, place, weight[known])
        # The best pair of each order comes first; the sort is stable, so the first name wins.
        owner = pair // size
        ranked = np.lexsort((-total, owner))
        lead = ranked[np.flatnonzero(np.r_[True, owner[ranked][1:] != owner[ranked][:-1]])]
        out = np.full(len(self), -1, np.int64)
        if len(pair):
            out[owner[lead]] = pair[lead] % size
        return out
