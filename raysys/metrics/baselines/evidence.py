"""What the cheap baselines know of a candidate row, each column computed once and on demand."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysys.data.prepared import Prepared
from raysys.metrics.baselines.counts import Counts, ItemCounts, Moments, smoothed_ctr
from raysys.metrics.baselines.history import (
    HistoryCounter,
    category_affinity,
    category_codes,
    category_in_history,
    entity_codes,
    item_codes,
)
from raysys.metrics.baselines.recency import item_age_days
from raysys.metrics.baselines.rows import Rows
from raysys.metrics.baselines.similarity import (
    Cosines,
    Vectors,
    history_cosines,
    tfidf_vectors,
    unit_rows,
)
from raysys.metrics.blocks import Floats

FEATURES = (
    "log_clicks",
    "ctr",
    "item_age",
    "max_cosine",
    "mean_cosine",
    "category_affinity",
    "history_length",
    "log_repeats",
)


@dataclass(frozen=True)
class Knowledge:
    """A data set, the split to be evaluated, and what its items are.

    vectors: [2 + items, D] frozen text vectors by item row, or None. seed: of the pseudo-time of
    training impressions that have no time.
    """

    data: Prepared
    split: str
    counts: Counts
    seed: int
    vectors: NDArray[np.float32] | None

    @cached_property
    def moments(self) -> Moments:
        """When each impression happened, as far as counts are concerned."""
        return Moments.of(self.data, self.counts, self.seed)

    @cached_property
    def item_counts(self) -> ItemCounts:
        """Clicks and views of every item over time."""
        return ItemCounts.of(self.data, self.moments)

    @cached_property
    def categories(self) -> list[HistoryCounter]:
        """Levels of the category path, root first."""
        return [HistoryCounter.of(self.data, level) for level in category_codes(self.data)]

    @cached_property
    def entities(self) -> HistoryCounter:
        """Entities of the items."""
        return HistoryCounter.of(self.data, entity_codes(self.data))

    @cached_property
    def items(self) -> HistoryCounter:
        """The items themselves."""
        return HistoryCounter.of(self.data, item_codes(self.data))

    @cached_property
    def tfidf(self) -> Vectors | None:
        """[2 + items, terms] or None without texts."""
        return tfidf_vectors(self.data)

    @cached_property
    def units(self) -> Vectors | None:
        """[2 + items, D] given vectors at length 1."""
        return None if self.vectors is None else unit_rows(self.vectors)


@dataclass(frozen=True)
class Evidence:
    """Columns [R] of these rows; None where the data set cannot tell."""

    known: Knowledge
    rows: Rows

    @cached_property
    def _counts(self) -> tuple[Floats, Floats]:
        return self.known.item_counts.before(self.rows)

    @property
    def clicks(self) -> Floats:
        """Past clicks on the item, of all users."""
        return self._counts[0]

    @property
    def ctr(self) -> Floats:
        """Past click-through rate of the item, smoothed."""
        return smoothed_ctr(*self._counts)

    @cached_property
    def age(self) -> Floats | None:
        """Age of the item in days."""
        return item_age_days(self.known.data, self.rows, self.known.counts, self.known.split)

    @cached_property
    def affinity(self) -> Floats | None:
        """Share of the user's history in the item's category."""
        levels = self.known.categories
        return category_affinity(levels, self.rows) if levels else None

    @property
    def category_seen(self) -> Floats | None:
        """Whether the user's history holds the item's category."""
        levels = self.known.categories
        return category_in_history(levels, self.rows) if levels else None

    @property
    def shared_entities(self) -> Floats | None:
        """Events of the user's history with an entity of the item, summed over its entities."""
        entities = self.known.entities
        return entities.count(self.rows) if entities.coded.n_codes else None

    @cached_property
    def repeats(self) -> Floats:
        """The user's past events with this very item."""
        return self.known.items.count(self.rows)

    @cached_property
    def tfidf(self) -> Cosines | None:
        """TF-IDF cosines to the newest history items."""
        return self._cosines(self.known.tfidf)

    @cached_property
    def embedding(self) -> Cosines | None:
        """Cosines of the given vectors to the newest history items."""
        return self._cosines(self.known.units)

    def _cosines(self, vectors: Vectors | None) -> Cosines | None:
        return None if vectors is None else history_cosines(self.known.data, vectors, self.rows)

    def features(self) -> NDArray[np.float32]:
        """[R, 8] in the order of `FEATURES`, NaN where the data set cannot tell.

        Cosines are those of the given vectors, else of TF-IDF.
        """
        unknown = np.full(len(self.rows), np.nan)
        cosines = self.tfidf if self.known.vectors is None else self.embedding
        columns = (
            np.log1p(self.clicks),
            self.ctr,
            unknown if self.age is None else np.log1p(self.age),
            unknown if cosines is None else cosines.max,
            unknown if cosines is None else cosines.mean,
            unknown if self.affinity is None else self.affinity,
            np.log1p(self.rows.end - self.rows.start),
            np.log1p(self.repeats),
        )
        return np.stack(columns, axis=1).astype(np.float32)
