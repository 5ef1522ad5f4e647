"""What runs the sweeps: Optuna suggests, ASHA stops, Ray Tune places, our own ledger remembers."""
