"""`raysys tune larr`: alignment, scene encoder and rates of `ctr/larr`, by downstream gauc.

Stage 2 has a space of its own, `larr_contrast`; its encoder is given as
`scene_encoder.backbone=dir:RUN/hf`.
"""

from tune_spaces.runner.space import Choice, Real, Space

# Those of the planted city; another log names its own in --config.
_SAID = {
    "mealtime": "It is",
    "place": "The user is",
    "weather": "The weather is",
    "day": "Today is",
}
_FEATURES = [
    *(
        {"kind": "context", "name": name, "contexts": [name], "template": f"{said} {{{name}}}."}
        for name, said in _SAID.items()
    ),
    {
        "kind": "taste",
        "name": "taste",
        "source": "category:2",
        "template": "The user likes {value} food.",
    },
    {"kind": "recent", "name": "recent", "field": "text", "events": 10},
]


def space() -> Space:
    """η among the values of larr.md §3; widths can be divided by every number of heads."""
    return Space(
        recipe="ctr/larr",
        metric="gauc",
        mode="max",
        search={
            "train.lr": Real(low=3e-4, high=1e-2, log=True),
            "train.weight_decay": Real(low=1e-5, high=1e-2, log=True),
            "larr.alignment.temperature": Real(low=0.03, high=0.5, log=True),  # τ_ali
            "larr.encoder.layers": Choice(values=(1, 2)),
            "larr.encoder.width": Choice(values=(16, 32, 64)),
            "larr.encoder.heads": Choice(values=(1, 2, 4)),
            "larr.encoder.dropout": Real(low=0.0, high=0.4),
            "larr.encoder.head": Choice(values=(16, 32, 64)),
            "larr.use": Choice(values=("query", "concat")),
        },
        grid={"larr.alignment.weight": (0.0, 0.03, 0.1, 0.3, 1.0)},  # η
        at_best=True,
        curve="larr.alignment.weight",
        seeds=3,
        defaults={"larr.features": _FEATURES, "with_histories": False},
    )
