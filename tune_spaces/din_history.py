"""`raysys tune din_history`: how much past `ctr/din` needs; a curve over the history's length."""

from tune_spaces.runner.space import Space


def space() -> Space:
    """Every length with every seed, all trained to their end."""
    return Space(
        recipe="ctr/din",
        metric="gauc",
        mode="max",
        grid={"model.history_length": (5, 10, 20, 50, 100)},
        curve="model.history_length",
        seeds=3,
        defaults={"with_histories": False},
    )
