"""Features of users by day: known at the end of a day, read by requests of later days only.

DIR/date=YYYY-MM-DD/*.parquet    owner_kind, owner_id, name, value list<float32>, source_id

A request on local day D reads, feature by feature, the user's newest value dated D − 7 to D − 1.
What there is of D or later it cannot see: a nightly job may have used all of the day.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.data.columns import ColumnFolder
from raysys.data.files import new_folder
from raysys.data.histories import UNKNOWN_TS
from raysys.errors import ConfigError, DataError

DAYS = 7  # a value is read for so many days after its own
SCHEMA = pa.schema(
    [
        ("owner_kind", pa.string()),
        ("owner_id", pa.string()),
        ("name", pa.string()),
        ("value", pa.list_(pa.float32())),
        ("source_id", pa.string()),
    ]
)
Days = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_EPOCH = date(1970, 1, 1)
_PREFIX = "date="
_DAY_US = 86_400_000_000
# No day at all: so early that nothing is dated before it.
NO_DAY = np.int64(-(2**31))


def local_day(
    ts: npt.NDArray[np.int64], tz_offset_min: npt.NDArray[np.int64] | npt.NDArray[np.int16]
) -> Days:
    """Days since 1970 where the clock shows the local time of ts [N] µs UTC; NO_DAY without ts."""
    known = ts != UNKNOWN_TS
    local = np.where(known, ts, 0) + tz_offset_min.astype(np.int64) * 60_000_000
    return np.where(known, local // _DAY_US, NO_DAY)


def day_of(day: date) -> int:
    """Days since 1970; `date_of` is its inverse."""
    return (day - _EPOCH).days


def date_of(day: int) -> date:
    """The date so many days after 1970 begins."""
    return _EPOCH + timedelta(days=day)


def dated_folders(root: Path | str) -> dict[date, Path]:
    """The `date=` folders of a dated table, oldest first.

    Raises:
        DataError: no folder, none of a date in it, or one of no date.
    """
    root = Path(root)
    found: dict[date, Path] = {}
    for folder in sorted(root.glob(f"{_PREFIX}*")):
        try:
            found[date.fromisoformat(folder.name.removeprefix(_PREFIX))] = folder
        except ValueError as error:
            raise DataError(f"{folder}: no date; name it {_PREFIX}YYYY-MM-DD") from error
    if not found:
        raise DataError(f"{root}: holds no folder {_PREFIX}YYYY-MM-DD")
    return dict(sorted(found.items()))


def dated_folder(root: Path, day: date) -> Path:
    """Where the rows of a date lie."""
    return root / f"{_PREFIX}{day.isoformat()}"


def read_dated(folder: Path, schema: pa.Schema) -> pa.Table:
    """All rows of one `date=` folder, in the columns of `schema` and none of them null.

    Raises:
        DataError: no Parquet file, an unreadable one, a column that is missing or of another
            type, or a null; names file, column and row.
    """
    parts = []
    for file in sorted(folder.glob("*.parquet")):
        try:
            # Through the file alone: `read_table` would make a column of the folder's date.
            part = pq.ParquetFile(file).read()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: unreadable Parquet file ({error})") from error
        for field in schema:
            if field.name not in part.column_names:
                raise DataError(f"{file}: column {field.name} is missing")
            kind = part.schema.field(field.name).type
            if kind != field.type:
                raise DataError(f"{file}: column {field.name} is {kind}, it must be {field.type}")
            if part[field.name].null_count:
                row = pc.index(part[field.name].is_null(), True).as_py()
                raise DataError(f"{file}: row {row + 1}, column {field.name}: missing")
        parts.append(part.select(schema.names).cast(schema))
    if not parts:
        raise DataError(f"{folder}: holds no Parquet file")
    return pa.concat_tables(parts).combine_chunks()


def write_features(root: Path, day: date, rows: pa.Table) -> Path:
    """Write the rows of one date, all or nothing.

    Raises:
        DataError: the date is there already.
        StorageFullError: the disk is full; nothing is kept.
    """
    folder = dated_folder(root, day)
    with new_folder(folder) as scratch:
        pq.write_table(rows.cast(SCHEMA), scratch / "part-00000.parquet", compression="zstd")
    return folder


@dataclass(frozen=True)
class DatedFeature:
    """One feature of U users in N rows, by user and day; arrays may be memory-mapped.

    users: ids [U]; owner [N] rows of them, ascending; day [N] since 1970, ascending within a user;
    values [N, W].
    """

    name: str
    users: pa.Array
    owner: npt.NDArray[np.int32]
    day: npt.NDArray[np.int32]
    values: Floats

    @property
    def width(self) -> int:
        """W."""
        return int(self.values.shape[1])

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users.to_pylist())}

    @cached_property
    def _keys(self) -> npt.NDArray[np.int64]:
        return (self.owner.astype(np.int64) << 32) + self.day

    def at(self, users: Iterable[str], days: Days) -> Floats:
        """What requests of users [B] on local days [B] may know [B, W]; NaN where nothing is."""
        get = self._row_of.get
        owner = np.fromiter((get(user, -1) for user in users), np.int64, len(days))
        row = np.searchsorted(self._keys, (owner << 32) + days - 1, side="right") - 1
        held = np.maximum(row, 0)
        found = (row >= 0) & (owner >= 0)
        if len(self.day):
            found &= (self.owner[held] == owner) & (self.day[held] >= days - DAYS)
        out = np.full((len(days), self.width), np.nan, np.float32)
        out[found] = self.values[held[found]]
        return out

    def save(self, folder: Path) -> None:
        """Write as Arrow IPC columns."""
        columns = ColumnFolder(folder / self.name)
        columns.write("users", self.users)
        for name in ("owner", "day", "values"):
            columns.write(name, getattr(self, name))

    @classmethod
    def load(cls, folder: Path, name: str) -> "DatedFeature":
        """Open what `save` has written, memory-mapped."""
        columns = ColumnFolder(folder / name)
        arrays = {part: columns.read(part) for part in ("owner", "day", "values")}
        return cls(name, columns.read_strings("users"), **arrays)


def read_features(root: Path | str, names: Sequence[str]) -> tuple[DatedFeature, ...]:
    """The features of users of these names, of all dates.

    Raises:
        ConfigError: no such feature; names those that are there.
        DataError: a damaged table; names file or folder, and the feature and user of a value that
            is not finite, of another width or there twice.
    """
    parts, days, known = [], [], set()
    wanted = pa.array(names, pa.string())
    for day, folder in dated_folders(root).items():
        table = read_dated(folder, SCHEMA)
        table = table.filter(pc.equal(table["owner_kind"], "user"))
        known.update(table["name"].unique().to_pylist())
        table = table.filter(pc.is_in(table["name"], value_set=wanted)).combine_chunks()
        _check(folder, table)
        parts.append(table)
        days.append(np.full(len(table), day_of(day), np.int32))
    whole = pa.concat_tables(parts).append_column("day", pa.array(np.concatenate(days)))
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{root}: no feature {name!r} of users; there are {', '.join(sorted(known))}"
            )
    return tuple(_sorted(root, name, whole.filter(pc.equal(whole["name"], name))) for name in names)


def _check(folder: Path, table: pa.Table) -> None:
    pairs = table.group_by(["name", "owner_id"]).aggregate([([], "count_all")])
    twice = pc.index(pc.greater(pairs["count_all"], 1), True).as_py()
    if twice >= 0:
        name, user = pairs["name"][twice], pairs["owner_id"][twice]
        raise DataError(f"{folder}: feature {name} of user {user} is there twice")
    values = _array(table["value"])
    fine = pc.is_finite(pc.list_flatten(values)).fill_null(False)
    bad = pc.index(fine, False).as_py()
    if bad >= 0:
        row = pc.list_parent_indices(values)[bad].as_py()
        raise DataError(
            f"{folder}: feature {table['name'][row]} of user {table['owner_id'][row]}: "
            "a value is not finite"
        )


def _sorted(root: Path | str, name: str, table: pa.Table) -> DatedFeature:
    values = _array(table["value"])
    widths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    if len(set(widths.tolist())) > 1 or 0 in widths:
        row = int(np.flatnonzero((widths != widths[0]) | (widths == 0))[0])
        day = date_of(table["day"][row].as_py())
        raise DataError(
            f"{root}: feature {name} of user {table['owner_id'][row]} on {day} has "
            f"{widths[row]} numbers, others have {widths[0]}; build the table anew"
        )
    coded = _array(table["owner_id"]).dictionary_encode()
    ids = coded.dictionary.to_numpy(zero_copy_only=False)
    place = np.empty(len(ids), np.int32)
    place[np.argsort(ids)] = np.arange(len(ids), dtype=np.int32)
    owner = place[coded.indices.to_numpy()]
    day = table["day"].to_numpy()
    order = np.lexsort((day, owner))
    flat = pc.list_flatten(values).to_numpy(zero_copy_only=False)
    return DatedFeature(
        name=name,
        users=pa.array(np.sort(ids), pa.string()),
        owner=owner[order],
        day=day[order].astype(np.int32),
        values=flat.reshape(len(table), -1)[order],
    )


def _array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
