"""Fewer numbers for a ranker: a projection that is fitted once and then stays (§2.4)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Projection:
    """x → (x − mean) · matrix; mean [D], matrix [D, W]."""

    mean: Floats
    matrix: Floats

    @classmethod
    def fit(cls, x: Floats, width: int, kind: Literal["pca", "random"], seed: int) -> "Projection":
        """Of x [N, D], to min(width, D) numbers: those along which x varies most, the most first,
        or in directions drawn at random."""
        wide = x.astype(np.float64)
        mean = wide.mean(0)
        width = min(width, x.shape[1])
        if kind == "random":
            drawn = np.random.default_rng(seed).normal(size=(x.shape[1], width))
            matrix = drawn / np.sqrt(width)
        else:
            centred = wide - mean
            matrix = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :width]
            # An eigenvector has no sign of its own: its largest entry is positive.
            largest = np.abs(matrix).argmax(0)
            matrix = matrix * np.sign(matrix[largest, np.arange(width)])
        return cls(mean.astype(np.float32), np.ascontiguousarray(matrix, np.float32))

    def __call__(self, x: Floats) -> Floats:
        """x [N, D] → [N, W]."""
        return (x - self.mean) @ self.matrix


def save_projections(path: Path, projections: dict[str, Projection]) -> None:
    """Write the projections of several features as safetensors, all or nothing."""
    parts = {
        f"{name}/{part}": getattr(projection, part)
        for name, projection in projections.items()
        for part in ("mean", "matrix")
    }
    scratch = path.with_name(f".{path.name}")
    save_file(parts, scratch)
    scratch.replace(path)


def load_projections(path: Path) -> dict[str, Projection]:
    """What `save_projections` has written."""
    parts = load_file(path)
    names = sorted({name.rpartition("/")[0] for name in parts})
    return {name: Projection(parts[f"{name}/mean"], parts[f"{name}/matrix"]) for name in names}
