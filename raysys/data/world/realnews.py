"""Real articles for simulated readers: texts and entities as they are, publication re-timed."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

from raysys.data.dataset import Dataset
from raysys.data.loaders.reading import combined
from raysys.data.world.articles import BEFORE_DAYS, Articles
from raysys.data.world.config import WorldConfig
from raysys.data.world.newswords import ANGLES
from raysys.data.world.scene import DAY_US, Scene
from raysys.data.world.streams import stream
from raysys.errors import DataError

LEAST_A_DAY = 20  # articles; with fewer a page cannot fill a list
RARE = 20  # a topic of fewer articles is one with the other rare ones
_USED = ("title", "abstract", "category")


@dataclass(frozen=True)
class RealArticles(Articles):
    """Articles of a data set folder; `table` [I] are their rows of its `items`."""

    table: pa.Table
    entity_vectors: pa.Table | None

    @property
    def ids(self) -> pa.Array:
        """Item ids."""
        return combined(self.table["item_id"])

    def items(self) -> pa.Table:
        """The `items` table, published when the simulation says."""
        place = self.table.column_names.index("created_at")
        return self.table.set_column(place, "created_at", pa.array(self.published))

    def vectors(self) -> pa.Table | None:
        """The `entities` table of the folder, if it has one."""
        return self.entity_vectors


def read_articles(config: WorldConfig, scene: Scene, folder: str) -> RealArticles:
    """The articles of the data set `folder` that have title, abstract and category, in the order
    of their publication (then of their ids) and spread evenly over the period.

    Raises:
        DataError: no data set folder, or too few such articles for the period.
    """
    dataset = Dataset(folder)
    table = dataset.table("items")
    usable = np.ones(len(table), bool)
    for name in _USED:
        filled = pc.fill_null(pc.greater(_length(table[name]), 0), False)
        usable &= filled.to_numpy(zero_copy_only=False)
    table = table.filter(pa.array(usable)).sort_by(
        [("created_at", "ascending"), ("item_id", "ascending")]
    )
    days = config.days + BEFORE_DAYS
    if len(table) < LEAST_A_DAY * days:
        raise DataError(
            f"{folder}: {len(table)} items have title, abstract and category; {config.days} days "
            f"of reading need {LEAST_A_DAY * days}: choose fewer days or another folder"
        )
    rng = stream(config.seed, "articles")
    day = np.arange(len(table)) * days // len(table) - BEFORE_DAYS
    hour = rng.uniform(5, 23, len(table))
    topics, topic = _topics(table)
    named, entities = _entities(table)
    return RealArticles(
        topics=topics,
        angles=len(ANGLES),
        named=named,
        published=np.sort(scene.midnight[0] + day * DAY_US + (hour / 24 * DAY_US).astype(np.int64)),
        topic=topic,
        entities=entities,
        angle=_angles(table, config.seed),
        weight=rng.random(len(table)),
        table=table,
        entity_vectors=dataset.table("entities") if dataset.has("entities") else None,
    )


def _length(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_list(column.type):
        return pc.list_value_length(column)
    return pc.utf8_length(pc.utf8_trim_whitespace(column))


def _topics(table: pa.Table) -> tuple[int, np.ndarray]:
    """(how many, [I] codes): the last step of the category path, rare ones together."""
    path = [tuple(steps) for steps in table["category"].to_pylist()]
    _, code, count = np.unique(
        np.array(["\x1f".join(steps) for steps in path]), return_inverse=True, return_counts=True
    )
    number = np.where(count >= RARE, np.cumsum(count >= RARE), 0)  # 0: the rare ones
    return int(number.max()) + 1, number[code]


def _entities(table: pa.Table) -> tuple[int, np.ndarray]:
    """(how many, [I, P] numbers): the distinct entities of each article, −1 after the last."""
    lists = [
        list(dict.fromkeys(entity["id"] for entity in found or ()))
        for found in table["entities"].to_pylist()
    ]
    number = {name: n for n, name in enumerate(sorted({e for found in lists for e in found}))}
    width = max(1, max(len(found) for found in lists))
    numbers = np.full((len(lists), width), -1, dtype=np.int64)
    for row, found in enumerate(lists):
        numbers[row, : len(found)] = [number[name] for name in found]
    return len(number), numbers


def _angles(table: pa.Table, seed: int) -> np.ndarray:
    """[I] group of what the abstract says beyond the title: k-means over its latent words."""
    told = [
        " ".join(
            word for word in abstract.lower().split() if word not in set(title.lower().split())
        )
        for title, abstract in zip(
            table["title"].to_pylist(), table["abstract"].to_pylist(), strict=True
        )
    ]
    words = HashingVectorizer(n_features=1 << 13, alternate_sign=False, stop_words="english")
    weighed = TfidfTransformer(sublinear_tf=True).fit_transform(words.transform(told))
    # One thread: the order of sums must not depend on the machine, or bytes would.
    with threadpool_limits(1):
        latent = TruncatedSVD(32, random_state=seed).fit_transform(weighed)
        groups: np.ndarray = KMeans(len(ANGLES), n_init=4, random_state=seed).fit_predict(latent)
    return groups.astype(np.int64)
