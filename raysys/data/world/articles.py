"""The catalogue of the newspaper: articles with topics, named entities and angles."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raysys.data.schema import ENTITIES, ITEMS
from raysys.data.world.config import WorldConfig
from raysys.data.world.newswords import (
    ABSTRACT_FORMS,
    ANGLE_WORDS,
    FIRST_NAMES,
    NAME_HEADS,
    NAME_TAILS,
    ORG_FORMS,
    PLACE_FORMS,
    TITLE_FORMS,
    TOPIC_PAIRS,
    TOPICS,
)
from raysys.data.world.scene import DAY_US, Scene
from raysys.data.world.streams import stream

PER_ARTICLE = 3  # named entities
BEFORE_DAYS = 3  # articles are published from so many days before the period
VECTOR = 32  # width of the entity vectors


@dataclass(frozen=True)
class Articles:
    """What the law reads of I articles, in the order of publication. Arrays [I] unless said.

    Attributes:
        topics, angles, named: how many topics, angles and entities there are.
        entities: [I, P] distinct entity numbers, −1 after the last.
        angle: what the abstract alone tells.
        weight: hidden editorial prominence in (0, 1), uniform.
    """

    topics: int
    angles: int
    named: int
    published: np.ndarray
    topic: np.ndarray
    entities: np.ndarray
    angle: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.topic)


@dataclass(frozen=True)
class InventedArticles(Articles):
    """Articles made up from the seed: three entities each, the first of them in the title.

    Attributes:
        affinity: [E, topics] how much an entity belongs to each topic, for its vector.
        names: [E] (label, type).
    """

    config: WorldConfig
    affinity: np.ndarray
    names: tuple[tuple[str, str], ...]

    @property
    def ids(self) -> pa.Array:
        """Item ids."""
        return pa.array([f"n{number:06d}" for number in range(len(self))])

    def items(self) -> pa.Table:
        """The `items` table."""
        return items_table(self.config, self)

    def vectors(self) -> pa.Table:
        """The `entities` table."""
        return entities_table(self.config, self)


def _names(rng: np.random.Generator, count: int) -> tuple[tuple[str, str], ...]:
    """Distinct invented names of persons, organisations and places."""
    stems = [head + tail for head in NAME_HEADS for tail in NAME_TAILS]
    drawn: dict[str, str] = {}
    while len(drawn) < count:
        stem = stems[int(rng.integers(len(stems)))]
        kind = ("PERSON", "ORG", "LOC")[int(rng.integers(3))]
        if kind == "PERSON":
            label = f"{FIRST_NAMES[int(rng.integers(len(FIRST_NAMES)))]} {stem}"
        else:
            forms = ORG_FORMS if kind == "ORG" else PLACE_FORMS
            label = forms[int(rng.integers(len(forms)))].format(stem)
        drawn.setdefault(label, kind)
    return tuple(drawn.items())


def make_articles(config: WorldConfig, scene: Scene) -> InventedArticles:
    """Draw the articles of a world from its seed."""
    rng = stream(config.seed, "articles")
    n = config.articles_per_day * (config.days + BEFORE_DAYS)
    day = np.repeat(np.arange(-BEFORE_DAYS, config.days), config.articles_per_day)
    hour = rng.uniform(5, 23, n)
    published = np.sort(scene.midnight[0] + day * DAY_US + (hour / 24 * DAY_US).astype(np.int64))
    topic = rng.choice(len(TOPICS), size=n, p=rng.dirichlet(np.full(len(TOPICS), 4.0)))
    count = config.named_entities
    zipf = (np.arange(count) + 5.0) ** -0.9
    home = rng.integers(len(TOPICS), size=count)
    affinity = 0.05 + 0.3 * (home[:, None] // 4 == np.arange(len(TOPICS))[None, :] // 4)
    affinity[np.arange(count), home] = 1.0
    entities = np.empty((n, PER_ARTICLE), dtype=np.int64)
    for value in range(len(TOPICS)):
        rows = np.flatnonzero(topic == value)
        score = np.log(zipf * affinity[:, value]) + rng.gumbel(size=(len(rows), count))
        entities[rows] = np.argsort(-score, axis=1)[:, :PER_ARTICLE]
    return InventedArticles(
        config=config,
        topics=len(TOPICS),
        angles=len(ANGLE_WORDS),
        named=count,
        published=published,
        topic=topic,
        entities=entities,
        angle=rng.integers(len(ANGLE_WORDS), size=n),
        weight=rng.random(n),
        affinity=affinity,
        names=_names(rng, count),
    )


def items_table(config: WorldConfig, articles: InventedArticles) -> pa.Table:
    """The `items` table: title and abstract say the same in other words, plus some of their own."""
    rng = stream(config.seed, "article texts")
    rows = []
    for i in range(len(articles)):
        topic = int(articles.topic[i])
        section, name = TOPICS[topic]
        first, second = rng.permutation(len(TOPIC_PAIRS[topic]))[:2].tolist()
        pairs = TOPIC_PAIRS[topic][first], TOPIC_PAIRS[topic][second]
        angle = rng.permutation(ANGLE_WORDS[int(articles.angle[i])])[:3].tolist()
        numbers = articles.entities[i].tolist()
        labels = [articles.names[number][0] for number in numbers]
        title = TITLE_FORMS[int(rng.integers(len(TITLE_FORMS)))].format(
            e0=labels[0], w0=pairs[0][0], w1=pairs[1][0]
        )
        abstract = ABSTRACT_FORMS[int(rng.integers(len(ABSTRACT_FORMS)))].format(
            e1=labels[1],
            w0=pairs[0][1],
            w1=pairs[1][1],
            a0=angle[0],
            a1=angle[1],
            a2=angle[2],
        )
        abstract += f" {labels[2]} is named too."
        rows.append(
            {
                "item_id": f"n{i:06d}",
                "kind": "news",
                "name": title,
                "title": title,
                "abstract": abstract,
                "text": abstract,
                "category": ["news", section, name],
                "created_at": int(articles.published[i]),
                "attributes": [("section", section), ("topic", name)],
                "entities": [
                    {
                        "id": f"e{number:05d}",
                        "label": label,
                        "type": articles.names[number][1],
                        "confidence": 1.0,
                        "field": "title" if place == 0 else "abstract",
                    }
                    for place, (number, label) in enumerate(zip(numbers, labels, strict=True))
                ],
            }
        )
    return pa.Table.from_pylist(rows, schema=ITEMS)


def entities_table(config: WorldConfig, articles: InventedArticles) -> pa.Table:
    """The `entities` table: a noisy random projection of each entity's topics, of unit length."""
    rng = stream(config.seed, "entity vectors")
    projection = rng.standard_normal((len(TOPICS), VECTOR))
    vector = (articles.affinity[:, :, None] * projection[None]).sum(axis=1)
    vector += 0.5 * rng.standard_normal(vector.shape)
    vector /= np.sqrt((vector**2).sum(axis=1, keepdims=True))
    return pa.table(
        {
            "id": [f"e{number:05d}" for number in range(len(vector))],
            "vector": pa.array(list(vector.astype(np.float32))),
        },
        schema=ENTITIES,
    )
