"""`raysys tune cofars`: the selector of `ctr/cofars`, then the curve over its prototypes.

The shipped config leaves the full loss out, and without it τ_p, r and the depth of the graph do
nothing; so it is on here. γ and λ act in the full loss only where the prototypes are not anchored.
"""

from tune_spaces.runner.space import Choice, Real, Space

# Those of the planted city; another log names its own in --config.
_CONTEXTS = {"features": ["mealtime", "place", "weather", "day"], "drop": ["day", "weather"]}
_ATTRIBUTES = ("category:2", "attribute:price_band", "attribute:quality", "attribute:delivery")


def space() -> Space:
    """Values of τ_p and of the prototype count: §3 of the paper."""
    return Space(
        recipe="ctr/cofars",
        metric="gauc",
        mode="max",
        search={
            "cofars.encoder.anchored": Choice(values=(True, False)),
            "cofars.gates.temperature": Choice(values=(1e-3, 1e-2, 0.1, 1.0, 2.0)),  # τ_p
            "cofars.gates.percentile": Real(low=70.0, high=98.0),
            "cofars.gates.choice_percentile": Real(low=70.0, high=98.0),
            "cofars.loss.mse": Real(low=5e-3, high=5.0, log=True),  # γ
            "cofars.loss.ind": Real(low=1e-4, high=0.1, log=True),  # λ
            "cofars.recent": Choice(values=(5, 10, 20, 50)),  # r
            "cofars.lists.events": Choice(values=(20, 50, 100, 200)),  # K
            "cofars.graph.layers": Choice(values=(0, 1, 2)),
        },
        grid={"cofars.encoder.prototypes": (1, 10, 20, 30, 40, 60, 80)},
        at_best=True,
        curve="cofars.encoder.prototypes",
        seeds=3,
        defaults={
            "cofars.contexts": _CONTEXTS,
            "cofars.preferences.attributes.fields": [{"source": name} for name in _ATTRIBUTES],
            "selector.train": {
                "epochs": 3,
                "early_stopping": {"metric": "gauc", "patience": 1},
            },
            "with_histories": False,
        },
    )
