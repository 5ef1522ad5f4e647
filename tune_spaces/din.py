"""`raysys tune din`: the rates, sizes and regularisation of `ctr/din`."""

from tune_spaces.runner.space import Choice, Real, Space


def space() -> Space:
    """Ranges for logs of ten thousand to a few million impressions."""
    return Space(
        recipe="ctr/din",
        metric="gauc",
        mode="max",
        search={
            "train.lr": Real(low=3e-4, high=1e-2, log=True),
            "train.weight_decay": Real(low=1e-5, high=1e-2, log=True),
            "model.embedding_dim": Choice(values=(4, 8, 16, 32)),
            "model.history_length": Choice(values=(10, 20, 50, 100)),
            "model.dropout": Real(low=0.0, high=0.4),
            "model.init_std": Real(low=0.01, high=0.3, log=True),
            "model.attention_softmax": Choice(values=(False, True)),
        },
        # Histories of people are not part of what is compared.
        defaults={"with_histories": False},
    )
