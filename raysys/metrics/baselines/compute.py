"""All mandatory cheap baselines of a split in one call."""

import difflib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raysys.data.prepared import Prepared
from raysys.errors import ConfigError
from raysys.metrics.baselines.counts import Counts
from raysys.metrics.baselines.evidence import Evidence, Knowledge
from raysys.metrics.baselines.gbdt import GBDT, HISTOGRAM, LAMBDARANK, POINTWISE, gbdt_scores
from raysys.metrics.baselines.rows import Rows
from raysys.metrics.baselines.similarity import Cosines
from raysys.metrics.blocks import Floats

# The scores of these are click probabilities, so calibration metrics apply to them.
PROBABILITIES = ("ctr", POINTWISE, HISTOGRAM)

# What a baseline needs; it is left out where the data set or the caller does not give it.
NEEDS = {
    "recency": "item creation times or request times",
    "category_affinity": "item categories",
    "category_in_history": "item categories",
    "entity_overlap": "item entities",
    "tfidf": "item texts",
    "tfidf_max": "item texts",
    "embedding": "frozen text vectors",
    "embedding_max": "frozen text vectors",
    POINTWISE: "LightGBM, and training labels that are not constant",
    LAMBDARANK: "LightGBM, and training labels that are not constant",
}


def _mean(cosines: Cosines | None) -> Floats | None:
    return None if cosines is None else cosines.mean


def _max(cosines: Cosines | None) -> Floats | None:
    return None if cosines is None else cosines.max


_SIMPLE: dict[str, Callable[[Evidence], Floats | None]] = {
    "popularity": lambda e: e.clicks,
    "ctr": lambda e: e.ctr,
    "recency": lambda e: None if e.age is None else -e.age,
    "category_affinity": lambda e: e.affinity,
    "category_in_history": lambda e: e.category_seen,
    "repeat": lambda e: e.repeats,
    "entity_overlap": lambda e: e.shared_entities,
    "tfidf": lambda e: _mean(e.tfidf),
    "tfidf_max": lambda e: _max(e.tfidf),
    "embedding": lambda e: _mean(e.embedding),
    "embedding_max": lambda e: _max(e.embedding),
}
NAMES = ("random", *_SIMPLE, *GBDT)


def compute_baselines(
    data: Prepared,
    split: str,
    *,
    seed: int,
    counts: Counts = "frozen",
    vectors: NDArray[np.float32] | None = None,
    which: Literal["all"] | Sequence[str] = "all",
    max_train_rows: int = 300_000,
) -> dict[str, Floats]:
    """Scores [R] by baseline for every candidate row of `split`, in table order.

    Item counts are those of the training split (`frozen`), or of everything before the
    impression (`streaming`). User histories always end before the impression, as a neural model
    reads them. vectors: [2 + items, D] by item row. A baseline whose `NEEDS` are not met is left
    out; `gbdt_histogram` stands in for the LightGBM ones where LightGBM cannot be loaded.

    Raises:
        ConfigError: an unknown name in `which`.
        DataError: streaming counts of a data set without times.
    """
    wanted = NAMES if which == "all" else tuple(which)
    for name in wanted:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
            raise ConfigError(f"no baseline is called {name!r}; did you mean {near!r}?")
    known = Knowledge(data, split, counts, seed, vectors)
    test = Evidence(known, Rows.of(data, data.impressions.of(split)))
    scores: dict[str, Floats] = {}
    for name in wanted:
        if name == "random":
            scores[name] = np.random.Generator(np.random.Philox(key=seed)).random(len(test.rows))
        elif name in _SIMPLE:
            found = _SIMPLE[name](test)
            if found is not None:
                scores[name] = found
    if set(wanted) & set(GBDT):
        trees = gbdt_scores(known, test, seed, max_train_rows)
        scores |= {name: values for name, values in trees.items() if name in wanted}
    return scores
