"""State of the global random generators of one process as a flat tensor of bytes."""

import random

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> Tensor:
    """The state of Python's, NumPy's and torch's generators, [bytes] uint8, always as long."""
    version, words, gauss = random.getstate()
    python = np.array([version, *words, gauss is not None], dtype=np.int64)
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    parts = [
        python.view(np.uint8),
        np.array([gauss or 0.0, cached]).view(np.uint8),
        np.array([position, has_gauss], dtype=np.int64).view(np.uint8),
        keys.astype(np.uint32).view(np.uint8),
        torch.get_rng_state().numpy(),
    ]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device).numpy())
    return torch.from_numpy(np.concatenate(parts))


def set_rng_state(state: Tensor, device: torch.device) -> None:
    """Restore what `rng_state` gave on the same kind of device."""
    raw = state.numpy()

    def take(dtype: type, count: int) -> np.ndarray:
        nonlocal raw
        size = np.dtype(dtype).itemsize * count
        head, raw = raw[:size], raw[size:]
        return np.frombuffer(head.tobytes(), dtype=dtype)

    python = take(np.int64, 627).tolist()
    gauss, cached = take(np.float64, 2).tolist()
    position, has_gauss = take(np.int64, 2).tolist()
    keys = take(np.uint32, 624)
    random.setstate((python[0], tuple(python[1:-1]), gauss if python[-1] else None))
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    cpu = len(torch.get_rng_state())
    torch.set_rng_state(torch.from_numpy(raw[:cpu].copy()))
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(raw[cpu:].copy()), device)
