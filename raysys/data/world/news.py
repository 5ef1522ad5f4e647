"""The law of the newspaper: what is on the page, and how much a reader wants it."""

import numpy as np
import pyarrow as pa

from raysys.data.world.articles import InventedArticles, make_articles
from raysys.data.world.config import WorldConfig
from raysys.data.world.law import drifting_tastes
from raysys.data.world.people import Episodes, People
from raysys.data.world.realnews import RealArticles, read_articles
from raysys.data.world.scene import DAY_US, Scene
from raysys.data.world.slates import Memory, thin
from raysys.data.world.streams import stream

TERMS = ("entity", "topic", "abstract", "recency")
READER_KINDS = {"topic": 0.0, "mixed": 0.5, "entity": 1.0}  # kind -> w
ON_PAGE = 1.5 * DAY_US  # articles up to this age are offered
HOUR_US = 3.6e9


class Newspaper:
    """What all shards share: scene and articles, invented or, given `news`, those of that data
    set folder."""

    behaviours_after_click = (("share", 0.06, "article"), ("comment", 0.03, "article"))
    subject = "article"
    terms = TERMS
    has_orders = False

    def __init__(self, config: WorldConfig, scene: Scene, news: str = "") -> None:
        self.config = config
        self.scene = scene
        self.articles: InventedArticles | RealArticles = (
            read_articles(config, scene, news) if news else make_articles(config, scene)
        )
        self.kappa = config.news.kappa
        self.kappa_own = config.news.kappa_own
        self.position = config.news.position

    @property
    def item_ids(self) -> pa.Array:
        """Ids of the articles in order."""
        return self.articles.ids

    @property
    def queries(self) -> pa.Array:
        """Readers of the newspaper do not search."""
        return pa.array([], pa.string())

    def items(self) -> pa.Table:
        """The `items` table."""
        return self.articles.items()

    def entities(self) -> pa.Table | None:
        """The `entities` table, where the articles have one."""
        return self.articles.vectors()

    def shard(self, people: People, shard: int) -> "NewsShard":
        """The laws of the readers of one shard."""
        return NewsShard(self, people, shard)


class NewsShard:
    """Laws of n readers of three kinds.

    Attributes:
        kind: [n] code into READER_KINDS; `w` [n] its weight of the entities.
        theta: [n, E + 1] liking of each entity: most are indifferent; the last is that of none.
        log_topic: [n, weeks, topics] log θ less its mean, so that all kinds click equally often.
        angles: [n, angles] liking of what abstracts alone tell.
    """

    def __init__(self, paper: Newspaper, people: People, shard: int) -> None:
        config = paper.config
        self.paper, self.people = paper, people
        rng = stream(config.seed, "news people", shard)
        n = len(people)
        self.kind = rng.integers(len(READER_KINDS), size=n)
        w = np.array(list(READER_KINDS.values()))[self.kind] * config.effects.entity
        self.w = w.astype(np.float32)
        articles = paper.articles
        liked = rng.random((n, articles.named)) < 0.35
        theta = (liked * rng.normal(0.0, 1.6, liked.shape)).astype(np.float32)
        self.theta = np.pad(theta, ((0, 0), (0, 1)))
        log_topic = drifting_tastes(rng, n, -(-config.days // 7), articles.topics)
        self.log_topic = (log_topic - log_topic.mean(-1, keepdims=True)).astype(np.float32)
        self.angles = rng.standard_normal((n, articles.angles)).astype(np.float32)

    def prototype(self, episodes: Episodes) -> np.ndarray:
        """[N] prototype of the scene; reading does not depend on it."""
        chosen: np.ndarray = self.paper.scene.prototype[episodes.context]
        return chosen

    def slate(
        self, rng: np.random.Generator, episodes: Episodes, memory: Memory, count: int
    ) -> np.ndarray:
        """[N, count] recent unread articles, half of them the more prominent of two, any order."""
        articles = self.paper.articles
        low = np.searchsorted(articles.published, episodes.ts - ON_PAGE)[:, None]
        high = np.searchsorted(articles.published, episodes.ts, side="left")[:, None]
        drawn = count + count // 2
        draw = rng.random((len(episodes), drawn + drawn // 2))
        items = low + (draw * (high - low)).astype(np.int64)
        items = np.minimum(items, len(articles) - 1)
        first, rival = items[:, : drawn // 2], items[:, drawn:]
        first[:] = np.where(articles.weight[first] > articles.weight[rival], first, rival)
        items = items[:, :drawn]
        unread = memory.clicks[episodes.user[:, None], items] == 0
        return thin(rng, items, unread & (high > low), count)

    def signals(
        self, rng: np.random.Generator, episodes: Episodes, memory: Memory
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Readers neither search nor keep favourites: three arrays [N] of −1."""
        nothing = np.full(len(episodes), -1)
        return nothing, nothing, nothing

    def utility(
        self, episodes: Episodes, target: np.ndarray, items: np.ndarray, memory: Memory
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(U [N, C], its terms by name), U = w·Σ_e θ_u(e) + (1−w)·log θ_u(topic) + a·match
        + recency/κ, so that κ·U is the logit of the law."""
        weights, effects = self.paper.config.news, self.paper.config.effects
        articles = self.paper.articles
        user, week = episodes.user, episodes.day // 7
        rows = np.arange(len(episodes))[:, None]
        w = self.w[user][:, None]
        liking = np.zeros(items.shape, dtype=np.float32)
        for place in range(articles.entities.shape[1]):
            liking += self.theta[user[:, None], articles.entities[items, place]]
        age = (episodes.ts[:, None] - articles.published[items]) / HOUR_US
        terms = {
            "entity": w * liking,
            "topic": (1 - w)
            * self.log_topic[user, week][rows, articles.topic[items]]
            * np.float32(effects.taste),
            "abstract": self.angles[user[:, None], articles.angle[items]]
            * np.float32(effects.abstract),
            "recency": np.log1p(np.maximum(age, 0)).astype(np.float32) / np.float32(weights.kappa),
        }
        total = np.zeros(items.shape, dtype=np.float32)
        for name, values in terms.items():
            total += np.float32(getattr(weights, name)) * values
        return total, terms

    def order_logit(self, terms: dict[str, np.ndarray]) -> np.ndarray:
        """Nobody orders news."""
        return np.full(terms["entity"].shape, -np.inf, dtype=np.float32)
