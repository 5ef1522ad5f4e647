"""Our DIN, SIM, ETA, SDIM and TWIN beside FuxiCTR's: the same rows, sizes, loss and optimiser.

Three checks. From equal weights both must give equal logits; from equal first weights and the
same rows in the same order, equal losses; and seeds of their own, equal quality on validation.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
from scipy.special import stdtrit

from bench.equal_data import data_sizes, planted_world
from bench.longctr_runs import CLIP_NORM, SAME_LOGITS, Figures, Runs, Sizes
from raysys.data.dataset import Dataset
from raysys.data.prepared import prepare
from raysys.metrics.seeds import summary

MODELS = ("DIN", "SIM", "ETA", "SDIM", "TWIN")
METRICS = ("auc", "gauc")
# Fixed before the first measurement.
ALPHA = 0.05  # of all intervals together
WIDEST = 0.02  # an interval with a longer half does not tell
NOTE = (
    "FuxiCTR multiplies the relevance of SIM by the mask, so that padding (0) wins over events of "
    "negative relevance; ours never chooses padding. SIM, full histories: only rows whose window "
    "holds no padding. certain: rows in which FuxiCTR has no choice, because no two items tie "
    "for the last of the k places. SDIM of FuxiCTR runs with l2_norm, which is the paper's ℓ2."
)


def run(
    users: int = 300,
    days: int = 60,
    seeds: int = 3,
    steps: int = 200,
    same_steps: int = 40,
    window: int = 100,
    k: int = 20,
    short: int = 20,
    batch_size: int = 512,
    embedding_dim: int = 16,
    attention_units: Sequence[int] = (32,),
    attention_dim: int = 32,
    hidden: Sequence[int] = (64, 32),
    bits: int = 256,
    groups: int = 16,
    group_bits: int = 3,
    lr: float = 2e-3,
    threads: int = 2,
    world_seed: int = 0,
    models: Sequence[str] = MODELS,
    out: str = "runs/bench-longctr",
) -> Figures:
    """Validation AUC and gAUC (by user, weighted by rows) of ours and FuxiCTR's over `seeds`.

    Every run is kept in `out`; the same command goes on where it was interrupted.
    """
    data = prepare(Dataset(planted_world(users, days, world_seed)))
    sizes = Sizes(
        window=window,
        k=k,
        short=short,
        batch_size=batch_size,
        embedding_dim=embedding_dim,
        attention_units=tuple(attention_units),
        attention_dim=attention_dim,
        hidden=tuple(hidden),
        bits=bits,
        groups=groups,
        group_bits=group_bits,
        lr=lr,
        threads=threads,
    )
    bench = Runs(data, sizes, Path(out))
    arms = [(model, model, 0) for model in models]
    if "SIM" in models:
        arms.append(("SIM, full histories", "SIM", window))
    comparisons = len(arms) * len(METRICS)
    return {
        "bench": "longctr",
        "equal_weights": {model: bench.equal_weights(model, same_steps) for model in models},
        "arms": {
            name: compared(bench.seeds(model, least, steps, seeds), ALPHA / comparisons)
            for name, model, least in arms
        },
        "data": {"users": users, "days": days, "seed": world_seed, **data_sizes(data)},
        "sizes": {**asdict(sizes), "steps": steps, "seeds": seeds, "clip_norm": CLIP_NORM},
        "rule": (
            f"equal within seed noise: the t interval of the difference at level "
            f"{1 - ALPHA / comparisons:.4f} ({1 - ALPHA:.0%} over all {comparisons}) holds 0 and "
            f"is at most {WIDEST} long to either side, of auc and of gauc; same: logits of certain "
            f"rows differ by {SAME_LOGITS} at most"
        ),
        "cpus": psutil.cpu_count(),
        "note": NOTE,
    }


def compared(runs: dict[str, list[Figures]], alpha: float) -> Figures:
    """Both sides' seeds by metric, the interval of their difference, and the verdict."""
    figures: Figures = {}
    for metric in METRICS:
        values = {name: [run[metric] for run in of] for name, of in runs.items()}
        difference = seed_difference(values["raysys"], values["fuxictr"], alpha)
        sides = {name: summary(dict(enumerate(v))).model_dump() for name, v in values.items()}
        figures[metric] = {**sides, "difference": difference}
    word = verdict([figures[metric]["difference"] for metric in METRICS])
    return {**figures, "verdict": word, "runs": runs}


def seed_difference(ours: Sequence[float], theirs: Sequence[float], alpha: float) -> Figures:
    """Difference of the means of unpaired seeds with its t interval of level 1 − alpha.

    Both sides are taken to have one variance, as the same model has; n ≥ 2 each.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    freedom = len(a) + len(b) - 2
    variance = (((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / freedom
    half = stdtrit(freedom, 1 - alpha / 2) * math.sqrt(variance * (1 / len(a) + 1 / len(b)))
    delta = float(a.mean() - b.mean())
    return {"delta": delta, "low": delta - float(half), "high": delta + float(half)}


def verdict(differences: Sequence[Figures]) -> str:
    """The words for the intervals of one arm; the rule is fixed above."""
    if any(d["low"] > 0 or d["high"] < 0 for d in differences):
        return "different"
    if any(d["high"] - d["low"] > 2 * WIDEST for d in differences):
        return "too few seeds to tell"
    return "equal within seed noise"


def markdown(result: Figures) -> str:
    """The tables of docs/results.md."""
    sizes, data = result["sizes"], result["data"]
    lines = [
        f"{data['users']} users × {data['days']} days, {data['train_rows']:,} rows, "
        f"{sizes['steps']} steps of {sizes['batch_size']}, window {sizes['window']}, "
        f"k {sizes['k']}, {sizes['seeds']} seeds a side. Rule: {result['rule']}.",
        "",
        "| equal weights | steps | largest difference of losses | certain rows | "
        "largest difference of their logits | sd of logits |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model, same in result["equal_weights"].items():
        lines.append(
            f"| {model} | {same['steps']} | {same['max_loss_difference']:.1e} | "
            f"{same['certain_rows']:,} of {same['rows']:,} | {same['max_logit_difference']:.1e} | "
            f"{same['sd_of_logits']:.2f} |"
        )
    lines += ["", "| own seeds | metric | ours | FuxiCTR | difference | |", "| --- " * 6 + "|"]
    for arm, figures in result["arms"].items():
        for metric in METRICS:
            ours, theirs = (figures[metric][side] for side in ("raysys", "fuxictr"))
            d = figures[metric]["difference"]
            lines.append(
                f"| {arm} | `{metric}` | {_of(ours)} | {_of(theirs)} | "
                f"{d['delta']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}] | {figures['verdict']} |"
            )
    return "\n".join([*lines, "", result["note"]])


def _of(side: Figures) -> str:
    return f"{side['mean']:.4f} ± {side['sd']:.4f}"
