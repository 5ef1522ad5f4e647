"""`raysys tune homodistil`: how a student becomes thin, by its held-out loss, at several widths.

Give it a corpus, the teacher and --config as `raysys train llm/homodistil` has them. Quality has
its price: `report/front.png` shows the held-out loss over the time of a row.
"""

from tune_spaces.runner.space import Choice, Real, Space


def space() -> Space:
    """ΔT, t_f, score, weights of the losses and rate (§2.2–2.4), each at every ratio."""
    return Space(
        recipe="llm/homodistil",
        metric="loss",
        mode="min",
        search={
            "train.lr": Real(low=1e-4, high=3e-3, log=True),
            "every": Choice(values=(2, 5, 10, 20)),  # ΔT
            "end": Real(low=0.3, high=0.9),  # t_f ÷ T
            "score": Choice(values=("platon", "sensitivity", "sensitivity_ema", "magnitude")),
            "loss.kl": Choice(values=(0.0, 1.0, 5.0)),  # a1
            "loss.hidden": Choice(values=(0.0, 1.0, 5.0, 20.0)),  # a2
            "loss.embedding": Choice(values=(0.0, 1.0, 5.0)),  # a4
        },
        grid={"ratio": (0.75, 0.5, 0.25)},
        samples=6,
        halving=None,
        curve="ratio",
        front="speed.student.ms",
    )
