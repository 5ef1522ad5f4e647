"""The law of the food city: what is offered, and how much a user wants it in a scene."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raysys.data.world.config import WorldConfig
from raysys.data.world.law import (
    drifting_tastes,
    latin_square,
    personal_laws,
    price_fit,
    repeat_strength,
)
from raysys.data.world.lexicon import CUISINES, DISHES, FAMILY_NAMES, PER_FAMILY, QUERY_FORMS
from raysys.data.world.people import FAVOURITE, SEARCH, Episodes, People
from raysys.data.world.places import Catalogue, items_table, make_catalogue
from raysys.data.world.scene import Scene, context_parts
from raysys.data.world.slates import Memory, last_before, thin
from raysys.data.world.streams import stream

TERMS = (
    "prototype",
    "taste",
    "words",
    "price",
    "quality",
    "distance",
    "popularity",
    "repeat",
    "joint",
)
QUERIES: tuple[tuple[str, ...], ...] = tuple(
    tuple(
        form.format(words)
        for cuisine in range(family * PER_FAMILY, (family + 1) * PER_FAMILY)
        for words in (CUISINES[cuisine], *DISHES[cuisine][:6])
        for form in QUERY_FORMS
    )
    for family in range(len(FAMILY_NAMES))
)
POPULAR, PERSONAL = 0.35, 0.25  # shares of a slate; the rest is random


@dataclass(frozen=True)
class Prototypes:
    """The hidden prototype laws, each mixed with a uniform share.

    Attributes: cuisine [P, 30], price [P, 5], quality [P, 4], delivery [P, 4] probabilities.
    """

    cuisine: np.ndarray
    price: np.ndarray
    quality: np.ndarray
    delivery: np.ndarray

    @property
    def log_field(self) -> np.ndarray:
        """[P, 80] log probability of price·16 + quality·4 + delivery."""
        joint = (
            self.price[:, :, None, None]
            * self.quality[:, None, :, None]
            * self.delivery[:, None, None, :]
        )
        law: np.ndarray = np.log(joint.reshape(len(self.price), -1))
        return law


def make_prototypes(config: WorldConfig) -> Prototypes:
    """Cuisine ~ Dir(.3), price ~ Dir(1), quality and delivery ~ Dir(2)."""
    rng = stream(config.seed, "prototype laws")

    def laws(values: int, alpha: float) -> np.ndarray:
        drawn = rng.dirichlet(np.full(values, alpha), config.prototypes)
        mixed: np.ndarray = (1 - config.uniform_share) * drawn + config.uniform_share / values
        return mixed

    return Prototypes(laws(len(CUISINES), 0.3), laws(5, 1.0), laws(4, 2.0), laws(4, 2.0))


class FoodCity:
    """What all shards share: scene, catalogue, prototypes and the Latin square."""

    behaviours_after_click = (("view", 0.35, "product"), ("cart", 0.25, "product"))
    subject = "merchant"
    terms = TERMS
    has_orders = True

    def __init__(self, config: WorldConfig, scene: Scene) -> None:
        self.config = config
        self.scene = scene
        self.catalogue: Catalogue = make_catalogue(config)
        self.prototypes = make_prototypes(config)
        self.square = latin_square(stream(config.seed, "square"), len(FAMILY_NAMES))
        self.kappa = config.food.kappa
        self.kappa_own = config.food.kappa_own
        self.position = config.food.position

    @property
    def item_ids(self) -> pa.Array:
        """Ids of the catalogue in order."""
        return self.catalogue.ids

    @property
    def queries(self) -> pa.Array:
        """Search texts, family after family."""
        return pa.array([text for texts in QUERIES for text in texts])

    def items(self) -> pa.Table:
        """The `items` table."""
        return items_table(self.config, self.scene, self.catalogue)

    def shard(self, people: People, shard: int) -> "FoodShard":
        """The laws of the users of one shard."""
        return FoodShard(self, people, shard)


class FoodShard:
    """Laws of n users: personal cuisine laws and tastes drawn once, utilities on demand."""

    def __init__(self, city: FoodCity, people: People, shard: int) -> None:
        config = city.config
        self.city, self.people = city, people
        rng = stream(config.seed, "food people", shard)
        shared = city.prototypes.cuisine
        law = personal_laws(
            rng, shared, len(people), config.personal_concentration, config.uniform_share
        )
        self.log_cuisine = np.log(law).astype(np.float32)  # [n, P, 30]
        self.log_field = city.prototypes.log_field.astype(np.float32)  # [P, 80]
        weeks = -(-config.days // 7)
        self.log_taste = drifting_tastes(rng, len(people), weeks, shared.shape[1]).astype(
            np.float32
        )
        self.own_prototype = rng.integers(config.prototypes, size=len(people))
        self.family, self.field = city.catalogue.family, city.catalogue.field

    def prototype(self, episodes: Episodes) -> np.ndarray:
        """[N] prototype in force: m(c), or one per user where the context law is off."""
        shared = self.city.config.effects.context
        chosen: np.ndarray = (
            self.city.scene.prototype[episodes.context]
            if shared
            else self.own_prototype[episodes.user]
        )
        return chosen

    def slate(
        self, rng: np.random.Generator, episodes: Episodes, memory: Memory, count: int
    ) -> np.ndarray:
        """[N, count] candidates: popular, personal and random ones near by, in random order."""
        catalogue = self.city.catalogue
        drawn = count + count // 2
        popular, personal = int(POPULAR * drawn), int(PERSONAL * drawn)
        area = episodes.area[:, None]
        at = np.searchsorted(
            catalogue.near_cdf, area + rng.random((len(episodes), popular)), side="left"
        )
        at = np.clip(at, catalogue.near_start[area], catalogue.near_start[area + 1] - 1)
        known = memory.draw(rng, episodes.user, personal)
        start, size = catalogue.near_start[area], np.diff(catalogue.near_start)[area]
        wide = rng.random((len(episodes), drawn - popular))
        random = catalogue.near[start + (wide * size).astype(np.int64)]
        reachable = (known >= 0) & (catalogue.distance[area, catalogue.area[known]] <= 1)
        random[:, :personal] = np.where(reachable, known, random[:, :personal])
        items = np.concatenate([catalogue.near[at], random], axis=1)
        return thin(rng, items, catalogue.opened[items] <= episodes.day, count)

    def signals(
        self, rng: np.random.Generator, episodes: Episodes, memory: Memory
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Searches and favourites of a day, and what they tell at every episode.

        Families are uniform, so that neither kind tells a taste; only both together tell J.

        Returns:
            (item [N] made a favourite or −1, query [N] searched or −1, T(family of the last
            search, family of the last favourite) [N] or −1 while one of them is missing).
        """
        catalogue = self.city.catalogue
        wanted = rng.integers(len(FAMILY_NAMES), size=len(episodes))
        draw = rng.random(len(episodes))
        search, favourite = episodes.kind == SEARCH, episodes.kind == FAVOURITE
        low = catalogue.family_start[episodes.area, wanted]
        size = catalogue.family_start[episodes.area, wanted + 1] - low
        bare = size == 0  # no such family near by: any place
        low = np.where(bare, catalogue.near_start[episodes.area], low)
        size = np.where(bare, np.diff(catalogue.near_start)[episodes.area], size)
        item = catalogue.near[low + (draw * size).astype(np.int64)]
        family = np.where(favourite, self.family[item], wanted)
        before = last_before(family, search, episodes.user, memory.search)
        liked = last_before(family, favourite, episodes.user, memory.favourite)
        target = np.where((before >= 0) & (liked >= 0), self.city.square[before, liked], -1)
        memory.search[episodes.user[search]] = family[search]
        memory.favourite[episodes.user[favourite]] = family[favourite]
        query = wanted * len(QUERIES[0]) + (draw * len(QUERIES[0])).astype(np.int64)
        return np.where(favourite, item, -1), np.where(search, query, -1), target

    def utility(
        self, episodes: Episodes, target: np.ndarray, items: np.ndarray, memory: Memory
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(U [N, C], its unweighted terms by name, each [N, C]); −1 items give any number.

        U = a1·log π + a2·log θ + a3·words + a4·price fit + a5·quality + a6·distance
          + a7·popularity + a8·repeat + a9·J.
        """
        weights, effects = self.city.config.food, self.city.config.effects
        catalogue = self.city.catalogue
        user, week = episodes.user, episodes.day // 7
        k = self.prototype(episodes)
        cuisine = catalogue.cuisine[items]
        rows = np.arange(len(episodes))[:, None]
        meal, _, weather, _ = context_parts(episodes.context)
        log_law = self.log_cuisine[user, k][rows, cuisine]
        log_law += self.log_field[k[:, None], self.field[items]]
        terms = {
            "prototype": log_law,
            "taste": self.log_taste[user, week][rows, cuisine] * np.float32(effects.taste),
            "words": catalogue.words[(meal * 4 + weather)[:, None], items]
            * np.float32(effects.words),
            "price": price_fit(self.people.price[user][:, None], catalogue.price[items]),
            "quality": catalogue.quality[items] - np.float32(1.5),
            "distance": -catalogue.distance[episodes.area[:, None], catalogue.area[items]],
            "popularity": catalogue.popularity[items],
            "repeat": repeat_strength(memory.clicks[user[:, None], items]),
            "joint": (self.family[items] == target[:, None]) & np.bool_(effects.joint_behaviour),
        }
        total = np.zeros(items.shape, dtype=np.float32)
        for name, values in terms.items():
            total += np.float32(getattr(weights, name)) * values.astype(np.float32)
        return total, terms

    def order_logit(self, terms: dict[str, np.ndarray]) -> np.ndarray:
        """Logit of p(order | click) before the offset d0, of the shape of the terms."""
        weights = self.city.config.food
        logit: np.ndarray = (
            weights.order_price * terms["price"]
            + weights.order_prototype * terms["prototype"]
            + weights.order_repeat * terms["repeat"]
            + weights.order_joint * terms["joint"]
        )
        return logit
