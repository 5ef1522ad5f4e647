"""The people of one shard: where they live, when they act, and in which scenes."""

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from raysys.data.schema import USERS
from raysys.data.world.config import WorldConfig
from raysys.data.world.lexicon import NEW_WEATHERS
from raysys.data.world.scene import DAY_US, HOURS, SIZES, Scene, context_code
from raysys.data.world.streams import stream

OWN, REQUEST, SEARCH, FAVOURITE = range(4)  # what an episode is
MEAL_SHARES = np.array([0.16, 0.3, 0.14, 0.28, 0.12])
# P(home, office, other) by mealtime, on days of work and on days off.
PLACE_WORK = np.array(
    [[0.7, 0.2, 0.1], [0.12, 0.75, 0.13], [0.1, 0.75, 0.15], [0.65, 0.15, 0.2], [0.8, 0.05, 0.15]]
)
PLACE_OFF = np.array(
    [
        [0.85, 0.02, 0.13],
        [0.55, 0.05, 0.4],
        [0.4, 0.05, 0.55],
        [0.6, 0.03, 0.37],
        [0.75, 0.02, 0.23],
    ]
)


@dataclass(frozen=True)
class People:
    """n users of one shard, ids `first` … `first + n − 1`.

    Attributes:
        areas: [n, 3] area of home, office and other.
        joined: [n] first day with the service; negative means before the period.
        cold: [n] joined in the test period, so that the first requests meet no history.
        rates: [n, 4] episodes a day by kind, before the weekly rhythm.
        rhythm: [n, 7] weekday factors of mean 1.
        meal_cdf: [n, 5]. place_cdf: [n, 2, 5, 3] on days of work, days off.
        price: [n] liked price band 0..4. mini_program: [n] share of use over the mini-program.
    """

    first: int
    areas: np.ndarray
    joined: np.ndarray
    cold: np.ndarray
    rates: np.ndarray
    rhythm: np.ndarray
    meal_cdf: np.ndarray
    place_cdf: np.ndarray
    price: np.ndarray
    mini_program: np.ndarray

    def __len__(self) -> int:
        return len(self.joined)

    @property
    def ids(self) -> pa.Array:
        """User ids; equal width, so that text order is number order."""
        return pa.array([f"u{number:07d}" for number in range(self.first, self.first + len(self))])


@dataclass(frozen=True)
class Episodes:
    """What n users do on one day, sorted by (user, time). All arrays [N].

    `context` is the lawful code; `new_word` is the code of the new word that tells the weather,
    −1 where its own word does; `unseen` marks those in a combination that nobody met before the
    test period.
    """

    day: int
    user: np.ndarray
    kind: np.ndarray
    ts: np.ndarray
    area: np.ndarray
    context: np.ndarray
    new_word: np.ndarray
    unseen: np.ndarray
    mini_program: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def where(self, mask: np.ndarray) -> "Episodes":
        """The episodes with `mask`."""
        arrays = {f.name: getattr(self, f.name)[mask] for f in fields(self) if f.name != "day"}
        return Episodes(day=self.day, **arrays)


def make_people(config: WorldConfig, shard: int) -> People:
    """Draw the users of a shard. Both kinds of world draw the same people."""
    first = shard * config.shard_users
    n = min(config.shard_users, config.users - first)
    rng = stream(config.seed, "people", shard)
    cold = rng.random(n) < config.cold_share
    since = rng.random(n)
    late = rng.random(n) < 0.3
    old = -np.floor(1 + 700 * since)
    joined = np.where(late, np.floor(since * (config.days - config.test)), old)
    joined = np.where(cold, config.days - config.test + np.floor(since * config.test), joined)
    activity = np.exp(config.activity_sigma * rng.standard_normal(n))
    own = np.minimum(config.events_per_day * activity, config.history_max / config.days)
    rates = np.stack(
        [
            own,
            config.requests_per_day * activity**0.35,
            np.minimum(config.searches_per_day * activity**0.5, config.history_max / config.days),
            np.minimum(config.favourites_per_day * activity**0.5, config.history_max / config.days),
        ],
        axis=1,
    )
    rhythm = rng.dirichlet(np.full(7, 8.0), n) * 7
    meals = rng.standard_gamma(np.broadcast_to(12 * MEAL_SHARES, (n, 5))) + 1e-3
    places = np.stack([PLACE_WORK, PLACE_OFF])
    places = rng.standard_gamma(np.broadcast_to(10 * places, (n, 2, 5, 3))) + 1e-3
    return People(
        first=first,
        areas=rng.integers(config.grid**2, size=(n, 3)),
        joined=joined.astype(np.int64),
        cold=cold,
        rates=rates,
        rhythm=rhythm,
        meal_cdf=np.cumsum(meals / meals.sum(-1, keepdims=True), axis=-1),
        place_cdf=np.cumsum(places / places.sum(-1, keepdims=True), axis=-1),
        price=rng.integers(5, size=n),
        mini_program=rng.beta(1.0, 2.0, n),
    )


def _pick(cdf: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Index of the bin of `cdf` [N, V] into which `draw` [N] falls."""
    chosen: np.ndarray = np.minimum((cdf < draw[:, None]).sum(axis=1), cdf.shape[1] - 1)
    return chosen


def day_episodes(
    config: WorldConfig, scene: Scene, people: People, shard: int, day: int
) -> Episodes:
    """Draw who does what, when and where on `day`; depends on nothing that happened before."""
    rng = stream(config.seed, "episodes", shard, day)
    rates = people.rates * people.rhythm[:, scene.weekday[day], None]
    rates = rates * (people.joined <= day)[:, None]
    if day < scene.log_from:
        rates[:, REQUEST] = 0
    counts = rng.poisson(rates)
    user = np.repeat(np.repeat(np.arange(len(people)), 4), counts.ravel())
    kind = np.repeat(np.tile(np.arange(4), len(people)), counts.ravel())
    draw = rng.random((7, len(user)))
    meal = _pick(people.meal_cdf[user], draw[0])
    off = int(scene.day_type[day] > 0)
    place = _pick(people.place_cdf[user, off, meal], draw[1])
    weather_of = scene.weather[day, scene.district[people.areas]]  # [n, 3]
    day_type = int(scene.day_type[day])

    in_test = (day >= scene.test_from) & (kind == REQUEST)
    known = scene.weather_known & scene.day_known[day_type]
    unseen = in_test & (draw[2] < config.unseen_share) & known[weather_of[user, place]]
    for turn in range(1, 1 + SIZES[0] * SIZES[1]):
        held_out = meal == scene.unseen_meal[place, weather_of[user, place], day_type]
        moving = held_out & ~unseen
        if not moving.any():
            break
        place = np.where(moving, (place + 1) % SIZES[1], place)
        if turn % SIZES[1] == 0:
            meal = np.where(moving, (meal + 1) % SIZES[0], meal)
    weather = weather_of[user, place]
    meal = np.where(unseen, scene.unseen_meal[place, weather, day_type], meal)
    new_share = config.new_value_share / max(1e-9, 1 - config.unseen_share)
    # Where words carry no law they must not tell the weather either, or text would still win on
    # values that no model has seen: the new word is then any of them.
    word = weather if config.effects.words else (draw[6] * len(NEW_WEATHERS)).astype(np.int64)
    new_word = np.where(in_test & ~unseen & (draw[3] < new_share), word, -1)

    hours = np.array(HOURS)[meal]
    hour = hours[:, 0] + draw[4] * (hours[:, 1] - hours[:, 0] - 0.2)  # clicks and orders follow
    ts = scene.midnight[day] + (hour / 24 * DAY_US).astype(np.int64)
    order = np.lexsort((ts, user))
    return Episodes(
        day=day,
        user=user[order],
        kind=kind[order],
        ts=ts[order],
        area=people.areas[user, place][order],
        context=context_code(meal, place, weather, np.full_like(meal, day_type))[order],
        new_word=new_word[order],
        unseen=unseen[order],
        mini_program=(draw[5] < people.mini_program[user])[order],
    )


def users_table(scene: Scene, people: People) -> pa.Table:
    """The `users` part of a shard."""
    names = [f"area-{area:03d}" for area in range(people.areas.max() + 1)]
    created = scene.midnight[0] + people.joined * DAY_US
    attributes = [
        [("home", names[home]), ("office", names[office]), ("other", names[other])]
        for home, office, other in people.areas.tolist()
    ]
    return pa.table(
        {"user_id": people.ids, "created_at": created, "attributes": attributes}, schema=USERS
    )
