"""Cutting a log into train, valid and test: by time, by user time, or by folds.

Split codes are indices into `SPLITS`.
"""

from datetime import UTC, datetime
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.data.schema import SPLITS
from raysys.errors import ConfigError, DataError

TRAIN, VALID, TEST = range(3)
DAY_US = 86_400_000_000

Int64Array = npt.NDArray[np.int64]
SplitArray = npt.NDArray[np.int8]


class TimeCut(BaseModel):
    """Where a log is cut in time: by shares of its rows, or at stated moments (ISO 8601, UTC).

    Shares are rounded down to whole local days, so that a day never lies on both sides of a cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    valid_share: float = Field(default=0.1, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    valid_from: str | None = None
    test_from: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.valid_from is None) != (self.test_from is None):
            raise ValueError("valid_from and test_from come together")
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share and test_share leave nothing to train on")
        return self

    def describe(self, zone: str = "UTC") -> str:
        """The rule in words, for a data card; `zone` is that of the log's days."""
        if self.test_from is not None:
            return f"time: valid from {self.valid_from}, test from {self.test_from}"
        return (
            f"time: last {percent(self.test_share)} of rows test, "
            f"{percent(self.valid_share)} before them valid, cut at whole days"
            + ("" if zone == "UTC" else f" of {zone}")
        )


class Folds(BaseModel):
    """Which of K folds is the test part, for logs without time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folds: int = Field(default=5, ge=2)
    fold: int = Field(default=0, ge=0)
    valid_share: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: {self.folds} folds are 0 to "
                             f"{self.folds - 1}")  # fmt: skip
        return self

    def describe(self, unit: str) -> str:
        """The rule in words, for a data card."""
        return (
            f"folds: {unit} in fold {self.fold} of {self.folds} test, "
            f"{percent(self.valid_share)} of the others valid, by hash with seed {self.seed}"
        )

    def split(self, keys: npt.NDArray[Any]) -> SplitArray:
        """Split codes [N] of N units named by `keys`; equal keys always go together."""
        unique, inverse = np.unique(keys.astype(object), return_inverse=True)
        fold = _rank(stable_hash(unique, self.seed)) % self.folds
        return self._codes(fold, unique)[inverse]

    def describe_within(self, unit: str) -> str:
        """The rule of `split_within` in words, for a data card."""
        return (
            f"folds: {unit} spread evenly over {self.folds} folds, fold {self.fold} test, "
            f"{percent(self.valid_share)} of the others valid, by hash with seed {self.seed}"
        )

    def split_within(self, owners: npt.NDArray[Any], keys: npt.NDArray[Any]) -> SplitArray:
        """Split codes [N] of N distinct keys, of which each owner [N] has equally many in every
        fold, give or take one."""
        names, owner = np.unique(owners.astype(object), return_inverse=True)
        order = np.lexsort((stable_hash(keys, self.seed), owner))
        begin = np.concatenate([[0], np.cumsum(np.bincount(owner))])[owner[order]]
        place = np.empty(len(keys), np.int64)
        place[order] = np.arange(len(keys)) - begin
        # Owners start at different folds, or those with few units would have none in the last.
        start = (stable_hash(names, self.seed + 2) % np.uint64(self.folds)).astype(np.int64)
        return self._codes((place + start[owner]) % self.folds, keys)

    def _codes(self, fold: Int64Array, keys: npt.NDArray[Any]) -> SplitArray:
        out = np.full(len(keys), TRAIN, np.int8)
        out[fold == self.fold] = TEST
        rest = np.flatnonzero(fold != self.fold)
        # Another hash than that of the folds, so that the valid part is not one of them.
        order = np.argsort(stable_hash(keys[rest], self.seed + 1), kind="stable")
        out[rest[order[: round(len(rest) * self.valid_share)]]] = VALID
        return out


def percent(share: float) -> str:
    """A share as a percentage without a float's tail, for data cards."""
    return f"{share * 100:g} %"


def stable_hash(values: npt.NDArray[Any], seed: int) -> npt.NDArray[np.uint64]:
    """A keyed 64-bit hash of each value's text, the same on every machine."""
    return pd.util.hash_array(values.astype(str).astype(object), hash_key=f"{seed:016d}"[-16:])


def _rank(values: npt.NDArray[np.uint64]) -> Int64Array:
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank


def split_names(codes: SplitArray) -> pa.Array:
    """Split codes [N] as the strings of the impressions table."""
    return pa.array(SPLITS, pa.string()).take(pa.array(codes.astype(np.int64)))


def iso(ts: int) -> str:
    """Microseconds UTC as ISO 8601 text."""
    return datetime.fromtimestamp(ts // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + (
        f".{ts % 1_000_000:06d}Z" if ts % 1_000_000 else "Z"
    )


def from_iso(text: str, *, field: str = "time") -> int:
    """ISO 8601 text as microseconds UTC; text without an offset is UTC.

    Raises:
        ConfigError: not a date.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{field}: {text!r} is no ISO 8601 date (2024-05-31)") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)


def time_bounds(ts: Int64Array, cut: TimeCut, zone: str = "UTC") -> tuple[int, int]:
    """First moments (µs) of the valid and of the test part for rows at times `ts` [N].

    zone: whose midnights part one day from the next.

    Raises:
        DataError: a part would be empty.
    """
    if cut.valid_from is not None and cut.test_from is not None:
        valid = from_iso(cut.valid_from, field="valid_from")
        test = from_iso(cut.test_from, field="test_from")
    elif len(ts) == 0:
        raise DataError("no rows to split")
    else:
        ordered = np.sort(ts)
        valid, test = (
            int(ordered[min(int(len(ts) * share), len(ts) - 1)])
            for share in (1 - cut.test_share - cut.valid_share, 1 - cut.test_share)
        )
        days = (_midnight(valid, zone), _midnight(test, zone))
        # A log of a few days has no whole days to spare.
        if ordered[0] < days[0] < days[1]:
            valid, test = days
    for name, count in zip(
        SPLITS, np.bincount(split_by_time(ts, (valid, test)), minlength=3), strict=True
    ):
        if count == 0:
            raise DataError(
                f"the time cut (valid from {iso(valid)}, test from {iso(test)}) leaves no {name} "
                "rows; choose other valid_share/test_share or valid_from/test_from"
            )
    return valid, test


def _midnight(ts: int, zone: str) -> int:
    """The begin of the day of `ts`, both µs UTC."""
    local = pd.Timestamp(ts, unit="us", tz=zone)
    return int(local.normalize().value // 1_000)


def split_by_time(ts: Int64Array, bounds: tuple[int, int]) -> SplitArray:
    """Split codes [N]: train before bounds[0], valid before bounds[1], test from there on."""
    return np.searchsorted(np.asarray(bounds, np.int64), ts, side="right").astype(np.int8)


def split_by_user_time(user: Int64Array, ts: Int64Array, cut: TimeCut) -> SplitArray:
    """Split codes [N]: the last `test_share` of every user's rows, `valid_share` before them."""
    order = np.lexsort((ts, user))
    counts = np.bincount(user)[user[order]]
    first = np.r_[True, user[order][1:] != user[order][:-1]]
    place = np.arange(len(user)) - np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))
    share = (place + 0.5) / np.maximum(counts, 1)
    codes = np.empty(len(user), np.int8)
    codes[order] = np.searchsorted(
        [1 - cut.test_share - cut.valid_share, 1 - cut.test_share], share, side="right"
    )
    return codes


def bounds_text(bounds: tuple[int, int]) -> dict[str, str]:
    """Bounds as a data card states them; `check` tests the impressions against them."""
    return {"valid": iso(bounds[0]), "test": iso(bounds[1])}


Rule = Literal["time", "user-time", "folds"]
