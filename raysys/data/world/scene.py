"""Scenes of the city: context values, calendar, weather, and the hidden map to prototypes.

A context is a code ((mealtime·3 + place)·4 + weather)·3 + day, 180 in all.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

import numpy as np
import pyarrow as pa

from raysys.data.schema import CONTEXTS
from raysys.data.world.config import WorldConfig
from raysys.data.world.lexicon import (
    DAY_TYPES,
    MEALTIMES,
    NEW_WEATHERS,
    PHRASINGS,
    PLACES,
    WEATHERS,
)
from raysys.data.world.streams import stream

SIZES = (len(MEALTIMES), len(PLACES), len(WEATHERS), len(DAY_TYPES))
CONTEXT_COUNT = int(np.prod(SIZES))
FEATURES = dict.fromkeys(("mealtime", "place", "weather", "day"), "categorical")
# Local hours [from, to) of the five mealtimes.
HOURS = ((6.0, 10.0), (11.0, 14.0), (14.0, 17.0), (17.0, 21.0), (21.0, 24.0))
DAY_US = 86_400_000_000
WEATHER_STAYS = 0.55


def context_code(
    meal: np.ndarray, place: np.ndarray, weather: np.ndarray, day: np.ndarray
) -> np.ndarray:
    """Joint code of four feature codes of equal shape."""
    code: np.ndarray = ((meal * SIZES[1] + place) * SIZES[2] + weather) * SIZES[3] + day
    return code


def context_parts(code: np.ndarray) -> tuple[np.ndarray, ...]:
    """Inverse of `context_code`: (mealtime, place, weather, day) codes."""
    return tuple(np.unravel_index(code, SIZES))


def context_array(code: np.ndarray, new_word: np.ndarray) -> pa.StructArray:
    """The `context` column; the weather is told by the new word of that code, or if it is −1 by
    its own word."""
    meal, place, weather, day = context_parts(code)
    words = (MEALTIMES, PLACES, (*WEATHERS, *NEW_WEATHERS), DAY_TYPES)
    told = np.where(new_word >= 0, len(WEATHERS) + new_word, weather)
    codes = (meal, place, told, day)
    columns = [
        pa.array(names).take(pa.array(values.astype(np.int32)))
        for names, values in zip(words, codes, strict=True)
    ]
    return pa.StructArray.from_arrays(columns, names=list(FEATURES))


def contexts_table() -> pa.Table:
    """The declared features with their values and wordings."""
    values = [MEALTIMES, PLACES, (*WEATHERS, *NEW_WEATHERS), DAY_TYPES]
    return pa.table(
        {
            "name": list(FEATURES),
            "kind": list(FEATURES.values()),
            "edges": pa.nulls(len(FEATURES), CONTEXTS.field("edges").type),
            "values": [list(names) for names in values],
            "phrasings": [
                [(value, list(PHRASINGS[feature][value])) for value in names]
                for feature, names in zip(FEATURES, values, strict=True)
            ],
        },
        schema=CONTEXTS,
    )


@dataclass(frozen=True)
class Scene:
    """Calendar, weather and map of one world; equal for everybody who has the config.

    Attributes:
        midnight: [days + 1] UTC µs of each local midnight.
        day_type, weekday: [days] codes.
        weather: [days, districts] codes; a district is a 2 × 2 block of areas.
        district: [areas] district of an area.
        prototype: [180] the hidden map m(c).
        unseen_meal: [places, weathers, day types] the mealtime that, with these, nobody meets
            before the test period.
        weather_known, day_known: [weathers], [day types] whether the value occurs before it.
    """

    midnight: np.ndarray
    day_type: np.ndarray
    weekday: np.ndarray
    weather: np.ndarray
    district: np.ndarray
    prototype: np.ndarray
    unseen_meal: np.ndarray
    weather_known: np.ndarray
    day_known: np.ndarray
    log_from: int
    valid_from: int
    test_from: int


def _prototype_map(config: WorldConfig) -> np.ndarray:
    """arg max of a random linear score over one-hot features, so that neighbours agree.

    Of 64 drawn maps the one is kept whose smallest prototype has most contexts.
    """
    rng = stream(config.seed, "prototype map")
    codes = np.stack(context_parts(np.arange(CONTEXT_COUNT)))
    best, best_least = np.zeros(CONTEXT_COUNT, dtype=np.int64), -1
    for _ in range(64):
        scores = np.zeros((CONTEXT_COUNT, config.prototypes))
        for size, values in zip(SIZES, codes, strict=True):
            scores += rng.standard_normal((size, config.prototypes))[values]
        chosen = scores.argmax(axis=1)
        least = int(np.bincount(chosen, minlength=config.prototypes).min())
        if least > best_least:
            best, best_least = chosen, least
    return best


def _weather(config: WorldConfig, districts: int) -> np.ndarray:
    """[days, districts] codes: each day the old weather stays, or a new one is drawn."""
    rng = stream(config.seed, "weather")
    law = np.array([0.4, 0.25, 0.15, 0.2]).cumsum()
    fresh = np.searchsorted(law, rng.random((config.days, districts)), side="right")
    stays = rng.random((config.days, districts)) < WEATHER_STAYS
    stays[0] = False
    last_change = np.maximum.accumulate(np.where(stays, 0, np.arange(config.days)[:, None]), axis=0)
    return np.take_along_axis(np.minimum(fresh, 3), last_change, axis=0)


def _unseen_meal(config: WorldConfig) -> np.ndarray:
    """[places, weathers, days] one mealtime each, different for the places of one weather and day.

    So every place has one held-out context whatever the weather, and an event can always move to
    another place or mealtime to avoid it.
    """
    rng = stream(config.seed, "unseen")
    shape = (SIZES[2], SIZES[3], SIZES[0])
    return rng.permuted(np.broadcast_to(np.arange(SIZES[0]), shape), axis=2)[
        :, :, : SIZES[1]
    ].transpose(2, 0, 1)


def make_scene(config: WorldConfig) -> Scene:
    """Draw the scene of a world from its seed."""
    first = datetime.combine(config.start, time(), UTC) - timedelta(minutes=config.tz_offset_min)
    midnight = int(first.timestamp()) * 1_000_000 + np.arange(config.days + 1) * DAY_US
    weekday = (config.start.weekday() + np.arange(config.days)) % 7
    day_type = (weekday >= 5).astype(np.int64)
    rng = stream(config.seed, "holidays")
    for block in range(0, config.days, 10):
        day_type[min(block + int(rng.integers(10)), config.days - 1)] = 2
    across = -(-config.grid // 2)
    row, column = np.divmod(np.arange(config.grid**2), config.grid)
    weather = _weather(config, across * across)
    test_from = config.days - config.test
    return Scene(
        midnight=midnight,
        day_type=day_type,
        weekday=weekday,
        weather=weather,
        district=(row // 2) * across + column // 2,
        prototype=_prototype_map(config),
        unseen_meal=_unseen_meal(config),
        weather_known=np.isin(np.arange(SIZES[2]), weather[:test_from]),
        day_known=np.isin(np.arange(SIZES[3]), day_type[:test_from]),
        log_from=config.days - config.logged,
        valid_from=test_from - config.valid,
        test_from=test_from,
    )
