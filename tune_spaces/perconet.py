"""`raysys tune perconet`: persona, contrast and rates of `news/perconet`, by validation gauc."""

from tune_spaces.runner.space import Choice, Real, Space


def space() -> Space:
    """τ and λ are a grid, those of PerCoNet's sweep; a map of both and a curve over λ are drawn."""
    return Space(
        recipe="news/perconet",
        metric="gauc",
        mode="max",
        search={
            "train.lr": Real(low=1e-4, high=3e-3, log=True),
            "train.weight_decay": Real(low=1e-6, high=1e-2, log=True),
            "model.fusion": Choice(values=("attn", "title", "concat_vec")),
            "model.dropout": Real(low=0.0, high=0.5),
            "model.persona.size": Choice(values=(5, 10, 20, 50)),  # K
            "model.persona.half_life": Real(low=2.0, high=200.0, log=True),
            "model.persona.eta": Choice(values=(0.0, 0.5, 1.0, 2.0)),  # η
        },
        grid={
            "model.contrast.temperature": (0.05, 0.1, 0.2, 0.5),  # τ
            "model.contrast.weight": (0.0, 0.01, 0.05, 0.1, 0.3, 1.0),  # λ
        },
        at_best=True,
        curve="model.contrast.weight",
        map=("model.contrast.temperature", "model.contrast.weight"),
        seeds=3,
        defaults={"with_histories": False},
    )
