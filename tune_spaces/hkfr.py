"""`raysys tune hkfr`: stage 2 of HKFR, by how often the category of the next order is among ten.

Give it the samples of `raysys build hkfr-instructions`, and the backbone in --config. How many days
and events the knowledge tells is an option of the samples: sweep a folder of each.
"""

from tune_spaces.runner.space import Choice, Real, Space


def space() -> Space:
    """Adapters, rate, epochs, length of the prompt, tasks beside the one that counts (§2.3, §3)."""
    return Space(
        recipe="llm/instruct",
        metric="category_hr@10",
        mode="max",
        search={
            "train.lr": Real(low=3e-5, high=3e-3, log=True),
            "train.epochs": Choice(values=(1, 2, 3)),
            "tuning.lora.rank": Choice(values=(4, 8, 16, 32)),
            "tuning.lora.targets": Choice(values=("attention", "linear")),
            "max_tokens": Choice(values=(256, 512, 1024)),  # of prompt and answer
            "other_tasks": Choice(values=(0.0, 0.25, 1.0)),
            "loss": Choice(values=("answer", "full")),
        },
        defaults={"task": "category", "tuning": {"method": "lora"}, "row_tokens": 1024},
        halving=None,  # epochs are varied, and the rate falls over all of them
        memory_gb=3.0,
    )
