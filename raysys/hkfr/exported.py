"""Features of texts as rows of the dated table, and back (§7): an unchanged text is not read again."""  # noqa: E501

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.feature_table import SCHEMA, dated_folder, dated_folders, read_dated
from raysys.hkfr.features import COLD

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TextValues:
    """Of n texts the numbers of each feature [n, W]; row: of each text's key."""

    row: dict[str, int]
    arrays: dict[str, Floats]

    @classmethod
    def of(cls, keys: Sequence[str], arrays: dict[str, Floats]) -> "TextValues":
        """keys [n] of the texts, in the order of the arrays."""
        return cls({key: row for row, key in enumerate(keys)}, arrays)

    def take(self, keys: Sequence[str]) -> "TextValues":
        """The values of these texts."""
        rows = [self.row[key] for key in keys]
        return TextValues.of(keys, {name: array[rows] for name, array in self.arrays.items()})

    def joined(self, other: "TextValues") -> "TextValues":
        """With those of other texts, of the same features."""
        arrays = {
            name: np.concatenate([array, other.arrays[name]]) for name, array in self.arrays.items()
        }
        return TextValues.of([*self.row, *other.row], arrays)

    def rows(self, knowledge: pa.Table, source: str) -> pa.Table:
        """The rows of a day, feature by feature, of the users of its knowledge; with `hkfr.cold`.

        source: what made the values; with the key of the text it is the source_id.
        """
        keys = knowledge["key"].to_pylist()
        order = [self.row[key] for key in keys]
        arrays = {name: array[order] for name, array in self.arrays.items()}
        cold = knowledge["cold"].to_numpy().astype(np.float32)
        sources = pa.array([f"{source}-{key}" for key in keys], pa.string())
        parts = []
        for name, array in {**arrays, COLD: cold[:, None]}.items():
            count, width = array.shape
            offsets = pa.array(np.arange(count + 1, dtype=np.int32) * np.int32(width))
            value = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(array).ravel()))
            kind, names = (pa.array([text] * count, pa.string()) for text in ("user", name))
            columns = [kind, knowledge["user_id"], names, value, sources]
            parts.append(pa.table(columns, schema=SCHEMA))
        return pa.concat_tables(parts)


def values_before(out: Path, source: str, day: date) -> TextValues | None:
    """What `rows` has written of the newest date before `day`, if there is one."""
    if not any(out.glob("date=*")):
        return None
    older = [found for found in dated_folders(out) if found < day]
    if not older:
        return None
    table = read_dated(dated_folder(out, older[-1]), SCHEMA)
    arrays: dict[str, Floats] = {}
    keys: list[str] = []
    for name in table["name"].unique().to_pylist():
        if name != COLD:
            part = table.filter(pc.equal(table["name"], name)).combine_chunks()
            sources, first = np.unique(
                part["source_id"].to_numpy(zero_copy_only=False), return_index=True
            )
            keys = [text.removeprefix(f"{source}-") for text in sources.tolist()]
            flat = pc.list_flatten(part["value"].combine_chunks()).to_numpy(zero_copy_only=False)
            arrays[name] = flat.reshape(len(part), -1)[first]
    return TextValues.of(keys, arrays)
