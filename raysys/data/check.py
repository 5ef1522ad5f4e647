"""Validation of a data set folder: every kind of fault, with file, row and column.

Tables are read part by part; what is kept over parts are ids and a few integers per row.
Rows are counted from 1 within their file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.data.clock import now_us
from raysys.data.dataset import Dataset, broken_parts, read_manifest
from raysys.data.faults import FIRST_FAULTS, Report
from raysys.data.files import sha256_file
from raysys.data.loaders.lists import codes_of
from raysys.data.loaders.reading import combined
from raysys.data.schema import BEHAVIOURS, SPLITS
from raysys.data.split import TEST, TRAIN, from_iso, iso

UNKNOWN_TS = np.iinfo(np.int64).min
BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Part:
    file: str
    table: pa.Table


def check(path: Path | str, *, first: int = FIRST_FAULTS) -> Report:
    """Validate the data set folder `path` and report all faults, the first `first` per kind.

    Raises:
        DataError: there is no manifest that can be read, so nothing to hold the files against.
    """
    report = Report(path=str(path), first=first)
    for part, fault in broken_parts(Path(path), read_manifest(path)):
        report.add("part", part, None, None, fault)
    if report.ok:
        _Check(Dataset(path), report).run()
    return report


class _Check:
    def __init__(self, dataset: Dataset, report: Report) -> None:
        self.dataset = dataset
        self.report = report
        self.now = now_us()
        span = dataset.card.time_span
        self.end = from_iso(span[1], field="time_span") if span else None
        self.items = pa.array([], pa.string())
        self.users: pa.Array | None = None

    def run(self) -> None:
        """All checks, referenced tables first."""
        self._files()
        self.items = self._ids("items", "item_id")
        if self.dataset.has("users"):
            self.users = self._ids("users", "user_id")
        self._ids("entities", "id")
        self._contexts()
        if self.dataset.manifest.kind == "corpus":
            self._documents()
            return
        histories = self._events()
        self._impressions(histories)

    def _files(self) -> None:
        for table in self.dataset.manifest.tables.values():
            for entry in table.files:
                if sha256_file(self.dataset.path / entry.path) != entry.sha256:
                    self.report.add(
                        "checksum", entry.path, None, None,
                        "sha256 differs from the manifest: the file was changed after it was "
                        "written",
                    )  # fmt: skip

    def _parts(self, name: str, columns: list[str] | None = None) -> Iterator[_Part]:
        """Parts that fit their schema; the others are reported and left out."""
        schema = self.dataset.schemas[name]
        wanted = columns or schema.names
        rows = 0
        for path in self.dataset.files(name):
            file = path.relative_to(self.dataset.path).as_posix()
            try:
                found = pq.read_schema(path)
                missing = [n for n in schema.names if n not in found.names]
                for column in missing:
                    self.report.add("schema", file, None, column, "column is missing")
                for column in sorted(set(found.names) - set(schema.names)):
                    self.report.add("schema", file, None, column, "column is not declared")
                if missing:
                    continue
                table = pq.read_table(path, columns=wanted, partitioning=None)
            except (pa.ArrowInvalid, OSError) as error:
                self.report.add("parquet", file, None, None, f"unreadable: {error}")
                continue
            rows += len(table)
            part = self._fitting(file, table.select(wanted), schema)
            if part is not None:
                yield part
        self.report.rows[name] = rows

    def _fitting(self, file: str, table: pa.Table, schema: pa.Schema) -> _Part | None:
        columns, good = [], True
        for column in table.column_names:
            wanted = schema.field(column)
            try:
                columns.append(table[column].cast(wanted.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, TypeError):
                message = f"holds {table[column].type} where {wanted.type} is declared"
                self.report.add("schema", file, None, column, message)
                good = False
                continue
            if not wanted.nullable and table[column].null_count:
                part = _Part(file, table)
                _add_rows(
                    self.report, "null", part, table[column].is_null(), column, "must not be null"
                )
                good = False
        if not good:
            return None
        return _Part(file, pa.table(columns, names=table.column_names))

    def _ids(self, name: str, column: str) -> pa.Array:
        """All ids of a table, each once; repeats are faults."""
        ids, files = self._gather(name, column)
        for file, row, value in _repeats(ids, files):
            self.report.add("duplicate id", file, row, column, f"{value} occurs before")
        return pc.unique(ids)

    def _gather(self, name: str, column: str) -> tuple[pa.Array, list[tuple[str, int]]]:
        parts, files = [pa.array([], pa.string())], []
        for part in self._parts(name, [column]):
            parts.append(combined(part.table[column]))
            files.append((part.file, len(part.table)))
        return pa.concat_arrays(parts), files

    def _contexts(self) -> None:
        declared = dict(self.dataset.manifest.contexts)
        listed: dict[str, str] = {}
        for part in self._parts("contexts", ["name", "kind", "edges"]):
            for row, value in enumerate(part.table.to_pylist(), 1):
                listed[value["name"]] = value["kind"]
                if value["name"] not in declared:
                    self.report.add(
                        "context", part.file, row, "name",
                        f"feature {value['name']} is not in the manifest",
                    )  # fmt: skip
                edges = value["edges"] or []
                if any(a >= b for a, b in pairwise(edges)):
                    self.report.add("context", part.file, row, "edges", "edges must ascend")
        for name, kind in declared.items():
            if listed and listed.get(name) != kind:
                self.report.add(
                    "context", "manifest.json", None, name,
                    f"{kind} feature is {listed.get(name, 'not listed')} in the contexts table",
                )  # fmt: skip

    def _documents(self) -> None:
        ids, files = self._gather("documents", "doc_id")
        for file, row, value in _repeats(ids, files):
            self.report.add("duplicate id", file, row, "doc_id", f"{value} occurs before")
        for part in self._parts("documents", ["split"]):
            self._known("split", part, "split", pa.array(SPLITS))

    def _known(
        self, kind: str, part: _Part, column: str, known: pa.Array, note: str = "is not known"
    ) -> None:
        values = part.table[column]
        bad = pc.and_(values.is_valid(), pc.invert(pc.is_in(values, value_set=known)))
        _add_rows(self.report, kind, part, bad, column, "{} " + note)

    def _times(self, part: _Part, ts: Int64Array) -> None:
        _add_rows(self.report, "future", part, ts > self.now, "ts", "{} lies in the future")
        if self.end is not None:
            late = (ts > self.end) & (ts <= self.now)
            _add_rows(
                self.report,
                "time span",
                part,
                late,
                "ts",
                "{} lies after the time span of the data card",
            )

    def _events(self) -> tuple[pa.Array, Int64Array]:
        """Users in table order with how many history events each has."""
        columns = ["user_id", "seq", "ts", "item_id", "text", "behaviour"]
        kept = pa.array(self.dataset.manifest.history_behaviours, pa.string())
        last: pa.Table | None = None
        tallies: list[pa.Table] = []
        for part in self._parts("events", columns):
            table = part.table
            ts = _filled(table["ts"])
            self._times(part, ts)
            self._known("behaviour", part, "behaviour", pa.array(BEHAVIOURS))
            self._known("unknown item", part, "item_id", self.items, "is not in the items table")
            if self.users is not None:
                self._known("unknown user", part, "user_id", self.users, "is not in users")
            self._order(part, last)
            last = table.slice(max(len(table) - 1, 0), 1) if len(table) else last
            history = table.filter(pc.is_in(table["behaviour"], value_set=kept))
            tallies.append(history.group_by("user_id").aggregate([([], "count_all")]))
        if not tallies:
            return pa.array([], pa.string()), np.zeros(0, np.int64)
        total = pa.concat_tables(tallies).group_by("user_id").aggregate([("count_all", "sum")])
        return combined(total["user_id"]), total["count_all_sum"].to_numpy()

    def _order(self, part: _Part, last: pa.Table | None) -> None:
        """Users ascending, seq strictly increasing, ts not falling, over part borders too."""
        own = part.table.select(["user_id", "seq", "ts"])
        table = own if last is None else pa.concat_tables([last.select(own.column_names), own])
        if len(table) < 2:
            return
        skip = len(table) - len(own)
        user = combined(table["user_id"])
        falls = pc.less(user[1:], user[:-1]).to_numpy(zero_copy_only=False)
        same = pc.equal(user[1:], user[:-1]).to_numpy(zero_copy_only=False)
        seq, ts = table["seq"].to_numpy(), _filled(table["ts"])
        stuck = same & (seq[1:] <= seq[:-1])
        # Ties are fine, and so are unknown times, but only before all known ones: a search by
        # time cannot place them anywhere else.
        earlier = same & (ts[1:] < ts[:-1])
        for kind, bad, column, message in (
            ("unsorted", falls, "user_id", "{}: users must ascend and stay together"),
            ("unsorted", stuck, "seq", "{}: seq must rise strictly within a user"),
            ("unsorted", earlier, "ts", "{}: earlier than the user's event before it"),
        ):
            shifted = np.concatenate([np.zeros(1 - skip, bool), bad])
            _add_rows(self.report, kind, part, shifted, column, message)

    def _impressions(self, histories: tuple[pa.Array, Int64Array]) -> None:
        seen_ids: list[pa.Array] = [pa.array([], pa.string())]
        files: list[tuple[str, int]] = []
        users: list[pa.Array] = [pa.array([], pa.string())]
        splits: list[Int64Array] = []
        times: list[Int64Array] = []
        labels = np.zeros((len(SPLITS), 2), np.int64)  # rows, clicks
        for part in self._parts("impressions"):
            table = part.table
            ts = _filled(table["ts"])
            self._times(part, ts)
            self._known("split", part, "split", pa.array(SPLITS), "is no split")
            if self.users is not None:
                self._known("unknown user", part, "user_id", self.users, "is not in users")
            self._history_end(part, ts, histories)
            split = pc.index_in(table["split"], value_set=pa.array(SPLITS)).fill_null(-1)
            codes = split.to_numpy().astype(np.int64)
            shown, clicked = self._lists(part)
            for code in range(len(SPLITS)):
                labels[code] += shown[codes == code].sum(), clicked[codes == code].sum()
            seen_ids.append(combined(table["impression_id"]))
            files.append((part.file, len(table)))
            users.append(combined(table["user_id"]))
            splits.append(codes)
            times.append(ts)
        for file, row, value in _repeats(pa.concat_arrays(seen_ids), files):
            self.report.add(
                "duplicate impression", file, row, "impression_id", f"{value} occurs before"
            )
        self._labels(labels)
        if times:
            self._split_order(
                pa.concat_arrays(users), np.concatenate(splits), np.concatenate(times), files
            )

    def _history_end(
        self, part: _Part, ts: Int64Array, histories: tuple[pa.Array, Int64Array]
    ) -> None:
        end = _filled(part.table["history_end"])
        timeless = ts == UNKNOWN_TS
        _add_rows(self.report,
            "history", part, timeless & (end == UNKNOWN_TS), "history_end",
            "ts and history_end are both null: the history has no end",
        )  # fmt: skip
        place = pc.index_in(part.table["user_id"], value_set=histories[0]).fill_null(-1)
        place = place.to_numpy()
        have = np.where(place < 0, 0, np.append(histories[1], 0)[place])
        beyond = timeless & (end != UNKNOWN_TS) & ((end < 0) | (end > have))
        _add_rows(
            self.report,
            "history",
            part,
            beyond,
            "history_end",
            "{} lies outside the user's history",
        )

    def _lists(self, part: _Part) -> tuple[Int64Array, Int64Array]:
        """Numbers of candidates and of clicks per impression [N]; faults of the lists."""
        names = ("candidates", "clicks", "orders")
        columns = [combined(part.table[name]) for name in names]
        owners = [
            pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
            for column in columns
        ]
        flat = [pc.list_flatten(column) for column in columns]
        known = pc.is_in(flat[0], value_set=self.items).to_numpy(zero_copy_only=False)
        count = len(part.table)
        self._list_fault(part, "unknown item", owners[0][~known], flat[0].filter(~known),
                         "candidates", "is not in the items table")  # fmt: skip
        distinct = pc.unique(pa.concat_arrays(flat))
        keys = [
            owner * (len(distinct) + 1)
            + pc.index_in(values, value_set=distinct).to_numpy(zero_copy_only=False)
            for owner, values in zip(owners, flat, strict=True)
        ]
        for name, key, owner, values in zip(names, keys, owners, flat, strict=True):
            repeated = np.ones(len(key), bool)
            repeated[np.unique(key, return_index=True)[1]] = False
            self._list_fault(
                part, "duplicate in list", owner[repeated], values.filter(pa.array(repeated)),
                name, "occurs twice in one impression",
            )  # fmt: skip
        for inner, outer in ((1, 0), (2, 1)):
            outside = ~np.isin(keys[inner], keys[outer])
            self._list_fault(
                part, "label", owners[inner][outside], flat[inner].filter(pa.array(outside)),
                names[inner], f"is not among the {names[outer]} of its impression",
            )  # fmt: skip
        shown = np.bincount(owners[0], minlength=count)
        _add_rows(self.report, "empty", part, shown == 0, "candidates", "no candidates")
        for name in ("position", "propensity"):
            length = pc.list_value_length(part.table[name]).fill_null(-1).to_numpy()
            _add_rows(self.report,
                "length", part, (length >= 0) & (length != shown), name,
                "has not as many entries as there are candidates",
            )  # fmt: skip
        return shown, np.bincount(owners[1], minlength=count)

    def _list_fault(
        self, part: _Part, kind: str, rows: Int64Array, values: pa.Array, column: str, note: str
    ) -> None:
        for row, value in zip(
            rows[: self.report.first].tolist(), values[: self.report.first].to_pylist(),
            strict=True,
        ):  # fmt: skip
            self.report.add(kind, part.file, row + 1, column, f"{value} {note}")
        self.report.add_uncounted(kind, len(rows))

    def _labels(self, labels: Int64Array) -> None:
        for name, (rows, clicks) in zip(SPLITS, labels.tolist(), strict=True):
            if rows == 0:
                self.report.warnings.append(f"split {name} has no impressions")
            elif clicks in (0, rows):
                self.report.warnings.append(
                    f"constant labels in split {name}: {clicks} of {rows} candidates clicked; "
                    "training and metrics will refuse it"
                )

    def _split_order(
        self, users: pa.Array, split: Int64Array, ts: Int64Array, files: list[tuple[str, int]]
    ) -> None:
        """Parts in time order: at the card's bounds, and within each user in any case."""
        timed = (ts != UNKNOWN_TS) & (split >= 0)
        bad = np.zeros(len(ts), bool)
        bounds = self.dataset.card.split_bounds
        if {"valid", "test"} <= set(bounds):
            edges = [from_iso(bounds[name], field="split_bounds") for name in ("valid", "test")]
            bad = timed & (np.searchsorted(edges, ts, side="right") != split)
            for index in np.flatnonzero(bad)[: self.report.first].tolist():
                file, row = _place(index, files)
                self.report.add(
                    "split order", file, row, "split",
                    f"{SPLITS[split[index]]} impression at {iso(int(ts[index]))}, outside that "
                    "part's bounds on the data card",
                )  # fmt: skip
            self.report.add_uncounted("split order", int(bad.sum()))
        owner = codes_of(users)
        earliest = np.full(int(owner.max(initial=-1)) + 1, np.iinfo(np.int64).max)
        test = timed & (split == TEST)
        np.minimum.at(earliest, owner[test], ts[test])
        late = timed & (split == TRAIN) & ~bad & (ts > earliest[owner])
        for index in np.flatnonzero(late).tolist():
            file, row = _place(index, files)
            self.report.add(
                "split order", file, row, "split",
                f"train impression at {iso(int(ts[index]))} after a test impression of its user",
            )  # fmt: skip


def _filled(column: pa.ChunkedArray) -> Int64Array:
    return column.fill_null(UNKNOWN_TS).to_numpy()


def _place(index: int, files: list[tuple[str, int]]) -> tuple[str, int]:
    """File and row (from 1) of the `index`-th row over all parts."""
    for file, rows in files:
        if index < rows:
            return file, index + 1
        index -= rows
    raise IndexError(index)


def _add_rows(
    report: Report, kind: str, part: "_Part", bad: BoolArray | pa.Array, column: str, message: str
) -> None:
    """A fault for every true row of `bad` [N]; `{}` in the message becomes the value."""
    if not isinstance(bad, np.ndarray):
        bad = pc.fill_null(combined(bad), False).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(bad)
    for row in rows[: report.first].tolist():
        value = part.table[column][row].as_py() if "{}" in message else None
        report.add(kind, part.file, row + 1, column, message.format(value))
    report.add_uncounted(kind, len(rows))


def _repeats(ids: pa.Array, files: list[tuple[str, int]]) -> Iterator[tuple[str, int, str]]:
    """(file, row, id) of every value that occurred before."""
    codes = codes_of(ids)
    again = np.ones(len(codes), bool)
    again[np.unique(codes, return_index=True)[1]] = False
    for index in np.flatnonzero(again).tolist():
        yield (*_place(index, files), ids[index].as_py())
