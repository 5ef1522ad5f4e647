"""Next-order prediction with full ranking (§5): what the next order will mainly be of.

The same questions, histories, candidates and answers for every arm: heuristics, sequence models
and language models.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from raysys.data.histories import Histories, Window
from raysys.data.prepared import Prepared
from raysys.data.schema import SPLITS
from raysys.data.spans import spans
from raysys.data.split import DAY_US, TRAIN, from_iso, split_by_time
from raysys.errors import ConfigError, DataError
from raysys.hkfr.orders import ItemValues, Orders
from raysys.metrics import ranking
from raysys.metrics.blocks import Floats, tie_blocks

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
PADDING, OTHER, FIRST_TOKEN = 0, 1, 2
_MINUTE_US = 60_000_000
_CHUNK = 4096


class NextConfig(BaseModel):
    """What is asked.

    target: a field of items, `category:LEVEL` (0 = root), `brand` or `item_id` (the merchant, where
    items are merchants). behaviour: of what counts as an order. candidates: how many of the most
    frequent values of training orders are ranked. cut: what a history ends before, the local day
    of the order (§2.2, knowledge of day D − 1) or the order itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = "category:0"
    behaviour: str = "order"
    candidates: int = Field(default=300, ge=2, le=300)
    cut: Literal["day", "order"] = "day"


@dataclass(frozen=True)
class NextTask:
    """Q questions over V candidates.

    names: [V] candidates, the most frequent in training first. token: [2 + N] of every item row,
    `OTHER` outside the candidates, `FIRST_TOKEN` + v within. orders, label: all O orders, and the
    candidate [O] each is mainly of, −1 for none. bounds: µs, where validation and test begin.
    Per question: row [Q] of the order that is to be told; cut [Q] µs, nothing from there on is
    known; start, end [Q] event rows of the history; first [Q]: rows first:last of `orders` are
    the user's earlier ones. last [Q]: see first.
    """

    histories: Histories
    names: tuple[str, ...]
    token: Ints
    orders: Orders
    label: Ints
    bounds: tuple[int, int]
    row: Ints
    cut: Ints
    start: Ints
    end: Ints
    first: Ints
    last: Ints

    @classmethod
    def of_data(cls, data: Prepared, config: NextConfig) -> "NextTask":
        """All questions of a data set that is split by time.

        A question is asked once for what it may know: of the orders of one user after one cut,
        the first is the next one.

        Raises:
            ConfigError: the set is not split by time, or `target` has fewer than two values.
            DataError: no orders, or none in some split.
        """
        stated = data.dataset.card.split_bounds
        if set(stated) != {"valid", "test"}:
            raise ConfigError(
                f"{data.dataset.path}: the next order can be asked for only where the data card "
                "states the split_bounds of a split by time"
            )
        edges = from_iso(stated["valid"]), from_iso(stated["test"])
        orders = Orders.read(data, config.behaviour)
        values = ItemValues.of(data, config.target)
        main = orders.main(values)
        known = main[(main >= 0) & (split_by_time(orders.ts, edges) == TRAIN)]
        counts = np.bincount(known, minlength=len(values.names))
        ranked = np.argsort(-counts, kind="stable")[: config.candidates]
        ranked = ranked[counts[ranked] > 0]
        if len(ranked) < 2:
            raise ConfigError(
                f"{data.dataset.path}: training orders have {len(ranked)} values of "
                f"{config.target}; choose another target"
            )
        place = np.full(len(values.names) + 1, -1, np.int64)  # the last: of items without a value
        place[ranked] = np.arange(len(ranked))
        token = np.where(place[values.code] < 0, OTHER, place[values.code] + FIRST_TOKEN)
        token[0] = PADDING
        cut = orders.ts if config.cut == "order" else _midnight(orders)
        same = np.r_[False, orders.user[1:] == orders.user[:-1]]
        later = same & (np.r_[0, orders.ts[:-1]] >= cut)
        row = np.flatnonzero(~later & (main >= 0))
        begin = np.searchsorted(orders.user, orders.user, side="left")
        histories = data.histories
        task = cls(
            histories=histories,
            names=tuple(values.names[code] for code in ranked),
            token=token,
            orders=orders,
            label=place[main],
            bounds=edges,
            row=row,
            cut=cut[row],
            start=histories.begin(orders.user[row]),
            end=histories.end_before(orders.user[row], cut[row]),
            first=begin[row],
            last=row,
        )
        for code, name in enumerate(SPLITS):
            if not (task.split == code).any():
                raise DataError(f"{data.dataset.path}: no next order to ask for in split {name}")
        return task

    def __len__(self) -> int:
        """Q."""
        return len(self.row)

    @property
    def target(self) -> Ints:
        """[Q] candidate that is right, −1 where it is none of them: every arm misses it."""
        return self.label[self.row]

    @property
    def user(self) -> Ints:
        """[Q] rows of the histories' users."""
        return self.orders.user[self.row]

    @property
    def split(self) -> npt.NDArray[np.int8]:
        """[Q] codes of `SPLITS`."""
        return split_by_time(self.orders.ts[self.row], self.bounds)

    def of(self, split: str) -> "NextTask":
        """The questions of one split."""
        return self.take(np.flatnonzero(self.split == SPLITS.index(split)))

    def take(self, chosen: Ints | Mask) -> "NextTask":
        """Some of the questions."""
        per_question = ("row", "cut", "start", "end", "first", "last")
        return replace(self, **{name: getattr(self, name)[chosen] for name in per_question})

    def window(self, chosen: Ints, length: int) -> Window:
        """The newest `length` events before the cut of the chosen questions; items as tokens."""
        found = self.histories.window(
            self.start[chosen], self.end[chosen], length, self.cut[chosen]
        )
        return replace(found, items=np.where(found.mask, self.token[found.items], PADDING))

    def earlier(self) -> tuple[Ints, Ints]:
        """(question [P], order row [P]) of every earlier order that has a label, oldest first."""
        counts = self.last - self.first
        owner, row = np.repeat(np.arange(len(self)), counts), spans(self.first, counts)
        told = self.label[row] >= 0
        return owner[told], row[told]

    def slices(self) -> dict[str, Mask]:
        """[Q] by earlier orders of the user, and whether one of these was of the same (§5)."""
        count = self.last - self.first
        owner, row = self.earlier()
        again = np.bincount(owner, self.label[row] == self.target[owner], len(self)) > 0
        return {
            "orders 0": count == 0,
            "orders 1-2": (count >= 1) & (count <= 2),
            "orders 3-5": (count >= 3) & (count <= 5),
            "orders >5": count > 5,
            "repeat": again,
            "new": ~again,
        }


def _midnight(orders: Orders) -> Ints:
    """Begin of the local day [O], µs UTC."""
    offset = orders.tz * _MINUTE_US
    return (orders.ts + offset) // DAY_US * DAY_US - offset


def full_ranking(
    scores: Floats, target: Ints, cutoffs: tuple[int, ...] = (5, 10)
) -> dict[str, Floats]:
    """`hr@K~full` and `ndcg@K` of each question [Q], exact in ties; 0 where the target is −1.

    scores [Q, V], target [Q]. With one right answer ndcg@K is 1 / log2(rank + 1) within K.

    Raises:
        MetricError: a score that is no finite number.
    """
    out = {f"{name}@{k}{of}": np.zeros(len(target)) for name, of in (("hr", "~full"), ("ndcg", ""))
           for k in cutoffs}  # fmt: skip
    for begin in range(0, len(target), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        rows, width = scores[part].shape
        label = np.arange(width) == target[part][:, None]
        groups = np.repeat(np.arange(rows), width)
        blocks = tie_blocks(scores[part].ravel(), label.ravel(), groups, rows)
        for k in cutoffs:
            out[f"hr@{k}~full"][part] = np.nan_to_num(ranking.hit_rate(blocks, k))
            out[f"ndcg@{k}"][part] = np.nan_to_num(ranking.ndcg(blocks, k))
    return out
