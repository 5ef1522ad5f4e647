"""`bindings.parquet`: which vector a field of an item, a user or a context value has now.

An owner is named by kind and id: `item` and `user` by their ids, `context` by `context_owner`.
The file's metadata says of each (kind, field) what its vectors were made with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, TypeAdapter

from raysys.errors import DataError
from raysys.llm.keys import KEY_TYPE, Keys, VectorIdentity, keys_of_arrow, keys_to_arrow
from raysys.llm.parts import replaced

BINDINGS = "bindings.parquet"
ORIGINS = b"raysys.origins"  # metadata: "kind/field" -> Origin

BINDING_SCHEMA = pa.schema(
    [
        pa.field("owner_kind", pa.string(), nullable=False),
        pa.field("owner_id", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("key", KEY_TYPE, nullable=False),
        pa.field("bound_at", pa.int64(), nullable=False),  # µs UTC of the newest confirmation
    ]
)
BoolArray = npt.NDArray[np.bool_]
_ORDER = [("owner_kind", "ascending"), ("field", "ascending"), ("owner_id", "ascending")]


def context_owner(feature: str, value: str) -> str:
    """Owner id of a context value, e.g. `weather=rain`."""
    return f"{feature}={value}"


class Origin(BaseModel):
    """What the vectors of a field were made with.

    identity: what their keys depend on; encoder: what else is to be known of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: VectorIdentity
    encoder: dict[str, Any]


_ORIGINS = TypeAdapter(dict[str, Origin])


@dataclass(frozen=True)
class Bindings:
    """Rows of `BINDING_SCHEMA` in order, and the origin of each "kind/field"."""

    table: pa.Table
    origins: Mapping[str, Origin]

    @property
    def keys(self) -> Keys:
        """Keys [N, 2] of the rows."""
        return keys_of_arrow(whole(self.table["key"]))

    def of(self, owner_kind: str, field: str) -> pa.Table:
        """The rows of a field of one kind of owner."""
        return self.table.filter(self._mask(owner_kind, field))

    def upserted(
        self,
        owner_kind: str,
        field: str,
        owner_ids: pa.Array,
        keys: Keys,
        present: BoolArray,
        origin: Origin,
        now: int,
    ) -> "Bindings":
        """With N owners bound anew to keys [N, 2], or unbound where `present` [N] is false.

        A field holds vectors of one identity: under another one all its old bindings go.
        """
        name = f"{owner_kind}/{field}"
        before = self.origins.get(name)
        dropped = self._mask(owner_kind, field)
        if before is not None and before.identity == origin.identity:
            again = pc.is_in(self.table["owner_id"], value_set=owner_ids)
            dropped = pc.and_(dropped, again)
        ids = owner_ids.filter(pa.array(present))
        new = pa.table(
            [
                pa.repeat(pa.scalar(owner_kind), len(ids)),
                ids,
                pa.repeat(pa.scalar(field), len(ids)),
                keys_to_arrow(keys[present]),
                pa.repeat(pa.scalar(now, pa.int64()), len(ids)),
            ],
            schema=BINDING_SCHEMA,
        )
        merged = pa.concat_tables([self.table.filter(pc.invert(dropped)), new]).sort_by(_ORDER)
        return Bindings(merged, {**self.origins, name: origin})

    def since(self, moment: int) -> "Bindings":
        """Those confirmed at `moment` (µs UTC) or later; fields left empty lose their origin."""
        kept = self.table.filter(pc.greater_equal(self.table["bound_at"], moment))
        names = pc.binary_join_element_wise(kept["owner_kind"], kept["field"], "/")
        left = set(pc.unique(names).to_pylist())
        return Bindings(kept, {name: o for name, o in self.origins.items() if name in left})

    def write(self, path: Path) -> None:
        """Replace the bindings of the table folder `path`.

        Raises:
            StorageFullError: the disk is full; the old file stays.
        """
        metadata = {ORIGINS: _ORIGINS.dump_json(dict(sorted(self.origins.items())))}
        with replaced(path / BINDINGS) as temporary:
            pq.write_table(
                self.table.replace_schema_metadata(metadata),
                temporary,
                compression="zstd",
                write_page_checksum=True,
            )

    def _mask(self, owner_kind: str, field: str) -> pa.ChunkedArray:
        table = self.table
        return pc.and_(pc.equal(table["owner_kind"], owner_kind), pc.equal(table["field"], field))


class BindingsFile:
    """The file as it is now: opened at once, so that a later replacement does not show; read
    when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path / BINDINGS
        self._source = pa.OSFile(str(self.path)) if self.path.is_file() else None

    def read(self) -> Bindings:
        """Its rows; none if there is no file. Raises DataError: damaged or of another format."""
        if self._source is None:
            return Bindings(BINDING_SCHEMA.empty_table(), {})
        try:
            table = pq.read_table(self._source, page_checksum_verification=True)
            origins = _ORIGINS.validate_json((table.schema.metadata or {})[ORIGINS])
            if table.schema.names != BINDING_SCHEMA.names:
                raise ValueError(f"its columns are {', '.join(table.schema.names)}")
            table = table.cast(BINDING_SCHEMA)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{self.path}: damaged ({error}); delete it and run the embed command again, "
                "no text is encoded twice"
            ) from error
        return Bindings(table, origins)


def changed(
    before: pa.Table, owner_ids: pa.Array, keys: Keys, present: npt.NDArray[np.bool_]
) -> int:
    """Owners that are bound to another key in `before` than the one in keys [N, 2]."""
    if not len(before):
        return 0
    place = pc.index_in(owner_ids, value_set=whole(before["owner_id"])).fill_null(-1)
    at = place.to_numpy(zero_copy_only=False)
    both = (at >= 0) & present
    was = keys_of_arrow(whole(before["key"]))[at[both]]
    return int((was != keys[both]).any(1).sum())


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
