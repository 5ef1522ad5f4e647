"""Hyper-parameter sweeps: one module per search space, run by Ray Tune."""
