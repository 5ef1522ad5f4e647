"""The metric names, and what each stands for.

Grouped, KEY is `impression` or `user`:
    gauc_mean@KEY  gauc_weighted@KEY  mrr@KEY  mrr_first@KEY
    ndcg@10@KEY    hr@10~SET@KEY      recall@10~SET@KEY
SET is the candidate set: `full` catalogue, the logged `slate`, or `s100` for 100 sampled
negatives. Values on different sets are different metrics and never compared.
Pooled: auc (score against click), logloss, ne, ece, ece_width, calib_ratio (p_click against
click), auc_ctr (p_click), auc_ctcvr (p_order against order, all rows), auc_cvr (p_order/p_click
against order, clicked rows only).

"GAUC" has four public meanings (row-weighted, uniform, uniform without tied groups, pooled), so
no metric here bears the bare name.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from raysys.errors import MetricError
from raysys.metrics import pointwise, ranking
from raysys.metrics.blocks import Floats, TieBlocks
from raysys.metrics.pointwise import Tally

Key = Literal["impression", "user"]
Column = Literal["score", "p_click", "p_order", "p_cvr"]
Label = Literal["click", "order"]


@dataclass(frozen=True)
class GroupedMetric:
    """A mean of per-group values; `by_rows` weights a group by its rows, else uniformly."""

    name: str
    key: Key
    per_group: Callable[[TieBlocks], Floats]
    by_rows: bool
    needs_both_labels: bool
    higher_is_better: bool | None = True


@dataclass(frozen=True)
class PooledMetric:
    """A function of all rows at once: `column` against the `label` column."""

    name: str
    statistic: Callable[[Tally], float]
    column: Column
    label: Label
    clicked_only: bool
    higher_is_better: bool | None


Metric = GroupedMetric | PooledMetric

_AUC: dict[str, tuple[Column, Label, bool]] = {
    "auc": ("score", "click", False),
    "auc_ctr": ("p_click", "click", False),
    "auc_ctcvr": ("p_order", "order", False),
    "auc_cvr": ("p_cvr", "order", True),
}
_CALIBRATION: dict[str, tuple[Callable[[Tally], float], bool | None]] = {
    "logloss": (pointwise.logloss, False),
    "ne": (pointwise.ne, False),
    "ece": (pointwise.ece, False),
    "ece_width": (pointwise.ece_width, False),
    "calib_ratio": (pointwise.calib_ratio, None),
}
_PLAIN: dict[str, tuple[Callable[[TieBlocks], Floats], bool, bool]] = {
    "gauc_mean": (ranking.auc, False, True),
    "gauc_weighted": (ranking.auc, True, True),
    "mrr": (ranking.mrr, False, False),
    "mrr_first": (ranking.mrr_first, False, False),
}
_CUT: dict[str, Callable[..., Floats]] = {
    "ndcg": ranking.ndcg,
    "hr": ranking.hit_rate,
    "recall": ranking.recall,
}
_GROUPED = re.compile(
    r"(?P<base>gauc_mean|gauc_weighted|mrr|mrr_first"
    r"|(?P<cut>ndcg)@(?P<k>[1-9]\d*)|(?P<hits>hr|recall)@(?P<hits_k>[1-9]\d*)~(full|slate|s[1-9]\d*))"
    r"@(?P<key>impression|user)"
)
_EXAMPLES = [
    *_AUC,
    *_CALIBRATION,
    *(
        f"{base}@{key}"
        for key in ("impression", "user")
        for base in (*_PLAIN, "ndcg@5", "ndcg@10", "hr@10~full", "recall@10~full")
    ),
]


def parse(name: str) -> Metric:
    """The metric called `name`; MetricError with the nearest valid name if there is none."""
    if name in _AUC:
        column, label, clicked_only = _AUC[name]
        return PooledMetric(name, pointwise.auc, column, label, clicked_only, True)
    if name in _CALIBRATION:
        statistic, higher = _CALIBRATION[name]
        return PooledMetric(name, statistic, "p_click", "click", False, higher)
    found = _GROUPED.fullmatch(name)
    if found is None:
        near = [example for example in _EXAMPLES if example.startswith(name)][:4]
        near = near or difflib.get_close_matches(name, _EXAMPLES, n=3, cutoff=0.3) or _EXAMPLES
        raise MetricError(f"no metric is called {name!r}; did you mean {', '.join(near)}?")
    key: Key = "user" if found["key"] == "user" else "impression"
    if found["base"] in _PLAIN:
        function, by_rows, both = _PLAIN[found["base"]]
        return GroupedMetric(name, key, function, by_rows, both)
    cut, k = _CUT[found["cut"] or found["hits"]], int(found["k"] or found["hits_k"])
    return GroupedMetric(name, key, partial(cut, k=k), False, False)
