"""`raysys tune larr_contrast`: stage 2 of LARR, by how often the place chosen next is found.

Give it what stage 1 has made (backbone=dir:R1/hf) and the sizes of that model in --config. What
the encoder is worth to a ranker, `raysys tune larr` tells.
"""

from tune_spaces.runner.space import Choice, Real, Space


def space() -> Space:
    """τ, λ of each kind of pairs, rate, rank of the adapters and width of the head (§2.2, §3)."""
    return Space(
        recipe="llm/contrast",
        metric="up/recall@10",
        mode="max",
        search={
            "temperature": Real(low=0.02, high=0.3, log=True),  # τ
            "weights.uu": Real(low=0.1, high=3.0, log=True),  # λ_uu
            "weights.pp": Real(low=0.1, high=3.0, log=True),  # λ_pp
            "weights.up": Real(low=0.1, high=3.0, log=True),  # λ_up
            "train.lr": Real(low=1e-4, high=3e-3, log=True),
            "tuning.lora.rank": Choice(values=(4, 8, 16, 32)),
            "width": Choice(values=(64, 128, 256)),  # d_e
        },
        defaults={"tuning": {"method": "lora"}, "baselines": []},
    )
