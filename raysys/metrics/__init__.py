"""Metrics, intervals and leak tests: one implementation and one scoring path for everything.

`evaluate(rows, names)` gives named values, `compare` two systems side by side, `leaks` the sanity
tests of a protocol, `gap_share` the distance to a known oracle.
"""

from raysys.metrics.compare import Comparison, System, compare, load_system
from raysys.metrics.evaluate import MetricValue, evaluate, merge, partial_metrics
from raysys.metrics.oracle import GapShare, gap_share
from raysys.metrics.routing import route
from raysys.metrics.scored import ScoredRows

__all__ = [
    "Comparison",
    "GapShare",
    "MetricValue",
    "ScoredRows",
    "System",
    "compare",
    "evaluate",
    "gap_share",
    "load_system",
    "merge",
    "partial_metrics",
    "route",
]
