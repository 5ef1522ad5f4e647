"""The catalogue of the food city: points of interest, their words, and who is near whom."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raysys.data.schema import ITEMS
from raysys.data.world.config import WorldConfig
from raysys.data.world.lexicon import (
    BRAND_FIRST,
    BRAND_SECOND,
    CUISINES,
    DELIVERY_WORDS,
    DISHES,
    FAMILY_NAMES,
    INGREDIENTS,
    MOODS,
    PER_FAMILY,
    PRICE_WORDS,
    QUALITY_WORDS,
    THEME_PULL,
    THEMES,
)
from raysys.data.world.scene import DAY_US, Scene
from raysys.data.world.streams import stream

DISHES_PER_MENU = 6
BAND_PRICE = np.array([6.0, 10.0, 15.0, 24.0, 40.0])


@dataclass(frozen=True)
class Catalogue:
    """I points of interest. All arrays [I] unless said.

    Attributes:
        field: code price·16 + quality·4 + delivery of the fields that all users share.
        popularity: standardised log Zipf weight, hidden. weight: the Zipf weight itself.
        opened: first day of business; negative means before the period.
        words: [20, I] fit of the menu to mealtime·4 + weather, of mean 0 and variance 1.
        near: items of the 3 × 3 areas around each area, one list after the other, sorted by
            family; near_start [areas + 1] and family_start [areas, families + 1] point into it.
        near_cdf: area + share of popularity, ascending over `near`, for searchsorted.
        distance: [areas, areas] steps on the grid.
    """

    cuisine: np.ndarray
    price: np.ndarray
    quality: np.ndarray
    delivery: np.ndarray
    area: np.ndarray
    popularity: np.ndarray
    weight: np.ndarray
    opened: np.ndarray
    brand: np.ndarray
    menu_theme: np.ndarray
    words: np.ndarray
    near: np.ndarray
    near_start: np.ndarray
    family_start: np.ndarray
    near_cdf: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.cuisine)

    @property
    def field(self) -> np.ndarray:
        """Joint code of price, quality and delivery, 80 in all."""
        code: np.ndarray = self.price * 16 + self.quality * 4 + self.delivery
        return code

    @property
    def family(self) -> np.ndarray:
        """Cuisine family, 6 in all."""
        return self.cuisine // PER_FAMILY

    @property
    def ids(self) -> pa.Array:
        """Item ids."""
        return pa.array([f"p{number:06d}" for number in range(len(self))])


def _theme_words(menu_theme: np.ndarray) -> np.ndarray:
    """[20, I] fit of menus [I, dishes] (−1 = no theme word) to scenes, standardised."""
    share = np.stack([(menu_theme == theme).mean(axis=1) for theme in range(len(THEMES))])
    meal = np.array([pull[0] for pull in THEME_PULL.values()])  # [themes, 5]
    weather = np.array([pull[1] for pull in THEME_PULL.values()])  # [themes, 4]
    pull = (meal[:, :, None] + weather[:, None, :]).reshape(len(THEMES), -1)
    fit = (pull[:, :, None] * share[:, None, :]).sum(axis=0)
    standard: np.ndarray = ((fit - fit.mean()) / fit.std()).astype(np.float32)
    return standard


def _neighbours(
    grid: int, area: np.ndarray, family: np.ndarray, weight: np.ndarray, old: np.ndarray
) -> tuple[np.ndarray, ...]:
    """(near, near_start, family_start, near_cdf, distance) of `Catalogue`."""
    row, column = np.divmod(np.arange(grid * grid), grid)
    distance = np.maximum(
        np.abs(row[:, None] - row[None, :]), np.abs(column[:, None] - column[None, :])
    )
    lists, cdfs, starts = [], [], []
    offset = 0
    for here in range(grid * grid):
        items = np.flatnonzero(distance[here, area] <= 1)
        items = items[np.lexsort((~old[items], family[items]))]
        lists.append(items)
        cdfs.append(here + np.cumsum(weight[items]) / weight[items].sum())
        families = np.arange(len(FAMILY_NAMES) + 1)
        starts.append(offset + np.searchsorted(family[items], families))
        offset += len(items)
    sizes = np.array([len(items) for items in lists])
    return (
        np.concatenate(lists),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.stack(starts),
        np.concatenate(cdfs),
        distance,
    )


def make_catalogue(config: WorldConfig) -> Catalogue:
    """Draw the points of interest of a world from its seed."""
    rng = stream(config.seed, "places")
    n = config.pois
    brand_cuisine = rng.integers(len(CUISINES), size=max(30, n // 12))
    brand = rng.integers(len(brand_cuisine), size=n)
    of_brand = rng.random(n) < 0.85
    cuisine = np.where(of_brand, brand_cuisine[brand], rng.integers(len(CUISINES), size=n))
    areas = config.grid**2
    area = rng.choice(areas, size=n, p=rng.dirichlet(np.full(areas, 6.0)))
    area[: min(n, 2 * areas)] = np.arange(min(n, 2 * areas)) % areas  # nobody lives in a desert
    weight = (rng.permutation(n) + 10.0) ** -0.9
    new = rng.random(n) < config.new_poi_share
    last_days = config.days - config.test + np.floor(rng.random(n) * config.test * 0.8)
    opened = np.where(new, last_days, -np.floor(30 + 1000 * rng.random(n)))
    theme_law = rng.standard_gamma(0.4, (n, len(THEMES))) + 1e-6
    theme_cdf = np.cumsum(theme_law / theme_law.sum(1, keepdims=True), axis=1)
    draw = rng.random((n, DISHES_PER_MENU))
    theme = np.minimum((theme_cdf[:, None, :] < draw[:, :, None]).sum(2), len(THEMES) - 1)
    theme = np.where(rng.random(theme.shape) < 0.8, theme, -1)
    log_weight = np.log(weight)
    near, near_start, family_start, near_cdf, distance = _neighbours(
        config.grid, area, cuisine // PER_FAMILY, weight, ~new
    )
    return Catalogue(
        cuisine=cuisine,
        price=rng.choice(5, size=n, p=[0.22, 0.28, 0.25, 0.15, 0.1]),
        quality=rng.choice(4, size=n, p=[0.2, 0.35, 0.3, 0.15]),
        delivery=rng.choice(4, size=n, p=[0.15, 0.3, 0.35, 0.2]),
        area=area,
        popularity=((log_weight - log_weight.mean()) / log_weight.std()).astype(np.float32),
        weight=weight,
        opened=opened.astype(np.int64),
        brand=brand,
        menu_theme=theme,
        words=_theme_words(theme),
        near=near,
        near_start=near_start,
        family_start=family_start,
        near_cdf=near_cdf,
        distance=distance,
    )


def items_table(config: WorldConfig, scene: Scene, catalogue: Catalogue) -> pa.Table:
    """The `items` table: names, descriptions and menus written from the lexicons."""
    rng = stream(config.seed, "place texts")
    themes = tuple(THEMES.values())

    def word(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    rows = []
    for i in range(len(catalogue)):
        cuisine = int(catalogue.cuisine[i])
        price, quality = int(catalogue.price[i]), int(catalogue.quality[i])
        delivery, brand = int(catalogue.delivery[i]), int(catalogue.brand[i])
        area = f"area-{catalogue.area[i]:03d}"
        dishes = [
            " ".join(
                [
                    *([word(themes[theme])] if theme >= 0 else []),
                    word(INGREDIENTS),
                    word(DISHES[cuisine]),
                ]
            )
            for theme in catalogue.menu_theme[i].tolist()
        ]
        first = BRAND_FIRST[brand % len(BRAND_FIRST)]
        second = BRAND_SECOND[brand // len(BRAND_FIRST) % len(BRAND_SECOND)]
        brand_name = f"{first} {second}"
        name = f"{brand_name} {CUISINES[cuisine]} {word(DISHES[cuisine])}"
        description = (
            f"A {word(MOODS)}, {PRICE_WORDS[price]} {CUISINES[cuisine]} place in {area}; "
            f"{QUALITY_WORDS[quality]}, delivers {DELIVERY_WORDS[delivery]}."
        )
        row, column = divmod(int(catalogue.area[i]), config.grid)
        rows.append(
            {
                "item_id": f"p{i:06d}",
                "kind": "poi",
                "name": name,
                "title": name,
                "abstract": description,
                "text": "Menu: " + "; ".join(dishes) + ".",
                "category": ["food", FAMILY_NAMES[cuisine // PER_FAMILY], CUISINES[cuisine]],
                "price": round(float(BAND_PRICE[price] * (0.85 + 0.3 * rng.random())), 2),
                "brand": brand_name,
                "location": {
                    "lat": 50.0 + 0.02 * (row + float(rng.random())),
                    "lon": 10.0 + 0.03 * (column + float(rng.random())),
                    "area": area,
                },
                "created_at": int(scene.midnight[0] + catalogue.opened[i] * DAY_US),
                "attributes": [
                    ("cuisine", CUISINES[cuisine]),
                    ("family", FAMILY_NAMES[cuisine // PER_FAMILY]),
                    ("price_band", str(price)),
                    ("quality", str(quality)),
                    ("delivery", str(delivery)),
                    ("area", area),
                ],
                "entities": [],
            }
        )
    return pa.Table.from_pylist(rows, schema=ITEMS)
