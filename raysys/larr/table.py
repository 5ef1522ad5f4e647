"""The vectors that a run keeps for its scenes: by feature and text, without the LLM."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.data.columns import ColumnFolder

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
_FOLDER = "scene"


@dataclass(frozen=True)
class SceneTable:
    """V sentences with vectors of width D, and what items say of their users' past.

    names [V], texts [V]: feature and text; vectors [V, D] float32. taste: feature → row of
    `vectors` [N] of each item's sentence, −1 where it has none. recent: feature → text vectors
    [N, D] of the items, zeros where an item has none. drawn_context [S, F], drawn_items [S, L]:
    scenes of other requests, for the placebo that shuffles them.
    """

    names: list[str]
    texts: list[str]
    vectors: Floats
    taste: dict[str, Ints] = field(default_factory=dict)
    recent: dict[str, Floats] = field(default_factory=dict)
    drawn_context: Ints | None = None
    drawn_items: Ints | None = None

    @property
    def rows(self) -> dict[tuple[str, str], int]:
        """(feature, text) → row of `vectors`."""
        keys = zip(self.names, self.texts, strict=True)
        return {key: row for row, key in enumerate(keys)}

    def save(self, snapshot: Path) -> None:
        """Write as a folder of mapped columns."""
        columns = ColumnFolder(snapshot / _FOLDER)
        columns.write("names", pa.array(self.names, pa.string()))
        columns.write("texts", pa.array(self.texts, pa.string()))
        columns.write("vectors", self.vectors)
        for kind, parts in (("taste", self.taste), ("recent", self.recent)):
            for name, values in parts.items():
                columns.write(f"{kind}.{name}", values)
        for name in ("drawn_context", "drawn_items"):
            if getattr(self, name) is not None:
                columns.write(name, getattr(self, name))

    @classmethod
    def load(cls, snapshot: Path, taste: tuple[str, ...], recent: tuple[str, ...]) -> "SceneTable":
        """Read what `save` wrote; taste, recent: the features that the model has."""
        columns = ColumnFolder(snapshot / _FOLDER)
        drawn = columns.file("drawn_context").is_file()
        return cls(
            names=columns.read_strings("names").to_pylist(),
            texts=columns.read_strings("texts").to_pylist(),
            vectors=columns.read("vectors"),
            taste={name: columns.read(f"taste.{name}") for name in taste},
            recent={name: columns.read(f"recent.{name}") for name in recent},
            drawn_context=columns.read("drawn_context") if drawn else None,
            drawn_items=columns.read("drawn_items") if drawn else None,
        )


def random_units(count: int, width: int, seed: int) -> Floats:
    """Directions [count, width] drawn alike in all directions."""
    drawn = np.random.default_rng(seed).standard_normal((count, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
