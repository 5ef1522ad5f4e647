"""Grouped metrics against scikit-learn called once per group: equality and speed.

Also shows, on one synthetic score set, how far apart the public meanings of "GAUC" lie.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import ndcg_score, roc_auc_score

from raysys.metrics import pointwise, ranking
from raysys.metrics.blocks import Floats, Ints, tie_blocks
from raysys.metrics.pointwise import Tally

K = 10


def run(groups: int = 20_000, rows: int = 37, repeats: int = 3, seed: int = 0) -> dict[str, object]:
    """groups × rows scored rows, two decimals in the score so that ties are common.

    Both sides get the same flat arrays; the runs alternate, and `ratio` is the median time of
    scikit-learn over ours for AUC and nDCG@10 of every group.
    """
    score, label, code = _sample(groups, rows, seed)
    ours: list[tuple[Floats, Floats]] = []
    theirs: list[tuple[Floats, Floats]] = []
    seconds: dict[str, list[float]] = {"raysys": [], "sklearn": []}
    for _ in range(repeats):
        seconds["raysys"].append(_timed(ours, lambda: _ours(score, label, code)))
        seconds["sklearn"].append(_timed(theirs, lambda: _theirs(score, label, groups)))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "bench": "metrics",
        "groups": groups,
        "rows": groups * rows,
        "seed": seed,
        "repeats": repeats,
        "metrics": ["auc per group", f"ndcg@{K} per group"],
        "max_difference": {
            name: float(np.nanmax(np.abs(ours[-1][i] - theirs[-1][i])))
            for i, name in enumerate(("auc", f"ndcg@{K}"))
        },
        "undefined_groups_agree": bool(
            np.array_equal(np.isnan(ours[-1][0]), np.isnan(theirs[-1][0]))
        ),
        "seconds": median,
        "rows_per_second": groups * rows / median["raysys"],
        "ratio": median["sklearn"] / median["raysys"],
        "meanings_of_gauc": meanings_of_gauc(seed),
    }


def meanings_of_gauc(seed: int = 0) -> dict[str, float]:
    """One score set, four numbers: groups differ in size, in base rate and in difficulty."""
    rng = np.random.default_rng(seed)
    size = np.where(rng.random(2_000) < 0.5, 4, 40)
    code = np.repeat(np.arange(size.size), size)
    skill, level = np.where(size == 40, 1.5, 0.4), rng.normal(0.0, 1.0, size.size)
    label = rng.random(code.size) < 1.0 / (1.0 + np.exp(1.0 - level[code]))
    score = np.round(skill[code] * label + level[code] + rng.normal(size=code.size), 1)
    # A quarter of the groups or so gets one score throughout, as a cold-start fallback gives.
    score[(size == 4)[code] & (code % 2 == 0)] = 0.0
    blocks = tie_blocks(score, label, code)
    auc = ranking.auc(blocks)
    used = ~np.isnan(auc)
    tied = np.bincount(blocks.group, minlength=size.size) == 1
    return {
        "row_weighted": float(np.average(auc[used], weights=size[used])),
        "uniform": float(auc[used].mean()),
        "uniform_without_tied_groups": float(auc[used & ~tied].mean()),
        "pooled": pointwise.auc(Tally.of(score, label)),
    }


def _sample(groups: int, rows: int, seed: int) -> tuple[Floats, Ints, Ints]:
    rng = np.random.default_rng(seed)
    label = (rng.random(groups * rows) < 0.1).astype(np.int64)
    score = np.round(rng.normal(size=label.size) + 0.5 * label, 2)
    return score.astype(np.float64), label, np.repeat(np.arange(groups), rows)


def _ours(score: Floats, label: Ints, code: Ints) -> tuple[Floats, Floats]:
    blocks = tie_blocks(score, label, code)
    return ranking.auc(blocks), ranking.ndcg(blocks, K)


def _theirs(score: Floats, label: Ints, groups: int) -> tuple[Floats, Floats]:
    auc, ndcg = np.full(groups, np.nan), np.full(groups, np.nan)
    pairs = zip(score.reshape(groups, -1), label.reshape(groups, -1), strict=True)
    for g, (s, y) in enumerate(pairs):
        if y.sum() > 0:
            ndcg[g] = ndcg_score(y[None], s[None], k=K)
            if y.sum() < y.size:
                auc[g] = roc_auc_score(y, s)
    return auc, ndcg


def _timed(
    results: list[tuple[Floats, Floats]], work: Callable[[], tuple[Floats, Floats]]
) -> float:
    start = time.perf_counter()
    results.append(work())
    return time.perf_counter() - start
