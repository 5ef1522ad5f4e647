"""A light estimator for the planted food city: what can counted features find?

Hand features of each candidate go into a small GBDT that is trained on the training part;
arms differ only in the events whose fields are counted.
"""

from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np

from raysys.data.dataset import Dataset
from raysys.data.world.reading import (
    History,
    Rows,
    history_ends,
    item_fields,
    read_history,
    read_rows,
)
from raysys.data.world.scene import CONTEXT_COUNT, context_parts
from raysys.data.world.truth import read_truth


def gauc(label: np.ndarray, score: np.ndarray, group: np.ndarray) -> float:
    """Row-weighted mean of per-group AUC over groups with both labels."""
    order = np.lexsort((score, group))
    label, score, group = label[order], score[order], group[order]
    fresh = np.r_[True, (group[1:] != group[:-1]) | (score[1:] != score[:-1])]
    tie = np.cumsum(fresh) - 1
    rank = np.arange(len(group))
    size = np.bincount(group)
    start = np.cumsum(size) - size
    mid = (np.bincount(tie, rank) / np.bincount(tie))[tie] - start[group] + 1
    positives = np.bincount(group, label, minlength=len(size))
    negatives = size - positives
    wins = np.bincount(group, mid * label, minlength=len(size)) - positives * (positives + 1) / 2
    used = (positives > 0) & (negatives > 0)
    value = wins[used] / (positives * negatives)[used]
    return float((value * size[used]).sum() / size[used].sum())


@dataclass
class City:
    """A world folder in arrays, with its base features."""

    rows: Rows
    history: History
    fields: list[np.ndarray]
    start: np.ndarray
    end: np.ndarray
    prototype: np.ndarray
    base: np.ndarray

    @property
    def group(self) -> np.ndarray:
        """User of each row."""
        return self.rows.user[self.rows.request]


def load_city(path: Path) -> City:
    """Read a world of one or a few shards."""
    dataset, truth = Dataset(path), read_truth(path)
    parts = len(dataset.files("impressions"))
    rows, history = read_rows(dataset, truth, parts), read_history(dataset, parts)
    fields = item_fields(dataset)
    start, end = history_ends(history, rows.user, rows.ts)
    cut = rows.ts[rows.split > 0].min()
    base = np.column_stack(_base(rows, history, fields, start, end, cut))
    prototype = truth.context_map()["prototype"].to_numpy()
    return City(rows, history, fields, start, end, prototype, base)


def _base(
    rows: Rows,
    history: History,
    fields: list[np.ndarray],
    start: np.ndarray,
    end: np.ndarray,
    cut: int,
) -> list[np.ndarray]:
    """Popularity, repeats, and how much each field value is liked in the context's values."""
    items = len(fields[0])
    train = (rows.split == 0)[rows.request]
    seen = np.bincount(rows.item[train], minlength=items)
    clicked = np.bincount(rows.item[train], rows.click[train], minlength=items)
    before = history.ts < cut
    columns = [((clicked + 1) / (seen + 20))[rows.item]]
    columns.append(np.log1p(np.bincount(history.item[before], minlength=items))[rows.item])
    repeats = np.zeros(len(rows.item))
    bounds = np.searchsorted(rows.request, np.arange(len(start) + 1))
    for r in range(len(start)):
        low, high = bounds[r], bounds[r + 1]
        past = np.bincount(history.item[start[r] : end[r]], minlength=items)
        repeats[low:high] = past[rows.item[low:high]]
    columns.append(repeats)
    parts = context_parts(history.context[before])
    wanted = context_parts(rows.context)
    joint = (history.context[before], rows.context, CONTEXT_COUNT)
    scenes = [(p, w, int(p.max()) + 1) for p, w in zip(parts, wanted, strict=True)] + [joint]
    for field in fields:
        width = int(field.max()) + 1
        value = field[history.item[before]]
        prior = np.bincount(value, minlength=width) + 1.0
        for past, now, size in scenes:
            counts = np.bincount(past * width + value, minlength=size * width)
            counts = counts.reshape(size, width) + 20 * prior / prior.sum()
            lift = np.log(counts / counts.sum(1, keepdims=True) / (prior / prior.sum()))
            columns.append(lift[now[rows.request], field[rows.item]])
    return columns


def pooled(city: City, retrieve: str, keep: int = 50) -> np.ndarray:
    """[rows, 5] shares of the candidate's field values among the retrieved events, and their count.

    Args:
        retrieve: recent (last `keep`), full, exact (same context, last `keep`) or prototype
            (same hidden prototype, last `keep`).
    """
    rows, history = city.rows, city.history
    result = np.zeros((len(rows.item), len(city.fields) + 1), dtype=np.float32)
    bounds = np.searchsorted(rows.request, np.arange(len(city.start) + 1))
    past_prototype = city.prototype[history.context]
    for r in range(len(city.start)):
        low, high = bounds[r], bounds[r + 1]
        index = np.arange(city.start[r], city.end[r])
        if retrieve == "exact":
            index = index[history.context[index] == rows.context[r]]
        elif retrieve == "prototype":
            index = index[past_prototype[index] == city.prototype[rows.context[r]]]
        if retrieve != "full":
            index = index[-keep:]
        items = history.item[index]
        for column, field in enumerate(city.fields):
            width = int(field.max()) + 1
            share = (np.bincount(field[items], minlength=width) + 3 / width) / (len(items) + 3)
            result[low:high, column] = share[field[rows.item[low:high]]]
        result[low:high, -1] = len(items)
    return result


def fit_score(city: City, *features: np.ndarray, seed: int = 0) -> np.ndarray:
    """[rows] click scores of a GBDT on base and `features`, trained on the training part."""
    x = np.column_stack([city.base, *features])
    train = (city.rows.split == 0)[city.rows.request]
    model = lightgbm.train(
        {
            "objective": "binary",
            "learning_rate": 0.1,
            "num_leaves": 15,
            "min_data_in_leaf": 100,
            "lambda_l2": 5.0,
            "max_bin": 63,
            "num_threads": 1,
            "deterministic": True,
            "seed": seed,
            "verbosity": -1,
        },
        lightgbm.Dataset(x[train], city.rows.click[train]),
        num_boost_round=120,
    )
    return np.asarray(model.predict(x))
