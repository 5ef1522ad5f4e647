"""Logs of shops, one event a line with user, session and the words of its item (REES46, MerRec).

Files are read piece by piece; only what chosen users did stays in memory. The request for an order
is made when its session begins, so that the views that lead to it are not in its history. The
shops' time zone is not told: days and hours are those of UTC.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.loaders.base import Imported
from raysys.data.loaders.lists import codes_of, numbered, pair_codes, running_number
from raysys.data.loaders.local_time import local_feature, local_part
from raysys.data.loaders.order_requests import OrderOptions, main_lines, order_requests
from raysys.data.loaders.reading import Source, combined, first, nearest
from raysys.data.manifest import DataCard
from raysys.data.split import bounds_text, percent, stable_hash, time_bounds
from raysys.errors import DataError

Int64Array = npt.NDArray[np.int64]
_OF_THE_EVENT = ("user_id", "session", "behaviour", "scenario")
_OF_BOTH = ("item_id", "ts", "price")
_PENDING = 1 << 20


class SessionOptions(OrderOptions):
    """`users_share`: of the users, chosen by a hash of their ids with `seed`, with all they did."""

    users_share: float = Field(1.0, gt=0, le=1)


def behaviour_columns(
    source: Source, column: str, meaning: Mapping[str, tuple[str | None, str | None]]
) -> dict[str, pa.Array]:
    """`behaviour` and `scenario` of each row; those without a behaviour are not to be kept.

    Raises:
        DataError: a value without meaning.
    """
    given = source.required(column)
    place = pc.index_in(given, value_set=pa.array(list(meaning)))
    if place.null_count:
        row = first(place.is_null())
        value = given[row].as_py()
        raise DataError(
            f"{source.where(row)}: column {column!r} has no meaning for {value!r}"
            + nearest(value, list(meaning))
        )
    names = ("behaviour", "scenario")
    columns = zip(names, zip(*meaning.values(), strict=True), strict=True)
    return {name: pa.array(values, pa.string()).take(place) for name, values in columns}


def collected(pieces: Iterable[pa.Table], options: SessionOptions) -> tuple[pa.Table, pa.Table]:
    """Events of the chosen users, and each item as its earliest line tells it.

    pieces: user_id, ts, session, item_id, behaviour, scenario, price; any other columns are words
    of the item. `session` of the events is a hash, because its texts are long.

    Raises:
        DataError: no event of a chosen user.
    """
    events: list[pa.Table] = []
    catalogue = _Catalogue()
    for piece in pieces:
        kept = pc.and_(_chosen(piece["user_id"], options), piece["behaviour"].is_valid())
        lines = piece.filter(kept)
        catalogue.add(lines.drop_columns(list(_OF_THE_EVENT)))
        session = _hashed(combined(lines["session"]))
        lines = lines.set_column(lines.column_names.index("session"), "session", session)
        events.append(lines.select([*_OF_THE_EVENT, *_OF_BOTH]))
    if not sum(map(len, events)):
        raise DataError("no event of a chosen user; raise users_share")
    return pa.concat_tables(events), catalogue.items()


def session_codes(events: pa.Table) -> Int64Array:
    """Codes [N] of (user, session); an event without session is one of its own."""
    session = combined(events["session"])
    alone = -1 - np.arange(len(events))
    named = session.fill_null(0).to_numpy()
    own = np.where(session.is_valid().to_numpy(zero_copy_only=False), named, alone)
    return pair_codes(codes_of(combined(events["user_id"])), own)


def first_moments(codes: Int64Array, ts: Int64Array) -> Int64Array:
    """The earliest time [N] among the rows of the same code."""
    begin = np.full(int(codes.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(begin, codes, ts)
    return begin[codes]


def session_log(
    events: pa.Table,
    items: pa.Table,
    options: SessionOptions,
    *,
    dataset: str,
    version: str,
    reader: str,
    licence: str,
    behaviours: Sequence[str],
    filters: Sequence[str] = (),
) -> Imported:
    """The data set of collected events: every order is a request.

    behaviours: of the histories; the others are for the data card.
    """
    ordered = pc.equal(events["behaviour"], "order")
    paid = pc.if_else(ordered, events["price"], pa.scalar(None, pa.float64()))
    told = _stamped(
        events.select(["user_id", "item_id", "behaviour", "scenario"]).append_column("value", paid),
        combined(events["ts"]),
    )
    asked = first_moments(session_codes(events), events["ts"].to_numpy())
    lines = main_lines(told)
    cut, rule = options.cut, options.negative_rule
    bounds = time_bounds(asked[lines], cut)
    log = _stamped(events.select(["user_id", "item_id"]), pa.array(asked))
    impressions = order_requests(rule, log, lines, bounds=bounds)
    ids = numbered("i", np.arange(len(lines)))
    if options.users_share < 1:
        share = f"{percent(options.users_share)} of users by hash with seed {options.seed}"
        filters = (share, *filters)
    return Imported(
        events=told,
        impressions=impressions.append_column("impression_id", ids),
        items=items,
        card=DataCard(
            dataset=dataset,
            version=version,
            reader=reader,
            licence=licence,
            filters=tuple(filters),
            label_rule="click = order = the item of the order that most was paid for",
            split_rule=cut.describe(),
            split_bounds=bounds_text(bounds),
            negative_policy=rule.describe(),
            negative_seed=rule.seed,
            group_key="user",
            history_cut="events before the session of the order",
            counts={"source_rows": len(events)},
            notes={"time": "UTC; the shop's zone is not told"},
        ),
        history_behaviours=tuple(behaviours),
        candidates="built",
        contexts=[local_feature("weekday", "weekday"), local_feature("hour", "hour")],
    )


def _chosen(users: pa.ChunkedArray, options: SessionOptions) -> pa.Array:
    codes = pc.dictionary_encode(combined(users))
    names = codes.dictionary.to_numpy(zero_copy_only=False)
    kept = stable_hash(names, options.seed) / 2.0**64 < options.users_share
    return pa.array(kept | (options.users_share == 1)).take(codes.indices)


def _hashed(texts: pa.Array) -> pa.Array:
    """63 bits of each text; null where it is."""
    codes = pc.dictionary_encode(texts)
    values = stable_hash(codes.dictionary.to_numpy(zero_copy_only=False), 0) >> np.uint64(1)
    return pa.array(values.astype(np.int64)).take(codes.indices)


def _stamped(table: pa.Table, ts: pa.Array) -> pa.Table:
    """The table with `ts` and what the clock adds to it."""
    parts = [local_part("weekday", ts), local_part("hour", ts)]
    columns = {
        "ts": ts,
        "tz_offset_min": pa.array(np.zeros(len(ts), np.int16)),
        "context": pa.StructArray.from_arrays(parts, names=["weekday", "hour"]),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


class _Catalogue:
    """Items by their earliest line, of equal ones the first; as large as there are items."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._compact = 0  # rows of the first part, in which no item is twice

    def add(self, lines: pa.Table) -> None:
        """lines: item_id, ts and words."""
        self._parts.append(_earliest(lines))
        # Merged when it has doubled: n log n in all.
        if sum(map(len, self._parts)) > 2 * self._compact + _PENDING:
            self._parts = [_earliest(pa.concat_tables(self._parts))]
            self._compact = len(self._parts[0])

    def items(self) -> pa.Table:
        """item_id and words."""
        return _earliest(pa.concat_tables(self._parts)).drop_columns(["ts"])


def _earliest(lines: pa.Table) -> pa.Table:
    """One line for each item, by item."""
    order = pc.sort_indices(lines, sort_keys=[("item_id", "ascending"), ("ts", "ascending")])
    lines = lines.take(order)
    return lines.filter(pa.array(running_number(codes_of(combined(lines["item_id"]))) == 0))
