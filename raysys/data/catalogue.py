"""The items a model can rank: ids, feature codes and frozen vectors, by row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.data.contexts import FIRST, OOV
from raysys.data.features import FeatureSpace


@dataclass(frozen=True)
class Catalogue:
    """N items in rows 2.., row 0 padding, row 1 the unknown item.

    item_ids [N] strings; codes [2 + N, F] int32; vectors: field -> [2 + N, D] float32, zero
    where an item has none.
    """

    item_ids: pa.Array
    codes: npt.NDArray[np.int32]
    vectors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        items: pa.Table,
        features: FeatureSpace,
        vectors: dict[str, npt.NDArray[np.float32]] | None = None,
    ) -> "Catalogue":
        """Encode an items table; `vectors` [N, D] per field are given the two extra rows."""
        padded = {
            name: np.concatenate([np.zeros((FIRST, v.shape[1]), np.float32), v])
            for name, v in (vectors or {}).items()
        }
        ids = items["item_id"].combine_chunks()
        return cls(
            item_ids=ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks),
            codes=features.encode_items(items),
            vectors=padded,
        )

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.item_ids.to_pylist(), FIRST)}

    def rows(self, ids: Iterable[str | None] | Sequence[str]) -> npt.NDArray[np.int64]:
        """Rows [N] of N ids; 1 where unknown."""
        get = self._row_of.get
        return np.fromiter((get(i, OOV) if i is not None else OOV for i in ids), np.int64)

    def ids(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        """Ids [N] of N known rows (≥ 2)."""
        return self.item_ids.take(pa.array(rows - FIRST))
