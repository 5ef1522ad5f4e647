"""`raysys tune nrms`: the rates, sizes and regularisation of `news/nrms`."""

from tune_spaces.runner.space import Choice, Real, Space, Whole


def space() -> Space:
    """Every width can be divided by every number of heads."""
    return Space(
        recipe="news/nrms",
        metric="gauc",
        mode="max",
        search={
            "train.lr": Real(low=1e-4, high=3e-3, log=True),
            "train.weight_decay": Real(low=1e-6, high=1e-2, log=True),
            "model.width": Choice(values=(64, 128, 256)),
            "model.heads": Choice(values=(2, 4, 8, 16)),
            "model.dropout": Real(low=0.0, high=0.5),
            "model.history_length": Choice(values=(20, 50, 100)),
            "negatives": Whole(low=2, high=8),
        },
        defaults={"with_histories": False},
    )
