"""The 8-feature gradient-boosted trees that every neural model must be shown beside."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.metrics.baselines.evidence import Evidence, Knowledge
from raysys.metrics.baselines.rows import Rows
from raysys.metrics.blocks import Floats, Ints

Matrix = NDArray[np.float32]

POINTWISE, LAMBDARANK, HISTOGRAM = "gbdt_pointwise", "gbdt_lambdarank", "gbdt_histogram"
GBDT = (POINTWISE, LAMBDARANK, HISTOGRAM)

ROUNDS = 300
PATIENCE = 30
LEARNING_RATE = 0.05
# LightGBM refuses ranking groups above 10,000 rows.
_LARGEST_GROUP = 5_000


@dataclass(frozen=True)
class Table:
    """x: [R, 8], y: [R] 0/1, group: [R] ranking group, equal values adjacent."""

    x: Matrix
    y: Ints
    group: Ints

    @property
    def learnable(self) -> bool:
        """Whether both labels occur."""
        return 0 < int(self.y.sum()) < self.y.size

    def group_sizes(self) -> Ints:
        """[G] rows of each group in order, long ones cut."""
        starts = np.flatnonzero(np.diff(self.group, prepend=-1))
        place = np.arange(self.group.size) - np.repeat(
            starts, np.diff(starts, append=self.group.size)
        )
        return np.diff(np.flatnonzero(place % _LARGEST_GROUP == 0), append=self.group.size)


def gbdt_scores(
    known: Knowledge, test: Evidence, seed: int, max_train_rows: int
) -> dict[str, Floats]:
    """Scores [R] of trees fitted on the training split, stopped early on the validation split.

    Trained on the newest rows. Names say the engine: LightGBM pointwise and lambdarank, or
    scikit-learn's histogram trees where LightGBM's OpenMP library is missing. Empty if the
    training labels are constant.
    """
    train = _table(known, _newest(known, "train", max_train_rows))
    if not train.learnable:
        return {}
    valid = _table(known, _newest(known, "valid", max_train_rows))
    x = test.features()
    try:
        import lightgbm
    except OSError:
        return {HISTOGRAM: _histogram(train, x, seed)}
    return {
        POINTWISE: _boost(lightgbm, train, valid, x, seed, "binary"),
        LAMBDARANK: _boost(lightgbm, train, valid, x, seed, "lambdarank"),
    }


def _newest(known: Knowledge, split: str, limit: int) -> Ints:
    """The newest impressions of a split with at most `limit` rows; those that see no count go."""
    log, moment = known.data.impressions, known.moments.moment
    chosen = log.of(split)
    chosen = chosen[moment[chosen] > 0]
    chosen = chosen[np.argsort(-moment[chosen], kind="stable")]
    size = np.cumsum(log.offsets[chosen + 1] - log.offsets[chosen])
    return np.sort(chosen[size <= limit])


def _table(known: Knowledge, impressions: Ints) -> Table:
    rows = Rows.of(known.data, impressions)
    group = rows.impression
    if known.data.dataset.card.group_key != "impression":
        owner = known.data.impressions.user[impressions]
        rows = Rows.of(known.data, impressions[np.argsort(owner, kind="stable")])
        group = known.data.impressions.user[rows.impression].astype(np.int64)
    return Table(Evidence(known, rows).features(), rows.click, group)


def _boost(
    lightgbm: Any, train: Table, valid: Table, x: Matrix, seed: int, objective: str
) -> Floats:
    params = dict(
        objective=objective,
        learning_rate=LEARNING_RATE,
        num_leaves=31,
        min_data_in_leaf=50,
        metric={"binary": "binary_logloss", "lambdarank": "ndcg"}[objective],
        eval_at=[10],
        seed=seed % 2**31,
        deterministic=True,
        force_row_wise=True,
        # 300,000 rows take seconds on one thread; more make sums depend on the machine, and spin.
        num_threads=1,
        verbose=-1,
    )
    ranked = objective == "lambdarank"

    def dataset(table: Table, reference: Any = None) -> Any:
        sizes = table.group_sizes() if ranked else None
        return lightgbm.Dataset(table.x, table.y, group=sizes, reference=reference)

    fitted = dataset(train)
    stopped = valid.learnable
    model = lightgbm.train(
        params,
        fitted,
        num_boost_round=ROUNDS if stopped else ROUNDS // 3,
        valid_sets=[dataset(valid, fitted)] if stopped else [],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)] if stopped else [],
    )
    scores: Floats = np.asarray(model.predict(x), np.float64)
    return scores


def _histogram(train: Table, x: Matrix, seed: int) -> Floats:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=LEARNING_RATE,
        max_iter=ROUNDS // 3,
        min_samples_leaf=50,
        early_stopping=False,
        random_state=seed % 2**31,
    )
    # Columns that are unknown everywhere teach nothing, and scikit-learn cannot bin them.
    used = ~np.isnan(train.x).all(axis=0)
    scores: Floats = model.fit(train.x[:, used], train.y).predict_proba(x[:, used])[:, 1]
    return scores
