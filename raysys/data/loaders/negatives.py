"""Candidate lists for logs that record only what was chosen: stated rules, seeded draws."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Int64Array = npt.NDArray[np.int64]
_CHUNK = 65_536
_ROUNDS = 12


class NegativeRule(BaseModel):
    """`count` negatives per positive: any item alike, by popularity, or alike in the same area.

    Drawn without repetition from the items of the log up to the end of the positive's split,
    never one that the user chose at the same moment. What he chose at other times may be
    drawn: leaving it out would tell every repeat from its negatives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["uniform", "popularity", "same-area"] = "uniform"
    count: int = Field(default=19, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _seed_fits(self) -> Self:
        if self.seed >= 1 << 63:
            raise ValueError("seed must be below 2^63")
        return self

    def describe(self) -> str:
        """The rule in words, for a data card."""
        return (
            f"{self.count} per positive, {self.rule}, among items of the log up to the end of the "
            "split, none chosen by the user at that moment"
        )


@dataclass(frozen=True)
class Pool:
    """What may be drawn: item codes [M] with their area codes (all 0 without areas), weights."""

    item: Int64Array
    area: Int64Array
    weight: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Sorted:
    item: Int64Array
    begin: Int64Array  # [areas + 1]
    total: npt.NDArray[np.float64]  # running weight, [M + 1]

    @classmethod
    def of(cls, pool: Pool, areas: int) -> "_Sorted":
        order = np.lexsort((pool.item, pool.area))
        counts = np.bincount(pool.area, minlength=areas)
        return cls(
            item=pool.item[order],
            begin=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            total=np.concatenate([[0.0], np.cumsum(pool.weight[order])]),
        )

    def draw(self, area: Int64Array, width: int, generator: np.random.Generator) -> Int64Array:
        """Items [len(area), width] by weight within each area, −1 where it is empty."""
        low, high = self.total[self.begin[area]], self.total[self.begin[area + 1]]
        point = low[:, None] + generator.random((len(area), width)) * (high - low)[:, None]
        place = np.searchsorted(self.total, point, side="right") - 1
        last = self.begin[area + 1][:, None] - 1
        place = np.minimum(place, last)
        empty = (self.begin[area + 1] == self.begin[area])[:, None]
        return np.where(empty, -1, self.item[np.minimum(place, len(self.item) - 1)])


def draw_negatives(
    rule: NegativeRule,
    pool: Pool,
    moment: Int64Array,
    area: Int64Array,
    taken: tuple[Int64Array, Int64Array],
) -> tuple[Int64Array, Int64Array]:
    """Negatives of P positives as (positive number [R] ascending, item code [R]).

    Args:
        moment: codes [P] of (user, time).
        area: codes [P] of where the positive was chosen; zeros without areas.
        taken: moment and item codes of all that users chose; these pairs are never drawn.

    Fewer than `rule.count` come out where the pool holds no more.
    """
    items = int(max(pool.item.max(initial=0), taken[1].max(initial=0))) + 1
    forbidden = np.unique(taken[0] * items + taken[1])
    ready = _Sorted.of(pool, int(max(area.max(initial=0), pool.area.max(initial=0))) + 1)
    owners, drawn = [], []
    for number, start in enumerate(range(0, len(moment), _CHUNK)):
        generator = np.random.Generator(np.random.Philox(key=[rule.seed, number]))
        part = slice(start, start + _CHUNK)
        found = _fill(ready, moment[part] * items, area[part], forbidden, rule.count, generator)
        row, column = np.nonzero(found >= 0)
        owners.append(row + start)
        drawn.append(found[row, column])
    if not owners:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(owners), np.concatenate(drawn)


def _fill(
    pool: _Sorted,
    base: Int64Array,
    area: Int64Array,
    forbidden: Int64Array,
    count: int,
    generator: np.random.Generator,
) -> Int64Array:
    """Items [P, count], −1 where there are no more."""
    found = np.full((len(base), count), -1, np.int64)
    short = np.arange(len(base))
    for _ in range(_ROUNDS):
        fresh = pool.draw(area[short], count, generator)
        fresh[_contains(forbidden, base[short][:, None] + fresh)] = -1
        found[short] = _first_distinct(np.concatenate([found[short], fresh], axis=1), count)
        short = short[found[short, -1] < 0]
        if not len(short):
            return found
    # Small areas and steep popularity leave a few rows that rejection does not fill.
    for row in short.tolist():
        whole = pool.item[pool.begin[area[row]] : pool.begin[area[row] + 1]]
        left = whole[~_contains(forbidden, base[row] + whole) & ~np.isin(whole, found[row])]
        have = int((found[row] >= 0).sum())
        extra = generator.permutation(left)[: count - have]
        found[row, have : have + len(extra)] = extra
    return found


def _contains(ordered: Int64Array, keys: Int64Array) -> npt.NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(keys.shape, bool)
    place = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return ordered[place] == keys


def _first_distinct(values: Int64Array, count: int) -> Int64Array:
    """The first `count` distinct non-negative values of each row, −1 behind them."""
    order = np.argsort(values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, 1)
    good = ranked >= 0
    good[:, 1:] &= ranked[:, 1:] != ranked[:, :-1]
    keep = np.zeros(values.shape, bool)
    np.put_along_axis(keep, order, good, 1)
    front = np.argsort(~keep, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(keep, front, 1), np.take_along_axis(values, front, 1), -1)


def slates(
    rule: NegativeRule, positive: Int64Array, owner: Int64Array, negative: Int64Array
) -> tuple[Int64Array, Int64Array, npt.NDArray[np.bool_]]:
    """Positives [P] and negatives as shuffled lists: owner [R] ascending, item [R], label [R]."""
    owners = np.concatenate([np.arange(len(positive)), owner])
    items = np.concatenate([positive, negative])
    label = np.arange(len(items)) < len(positive)
    # Places must not tell the positive, so they come from a stream of their own.
    generator = np.random.Generator(np.random.Philox(key=[rule.seed, 1 << 40]))
    order = np.lexsort((generator.random(len(items)), owners))
    return owners[order], items[order], label[order]
