"""The laws of the world as pure functions of arrays; everything that decides a click is here."""

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    p: np.ndarray = 1.0 / (1.0 + np.exp(-x))
    return p


def repeat_strength(count: np.ndarray) -> np.ndarray:
    """1 − 2^−n of n earlier clicks on the item, as known at the last local midnight."""
    return np.float32(1.0) - np.exp2(-count.astype(np.float32))


def price_fit(liked: np.ndarray, band: np.ndarray) -> np.ndarray:
    """0 at the liked price band, −1/2 per band away from it."""
    fit: np.ndarray = -0.5 * np.abs(liked - band)
    return fit


def latin_square(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, size] rows and columns of a cyclic square in random order.

    Row and column alone leave all values equally likely; both together tell the value.
    """
    rows, columns, values = (rng.permutation(size) for _ in range(3))
    cells: np.ndarray = values[(rows[:, None] + columns[None, :]) % size]
    return cells


def click_probability(
    logit: np.ndarray, position_bias: np.ndarray | float, offset: float
) -> np.ndarray:
    """p(click) = σ(κ·U + b_position − b0) [R, C] of the logits κ·U [R, C]."""
    return sigmoid(logit + position_bias - offset)


def solve_offset(logit: np.ndarray, rate: float, weight: np.ndarray | None = None) -> float:
    """The b with mean σ(logit − b) = rate, by bisection; `weight` weighs the mean."""
    w = np.ones_like(logit) if weight is None else weight
    low, high = float(logit.min()) - 50.0, float(logit.max()) + 50.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        mean = float((w * sigmoid(logit - middle)).sum() / w.sum())
        low, high = (middle, high) if mean > rate else (low, middle)
    return 0.5 * (low + high)


def personal_laws(
    rng: np.random.Generator, shared: np.ndarray, users: int, concentration: float, uniform: float
) -> np.ndarray:
    """[users, P, V] laws (1 − uniform)·Dir(concentration·shared) + uniform/V of each user."""
    draws = rng.standard_gamma(np.broadcast_to(concentration * shared, (users, *shared.shape)))
    draws += 1e-12
    law: np.ndarray = (1 - uniform) * draws / draws.sum(-1, keepdims=True) + uniform / draws.shape[
        -1
    ]
    return law


def drifting_tastes(rng: np.random.Generator, users: int, weeks: int, values: int) -> np.ndarray:
    """[users, weeks, values] log θ: a lasting taste plus a weekly drift that forgets by 0.8."""
    lasting = 1.2 * rng.standard_normal((users, 1, values))
    drift = 0.35 * rng.standard_normal((users, weeks, values))
    for week in range(1, weeks):
        drift[:, week] += 0.8 * drift[:, week - 1]
    raw = lasting + drift
    top = raw.max(axis=-1, keepdims=True)
    law: np.ndarray = raw - top - np.log(np.exp(raw - top).sum(-1, keepdims=True))
    return law
