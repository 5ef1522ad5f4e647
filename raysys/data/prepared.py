"""The columns of a data set as memory-mapped integers: built once, keyed by the manifest's hash.

Item rows: 0 is padding, 1 an unknown item, 2 + i the i-th row of the items table.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.columns import ColumnFolder, GrowingColumn
from raysys.data.contexts import FIRST, OOV, ContextCodec, ContextFeature
from raysys.data.dataset import Dataset
from raysys.data.feature_table import local_day
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.refusals import (
    among,
    refuse_endless,
    refuse_future,
    refuse_outside,
    refuse_repeated,
    refuse_unsorted,
)
from raysys.data.schema import BEHAVIOURS, SPLITS
from raysys.errors import DataError

# Raised whenever the layout below changes, so that old caches are never read.
CACHE_VERSION = 1


@dataclass(frozen=True)
class Impressions:
    """I impressions with R candidate rows in all; impression i owns offsets[i]:offsets[i + 1].

    ids [I] strings; user [I] rows of the users list; ts [I] µs UTC (UNKNOWN_TS where null);
    tz [I] minutes; start, end [I] history pointers; context [I, F] codes; split [I] index into
    SPLITS; offsets [I + 1]; item [R] item rows; click, order [R] 0/1; position [R], −1 unknown.
    """

    ids: pa.Array
    user: npt.NDArray[np.int32]
    ts: npt.NDArray[np.int64]
    tz: npt.NDArray[np.int16]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    context: npt.NDArray[np.int32]
    split: npt.NDArray[np.int8]
    offsets: npt.NDArray[np.int64]
    item: npt.NDArray[np.int32]
    click: npt.NDArray[np.uint8]
    order: npt.NDArray[np.uint8]
    position: npt.NDArray[np.int16]

    def of(self, split: str) -> npt.NDArray[np.int64]:
        """Impression indices of one split, in table order."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def rows(self, impressions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Candidate row indices of the given impressions, concatenated."""
        counts = self.offsets[impressions + 1] - self.offsets[impressions]
        begin = np.repeat(self.offsets[impressions] - (np.cumsum(counts) - counts), counts)
        return begin + np.arange(counts.sum())

    def days(self, impressions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Local days [N] of the given impressions; see `local_day`."""
        return local_day(self.ts[impressions], self.tz[impressions])


@dataclass(frozen=True)
class Prepared:
    """A data set ready for training: item ids, histories and impressions, all mapped."""

    dataset: Dataset
    item_ids: pa.Array
    histories: Histories
    impressions: Impressions

    @property
    def codec(self) -> ContextCodec:
        """The codec of all context values that occur in the data set."""
        return self.histories.codec

    def users_of(self, impressions: npt.NDArray[np.int64]) -> list[str]:
        """Ids [N] of the users of the given impressions."""
        rows = pa.array(self.impressions.user[impressions])
        names: list[str] = self.histories.users.take(rows).to_pylist()
        return names


def cache_root() -> Path:
    """`$RAYSYS_CACHE`, or `~/.cache/raysys`."""
    return Path(os.environ.get("RAYSYS_CACHE") or Path.home() / ".cache" / "raysys")


def prepare(dataset: Dataset) -> Prepared:
    """Open the cached columns of `dataset`, building them if they are missing.

    Two processes may build at once; the first rename wins and the other's copy is dropped.

    Raises:
        DataError: a corpus, a damaged part, or one of the `raysys.data.refusals`.
    """
    if dataset.manifest.kind == "corpus":
        raise DataError(
            f"{dataset.path} is a corpus: nobody's behaviour is in it; import a log, or let "
            "simulated readers read it (raysys data make readers)"
        )
    folder = cache_root() / "columns" / f"{dataset.manifest.hash}-v{CACHE_VERSION}"
    if not (folder / "DONE").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".building.", dir=folder.parent))
        try:
            _build(dataset, scratch)
            (scratch / "DONE").touch()
            try:
                os.rename(scratch, folder)
            except OSError:
                if not (folder / "DONE").is_file():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    histories = Histories.load(folder / "histories")
    columns = ColumnFolder(folder / "impressions")
    names = [name for name in Impressions.__dataclass_fields__ if name != "ids"]
    arrays: dict[str, Any] = {name: columns.read(name) for name in names}
    return Prepared(
        dataset=dataset,
        item_ids=ColumnFolder(folder).read_strings("item_ids"),
        histories=histories,
        impressions=Impressions(ids=columns.read_strings("ids"), **arrays),
    )


def item_rows(item_ids: pa.Array, ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """Item rows [N] of N ids; unknown and null ids give row 1."""
    found = pc.index_in(ids, value_set=item_ids).fill_null(-1)
    rows = found.to_numpy(zero_copy_only=False).astype(np.int32) + FIRST
    return np.where(rows < FIRST, OOV, rows).astype(np.int32)


def _build(dataset: Dataset, out: Path) -> None:
    item_ids = _combined(dataset.table("items", ["item_id"])["item_id"])
    ColumnFolder(out).write("item_ids", item_ids)
    codec = _codec(dataset)
    users = _users(dataset)
    histories = _build_histories(dataset, out / "histories", item_ids, users, codec)
    _build_impressions(dataset, out / "impressions", item_ids, histories)


def _combined(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def _users(dataset: Dataset) -> pa.Array:
    seen = [
        part["user_id"].unique()
        for table in ("events", "impressions")
        for part in dataset.parts(table, ["user_id"])
    ]
    users = pa.concat_arrays(seen).unique() if seen else pa.array([], pa.string())
    return users.take(pc.sort_indices(users))


def _codec(dataset: Dataset) -> ContextCodec:
    """Declared values first, in their order, then any others found in the logs, sorted."""
    declared = {row["name"]: row for row in dataset.table("contexts").to_pylist()}
    found: dict[str, set[str]] = {
        name: set() for name, kind in dataset.manifest.contexts.items() if kind == "categorical"
    }
    if found:
        for table in ("events", "impressions"):
            for part in dataset.parts(table, ["context"]):
                for name, values in found.items():
                    unique = pc.unique(pc.struct_field(part["context"], name))
                    values.update(value for value in unique.to_pylist() if value is not None)
    features = []
    for name, kind in dataset.manifest.contexts.items():
        row = declared.get(name, {})
        listed = tuple(row.get("values") or ())
        extra = tuple(sorted(found.get(name, set()) - set(listed)))
        features.append(
            ContextFeature(
                name=name, kind=kind, values=listed + extra, edges=tuple(row.get("edges") or ())
            )
        )
    return ContextCodec(features=tuple(features))


def _times(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return column.fill_null(UNKNOWN_TS).to_numpy().astype(np.int64)


def _encode(codec: ContextCodec, table: pa.Table) -> npt.NDArray[np.int32]:
    if not codec.features:
        return np.zeros((len(table), 0), np.int32)
    return codec.encode(_combined(table["context"]))


def _build_histories(
    dataset: Dataset, out: Path, item_ids: pa.Array, users: pa.Array, codec: ContextCodec
) -> Histories:
    folder = ColumnFolder(out)
    width = len(codec.features)
    item = GrowingColumn(folder, "item", "int32")
    ts = GrowingColumn(folder, "ts", "int64")
    behaviour = GrowingColumn(folder, "behaviour", "int8")
    context = GrowingColumn(folder, "context", "int32", width)
    counts = np.zeros(len(users), np.int64)
    kept = pa.array(dataset.manifest.history_behaviours, pa.string())
    kinds = pa.array(BEHAVIOURS, pa.string())
    wanted = ["user_id", "seq", "ts", "item_id", "behaviour", "context"]
    last = np.array([[-1], [0], [0]])  # before the first user
    for path, part in zip(dataset.files("events"), dataset.parts("events", wanted), strict=True):
        owner = pc.index_in(part["user_id"], value_set=users).to_numpy().astype(np.int64)
        order = np.stack([owner, part["seq"].to_numpy(), _times(part["ts"])])
        refuse_unsorted(path, np.concatenate([last, order], axis=1))
        refuse_future(path, order[2])
        last = order[:, -1:] if len(part) else last
        history = pc.is_in(part["behaviour"], value_set=kept)
        part = part.filter(history)
        owner = owner[history.to_numpy()]
        counts += np.bincount(owner, minlength=len(users))
        item.append(item_rows(item_ids, part["item_id"]))
        ts.append(_times(part["ts"]))
        behaviour.append(pc.index_in(part["behaviour"], value_set=kinds).to_numpy())
        context.append(_encode(codec, part))
    for column in (item, ts, behaviour, context):
        column.close()
    folder.write("users", users)
    folder.write("start", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    (out / "codec.json").write_text(codec.model_dump_json(), encoding="utf-8")
    return Histories.load(out)


def _listed(
    part: pa.Table, name: str, item_ids: pa.Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Parent row [R] and item row [R] of a list column."""
    column = _combined(part[name])
    parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return parents, item_rows(item_ids, pc.list_flatten(column))


def _build_impressions(
    dataset: Dataset, out: Path, item_ids: pa.Array, histories: Histories
) -> None:
    folder = ColumnFolder(out)
    width = len(histories.codec.features)
    single = {
        name: GrowingColumn(folder, name, kind)
        for name, kind in dict(
            user="int32", ts="int64", tz="int16", start="int64", end="int64", split="int8",
            item="int32", click="uint8", order="uint8", position="int16",
        ).items()
    }  # fmt: skip
    context = GrowingColumn(folder, "context", "int32", width)
    counts = [np.zeros(1, np.int64)]
    ids: list[pa.Array] = []
    files = dataset.files("impressions")
    for path, part in zip(files, dataset.parts("impressions"), strict=True):
        for name, values in _impression_columns(path, part, item_ids, histories, counts):
            single[name].append(values)
        context.append(_encode(histories.codec, part))
        ids.append(_combined(part["impression_id"]))
    for column in (*single.values(), context):
        column.close()
    folder.write("offsets", np.cumsum(np.concatenate(counts)))
    whole = pa.concat_arrays([pa.array([], pa.string()), *ids])
    refuse_repeated(files, [len(part) for part in ids], whole)
    folder.write("ids", whole)


def _impression_columns(
    path: Path,
    part: pa.Table,
    item_ids: pa.Array,
    histories: Histories,
    counts: list[npt.NDArray[np.int64]],
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    user = histories.rows(_combined(part["user_id"]))
    ts, stated = _times(part["ts"]), _times(part["history_end"])
    refuse_future(path, ts)
    refuse_endless(path, ts, stated)
    start = histories.begin(user)
    end = histories.end_before(user, ts)
    timeless = ts == UNKNOWN_TS
    if timeless.any():
        limit = histories.start[user + 1]
        end = np.where(timeless, start + np.minimum(stated, limit - start), end)
    split = pc.index_in(part["split"], value_set=pa.array(SPLITS)).to_numpy()
    yield from dict(user=user, ts=ts, start=start, end=end, split=split).items()
    yield "tz", part["tz_offset_min"].fill_null(0).to_numpy()
    parents, items = _listed(part, "candidates", item_ids)
    counts.append(np.bincount(parents, minlength=len(part)).astype(np.int64))
    yield "item", items
    base = len(item_ids) + FIRST
    shown = within = parents * base + items
    for label, inner, outer in (("click", "clicks", "candidates"), ("order", "orders", "clicks")):
        owner, chosen = _listed(part, inner, item_ids)
        keys = owner * base + chosen
        refuse_outside(path, inner, outer, keys, within, base)
        yield label, among(shown, keys)
        within = keys
    position = _combined(part["position"])
    if position.null_count:
        yield "position", np.full(len(items), -1, np.int16)
    else:
        yield "position", pc.list_flatten(position).fill_null(-1).to_numpy(zero_copy_only=False)
