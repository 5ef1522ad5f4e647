"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from raysys.training.config import TrainConfig

_LATE = 0.7  # of all steps


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Rate of the optimiser step number `step` (from 0) of `total_steps`.

    Rises linearly over `warmup_steps`, then stays (constant) or falls to
    `final_lr_fraction · lr` at the last step (cosine, linear), or does so in the last 30 % of the
    steps (late).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    begin = config.warmup_steps
    if config.schedule == "late":
        begin = max(begin, math.floor(_LATE * total_steps))
    done = min(1.0, max(0.0, (step - begin) / max(1, total_steps - 1 - begin)))
    fall = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.lr * (config.final_lr_fraction + (1 - config.final_lr_fraction) * fall)
