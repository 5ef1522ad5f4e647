"""Context features read off the local clock."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.base import categorical

MEALTIMES = ("breakfast", "lunch", "afternoon", "dinner", "night")
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_KINDS = ("workday", "weekend")
HOURS = tuple(f"{hour:02d}" for hour in range(24))
Part = Literal["mealtime", "weekday", "hour", "day_kind"]
_VALUES: dict[Part, tuple[str, ...]] = {
    "mealtime": MEALTIMES,
    "weekday": WEEKDAYS,
    "hour": HOURS,
    "day_kind": DAY_KINDS,
}
# First hour of breakfast, lunch, afternoon, dinner and night; night runs past midnight.
_MEAL_STARTS = (5, 11, 14, 17, 22)
_MINUTES_A_DAY = 1440
_MINUTE_US = 60_000_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday


def mealtime(hour: npt.NDArray[np.int64]) -> pa.Array:
    """Mealtime names [N] of hours 0..23."""
    index = np.searchsorted(_MEAL_STARTS, hour, side="right") - 1
    return _pick(MEALTIMES, np.where(index < 0, len(MEALTIMES) - 1, index))


def weekday(day: npt.NDArray[np.int64]) -> pa.Array:
    """Weekday names [N] of 0 (Monday) .. 6."""
    return _pick(WEEKDAYS, day)


def offset_minutes(ts: pa.Array, zone: str) -> pa.Array:
    """What the local time of a zone adds to times in µs UTC, int16 [N]."""
    moment = ts.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", zone))
    local = pc.local_timestamp(moment).cast(pa.int64())
    return pc.divide(pc.subtract(local, ts), _MINUTE_US).cast(pa.int16())


def local_part(
    part: Part, ts: pa.Array, tz_offset_min: npt.NDArray[np.int64] | int = 0
) -> pa.Array:
    """A part of local time [N] of times in µs UTC; null where the time is."""
    minutes = ts.fill_null(0).to_numpy(zero_copy_only=False) // _MINUTE_US + tz_offset_min
    hour = minutes // 60 % 24
    day = (minutes // _MINUTES_A_DAY + _EPOCH_WEEKDAY) % 7
    if part == "mealtime":
        values = mealtime(hour)
    elif part == "hour":
        values = _pick(HOURS, hour)
    elif part == "weekday":
        values = weekday(day)
    else:
        values = _pick(DAY_KINDS, (day >= 5).astype(np.int64))
    return pc.if_else(ts.is_valid(), values, pa.scalar(None, pa.string()))


def local_feature(name: str, part: Part) -> dict[str, Any]:
    """The contexts row of a local-time feature."""
    return categorical(name, _VALUES[part])


def _pick(names: tuple[str, ...], index: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(index))
