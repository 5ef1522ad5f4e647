"""Mandatory cheap baselines: no result of a model is shown without them."""

from raysys.metrics.baselines.compute import NAMES, NEEDS, PROBABILITIES, compute_baselines

__all__ = ["NAMES", "NEEDS", "PROBABILITIES", "compute_baselines"]
