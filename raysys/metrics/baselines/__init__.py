"""Mandatory cheap baselines: no result of a model is shown without them."""

from raysys.metrics.baselines.against import baseline_metrics, paired_intervals
from raysys.metrics.baselines.compute import NAMES, NEEDS, PROBABILITIES, compute_baselines
from raysys.metrics.baselines.counts import Counts
from raysys.metrics.baselines.gbdt import GBDT
from raysys.metrics.baselines.planted import oracle_scores, reader_kinds

__all__ = [
    "GBDT",
    "NAMES",
    "NEEDS",
    "PROBABILITIES",
    "Counts",
    "baseline_metrics",
    "compute_baselines",
    "oracle_scores",
    "paired_intervals",
    "reader_kinds",
]
