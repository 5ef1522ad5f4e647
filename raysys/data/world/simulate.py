"""One shard of users, lived day by day; all users of a day at once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from raysys.data.world.config import WorldConfig
from raysys.data.world.food import FoodCity, FoodShard
from raysys.data.world.law import click_probability, sigmoid
from raysys.data.world.news import Newspaper, NewsShard
from raysys.data.world.people import (
    OWN,
    REQUEST,
    Episodes,
    People,
    day_episodes,
    make_people,
)
from raysys.data.world.scene import Scene, make_scene
from raysys.data.world.slates import Memory, gumbel_choice
from raysys.data.world.streams import stream

BEHAVIOURS = ("click", "view", "cart", "favourite", "search", "order", "share", "comment")
SUBJECTS = ("merchant", "product", "article")
SCENARIOS = ("app_home", "mini_program")
SECOND_US = 1_000_000
LIST_SECONDS = 240.0  # a whole list is read within this time


class Offsets(NamedTuple):
    """b0 and d0 of the laws; infinite ones let nobody click."""

    click: float
    order: float


@dataclass(frozen=True)
class World:
    """What every shard of one config shares."""

    config: WorldConfig
    scene: Scene
    law: FoodCity | Newspaper


@lru_cache(maxsize=2)
def build_world(config: WorldConfig, news: str = "", version: str = "") -> World:
    """Draw the shared part of a world; a worker process builds it once.

    news: the data set folder with the articles of a world of kind `readers`; version: the hash of
    its manifest.
    """
    scene = make_scene(config)
    law = FoodCity(config, scene) if config.kind == "food" else Newspaper(config, scene, news)
    return World(config, scene, law)


@dataclass
class Columns:
    """Columns that grow by blocks of rows."""

    blocks: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, **columns: np.ndarray) -> None:
        """Append one block."""
        for name, values in columns.items():
            self.blocks.setdefault(name, []).append(values)

    def joined(self, by: tuple[str, ...]) -> dict[str, np.ndarray]:
        """All rows, sorted by the columns `by`, first one first."""
        whole = {name: np.concatenate(blocks) for name, blocks in self.blocks.items()}
        order = np.lexsort([whole[name] for name in reversed(by)])
        return {name: values[order] for name, values in whole.items()}


@dataclass(frozen=True)
class Lived:
    """A shard's log: `events` [N] and `requests` [R] columns, sorted by (user, ts).

    Of the requests, items, clicked, ordered, p_click, p_order, oracle, logit, order_logit, joint
    and the terms of the law are [R, C]; items are −1 at the end of short lists.
    """

    people: People
    law: FoodShard | NewsShard
    events: dict[str, np.ndarray]
    requests: dict[str, np.ndarray]


class Life:
    """The state of a shard between two midnights."""

    def __init__(self, world: World, shard: int, offsets: Offsets) -> None:
        self.world, self.shard, self.offsets = world, shard, offsets
        self.people = make_people(world.config, shard)
        self.law = world.law.shard(self.people, shard)
        self.memory = Memory(len(self.people), len(world.law.item_ids))
        self.events, self.requests = Columns(), Columns()

    def live(self, day: int) -> None:
        """Add one day to the log."""
        config = self.world.config
        rng = stream(config.seed, f"choices {config.kind}", self.shard, day)
        episodes = day_episodes(config, self.world.scene, self.people, self.shard, day)
        item, query, target = self.law.signals(rng, episodes, self.memory)
        searched, kept = query >= 0, item >= 0
        self._log(episodes.where(searched), "search", query=query[searched])
        self._log(episodes.where(kept), "favourite", item=item[kept])
        clicked = [
            self._own(rng, episodes.where(episodes.kind == OWN), target[episodes.kind == OWN]),
            self._asked(
                rng, episodes.where(episodes.kind == REQUEST), target[episodes.kind == REQUEST]
            ),
        ]
        user, ts, items = (np.concatenate(columns) for columns in zip(*clicked, strict=True))
        order = np.lexsort((ts, user))
        self.memory.remember(user[order], items[order])

    def _log(
        self,
        episodes: Episodes,
        behaviour: str,
        *,
        subject: str = "",
        item: np.ndarray | None = None,
        query: np.ndarray | None = None,
        delay: np.ndarray | float = 0.0,
    ) -> None:
        n = len(episodes)
        subject = subject or self.world.law.subject
        self.events.add(
            user=episodes.user,
            ts=episodes.ts + (np.broadcast_to(delay, n) * SECOND_US).astype(np.int64),
            item=np.full(n, -1) if item is None else item,
            query=np.full(n, -1) if query is None else query,
            behaviour=np.full(n, BEHAVIOURS.index(behaviour), dtype=np.int8),
            subject=np.full(n, SUBJECTS.index(subject), dtype=np.int8),
            scenario=episodes.mini_program.astype(np.int8),
            context=episodes.context,
            new_word=episodes.new_word,
        )

    def _log_click(
        self,
        episodes: Episodes,
        item: np.ndarray,
        ordered: np.ndarray,
        draw: np.ndarray,
        delay: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log clicks and what follows them within minutes; `draw` [3, N] uniform."""
        self._log(episodes, "click", item=item, delay=delay)
        for row, (behaviour, chance, subject) in enumerate(self.world.law.behaviours_after_click):
            does = draw[row] < chance
            after = delay[does] + 10 + 20 * row + 10 * draw[2, does]
            self._log(
                episodes.where(does), behaviour, subject=subject, item=item[does], delay=after
            )
        after = delay[ordered] + 60 + 240 * draw[2, ordered]
        self._log(
            episodes.where(ordered), "order", subject="product", item=item[ordered], delay=after
        )
        return episodes.user, episodes.ts + (delay * SECOND_US).astype(np.int64), item

    def _own(
        self, rng: np.random.Generator, episodes: Episodes, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What users find by themselves: one choice out of a wide unlogged list."""
        items = self.law.slate(rng, episodes, self.memory, self.world.config.own_candidates)
        utility, terms = self.law.utility(episodes, target, items, self.memory)
        score = np.where(items >= 0, self.world.law.kappa_own * utility, -np.inf)
        chosen = gumbel_choice(rng, score)
        rows = np.arange(len(episodes))
        draw = rng.random((4, len(episodes)))
        p_order = sigmoid(self.law.order_logit(terms)[rows, chosen] - self.offsets.order)
        item = items[rows, chosen]
        found = item >= 0
        return self._log_click(
            episodes.where(found),
            item[found],
            (draw[3] < p_order)[found],
            draw[:3, found],
            np.zeros(int(found.sum())),
        )

    def _asked(
        self, rng: np.random.Generator, episodes: Episodes, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Requests: a logged list, each item clicked or not by its own probability."""
        config, law = self.world.config, self.world.law
        items = self.law.slate(rng, episodes, self.memory, config.candidates)
        utility, terms = self.law.utility(episodes, target, items, self.memory)
        position = law.position * np.arange(items.shape[1])
        logit = law.kappa * utility.astype(np.float64)
        order_logit = self.law.order_logit(terms).astype(np.float64)
        p_click = click_probability(logit, position, self.offsets.click)
        p_order = sigmoid(order_logit - self.offsets.order)
        draw = rng.random((5, *items.shape))
        clicked = (draw[0] < p_click) & (items >= 0)
        ordered = (draw[1] < p_order) & clicked
        kept = items[:, 0] >= 0
        self.requests.add(
            user=episodes.user[kept],
            ts=episodes.ts[kept],
            context=episodes.context[kept],
            new_word=episodes.new_word[kept],
            unseen=episodes.unseen[kept],
            prototype=self.law.prototype(episodes)[kept],
            items=items[kept],
            clicked=clicked[kept],
            ordered=ordered[kept],
            p_click=p_click[kept],
            p_order=p_order[kept],
            oracle=click_probability(logit, 0.0, self.offsets.click)[kept],
            logit=logit[kept],
            order_logit=order_logit[kept],
            joint=terms.get("joint", np.zeros(items.shape, dtype=bool))[kept],
            **{f"term_{name}": terms[name][kept] for name in terms if config.truth_terms},
        )
        row, column = np.nonzero(clicked)
        return self._log_click(
            episodes.where(row),
            items[row, column],
            ordered[row, column],
            draw[2:, row, column],
            5 + LIST_SECONDS / items.shape[1] * column,
        )


def live_shard(
    world: World,
    shard: int,
    offsets: Offsets,
    each_day: Callable[[int], None] | None = None,
) -> Lived:
    """The whole log of one shard of users."""
    life = Life(world, shard, offsets)
    for day in range(world.config.days):
        life.live(day)
        if each_day is not None:
            each_day(day)
    return Lived(
        people=life.people,
        law=life.law,
        events=life.events.joined(("user", "ts")),
        requests=life.requests.joined(("user", "ts")),
    )
