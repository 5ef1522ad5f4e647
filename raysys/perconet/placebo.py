"""What stands in the place of a user's persona where it must not win."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raysys.data.columns import ColumnFolder

_FOLDER = "persona_placebo"
_ARRAYS = ("drawn", "owner", "popular", "popular_weight")


@dataclass(frozen=True)
class Placebo:
    """drawn [S, L]: catalogue rows of the newest clicks of drawn users, ascending by their number,
    newest first, 0 behind the last; owner [S]: where each one's history begins; popular [K],
    popular_weight [K]: entities of the persona of all
    users together and their π."""

    drawn: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 1), np.int64))
    owner: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    popular: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    popular_weight: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def save(self, snapshot: Path) -> None:
        """Write as a folder of mapped columns."""
        columns = ColumnFolder(snapshot / _FOLDER)
        for name in _ARRAYS:
            columns.write(name, getattr(self, name))

    @classmethod
    def load(cls, snapshot: Path) -> "Placebo | None":
        """Read what `save` wrote; None where nothing was."""
        if not (snapshot / _FOLDER).is_dir():
            return None
        columns = ColumnFolder(snapshot / _FOLDER)
        return cls(**{name: columns.read(name) for name in _ARRAYS})
