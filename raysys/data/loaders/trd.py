"""Meituan TRD (Takeout Recommendation Dataset, Zenodo 8025855): four weeks of orders in Beijing.

Tab-separated files with a header: users, pois, orders_train, and of the last week orders_test_poi
with its answers in orders_poi_test_label. Every order is a request whose negatives come from
the same aor_id (delivery area). Test orders have neither price nor scene, so these are no context;
the usual price interval of a restaurant comes from training orders. Clicks of a session
(orders_poi_session) have no times and lead to the very order, so they are not read.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.loaders.base import Imported, Options, categorical
from raysys.data.loaders.derived import derived_lists
from raysys.data.loaders.lists import codes_of, pair_codes
from raysys.data.loaders.local_time import local_feature, local_part
from raysys.data.loaders.negatives import NegativeRule
from raysys.data.loaders.reading import TSV, Source, combined, first, read_text
from raysys.data.manifest import DataCard
from raysys.data.split import DAY_US, TRAIN, bounds_text, split_by_time, split_names
from raysys.errors import DataError

_NAMES = ("users", "pois", "orders_train", "orders_test_poi", "orders_poi_test_label")
_SUFFIXES = (".txt", ".tsv", ".csv")
_MISSING = ("NULL", "未知")
_ZONE, _OFFSET_MIN = "Asia/Shanghai", 480
_SCORES = {
    "quality": "poi_score",
    "delivery": "delivery_comment_avg_score",
    "food": "food_comment_avg_score",
}


class TrdOptions(Options):
    """`valid_days` before the test week; `time_form` of order_timestamp (s, ms, iso, strptime)."""

    valid_days: int = Field(3, ge=1)
    negatives: int = Field(19, ge=1)
    seed: int = Field(0, ge=0)
    time_form: str = "s"


@dataclass(frozen=True)
class _Orders:
    """N orders, training ones first: ids, user, poi, area strings [N]; ts [N] µs; context."""

    id: pa.Array
    user: pa.Array
    poi: pa.Array
    area: pa.Array
    ts: npt.NDArray[np.int64]
    context: pa.StructArray
    train: int


class Trd:
    """Loader of the folder that the archive unpacks to."""

    name = "trd"
    version = "1"
    options = TrdOptions

    def files(self, src: Path, options: TrdOptions) -> list[Path]:
        """The five files that are read, as .txt, .tsv or .csv."""
        return [_found(src, name) for name in _NAMES]

    def load(self, src: Path, options: TrdOptions) -> Imported:
        """Read orders, join the answers of the test week, draw negatives."""
        users, pois, train, test, labels = (
            read_text(path, TSV) for path in self.files(src, options)
        )
        orders = _orders(train, test, labels, options.time_form)
        bounds = _bounds(orders, train, options.valid_days)
        split = split_by_time(orders.ts, bounds)
        rule = NegativeRule(rule="same-area", count=options.negatives, seed=options.seed)
        user = codes_of(orders.user)
        candidates, clicks = derived_lists(
            rule,
            items=pc.unique(orders.poi),
            item=codes_of(orders.poi),
            moment=pair_codes(user, orders.ts),
            split=split,
            chosen=np.ones(len(user), bool),
            area=codes_of(orders.area),
        )
        shared = {
            "user_id": orders.user,
            "ts": pa.array(orders.ts),
            "tz_offset_min": pa.array(np.full(len(user), _OFFSET_MIN, np.int16)),
            "context": orders.context,
        }
        impressions = pa.table(
            {
                **shared,
                "impression_id": orders.id,
                "candidates": candidates,
                "clicks": clicks,
                "orders": clicks,
                "split": split_names(split),
            }
        )

        def found(feature: str) -> list[str]:
            values = pc.unique(pc.struct_field(orders.context, feature)).to_pylist()
            return sorted(value for value in values if value is not None)

        return Imported(
            events=pa.table(
                {
                    **shared,
                    "item_id": orders.poi,
                    "behaviour": pa.array(["order"] * len(user)),
                }
            ),
            impressions=impressions.sort_by([("ts", "ascending"), ("impression_id", "ascending")]),
            items=_items(pois, _usual_prices(train, split[: orders.train])),
            users=_users(users),
            card=DataCard(
                dataset="meituan-trd",
                version="2021-03",
                reader=self.name,
                filters=("clicks of sessions are not read: they have no times",),
                label_rule="click = order = the restaurant ordered from",
                split_rule=f"time: the test week of the set, {options.valid_days} days before it "
                "valid",
                split_bounds=bounds_text(bounds),
                negative_policy=rule.describe(),
                negative_seed=rule.seed,
                group_key="impression",
                history_cut="orders before the request",
                licence="CC-BY-4.0",
                notes={"price": "the usual price interval of training orders"},
            ),
            history_behaviours=("order",),
            candidates="built",
            contexts=[
                categorical("period", found("period")),
                local_feature("weekday", "weekday"),
                categorical("place", found("place")),
            ],
        )


def _found(src: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        if (src / f"{name}{suffix}").is_file():
            return src / f"{name}{suffix}"
    raise DataError(f"{src / name}: no such file ending in {', '.join(_SUFFIXES)}")


def _text(source: Source, name: str) -> pa.Array:
    """A column as text; the set's words for "missing" become null."""
    column = source.strings(name)
    missing = pc.is_in(column, value_set=pa.array(_MISSING))
    return pc.if_else(missing, pa.scalar(None, pa.string()), column)


def _orders(train: Source, test: Source, labels: Source, form: str) -> _Orders:
    sources = (train, test)
    ids = [source.required("wm_order_id") for source in sources]
    both = pa.concat_arrays(ids)
    if pc.count_distinct(both).as_py() < len(both):
        twice = pc.value_counts(both)
        name = twice.field("values").filter(pc.greater(twice.field("counts"), 1))[0]
        raise DataError(f"{train.path.parent}: order {name} occurs twice")
    times = [source.required_times("order_timestamp", form, timezone=_ZONE) for source in sources]
    return _Orders(
        id=both,
        user=pa.concat_arrays([source.required("user_id") for source in sources]),
        poi=pa.concat_arrays([train.required("wm_poi_id"), _answers(test, ids[1], labels)]),
        area=pa.concat_arrays([source.required("aor_id") for source in sources]),
        ts=np.concatenate([column.to_numpy() for column in times]),
        context=pa.concat_arrays(
            [_context(source, ts) for source, ts in zip(sources, times, strict=True)]
        ),
        train=len(train),
    )


def _answers(test: Source, orders: pa.Array, labels: Source) -> pa.Array:
    """The restaurant of each test order."""
    answered = labels.required("wm_order_id")
    place = pc.index_in(orders, value_set=answered)
    if place.null_count:
        row = first(place.is_null())
        raise DataError(f"{test.where(row)}: order {orders[row]} has no answer in {labels.path}")
    return labels.required("wm_poi_id").take(place)


def _context(source: Source, ts: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays(
        [
            _text(source, "ord_period_name"),
            local_part("weekday", ts, _OFFSET_MIN),
            _text(source, "takedlvr_aoi_type_name"),
        ],
        names=["period", "weekday", "place"],
    )


def _bounds(orders: _Orders, train: Source, valid_days: int) -> tuple[int, int]:
    """The midnight before the first test order, and `valid_days` earlier."""
    if len(orders.ts) == orders.train:
        raise DataError(f"{train.path.parent}: no test orders")
    offset = _OFFSET_MIN * 60_000_000
    test = int((orders.ts[orders.train :].min() + offset) // DAY_US * DAY_US - offset)
    late = orders.ts[: orders.train] >= test
    if late.any():
        raise DataError(
            f"{train.where(int(np.argmax(late)))}: a training order of the test week or later"
        )
    valid = test - valid_days * DAY_US
    if not (orders.ts < valid).any():
        raise DataError(f"valid_days {valid_days} leave no training order; choose fewer")
    return valid, test


def _usual_prices(train: Source, split: npt.NDArray[np.int8]) -> dict[str, str]:
    """The most frequent price interval of each restaurant over training orders."""
    frame = pd.DataFrame(
        {
            "poi": train.required("wm_poi_id").to_pylist(),
            "price": _text(train, "order_price_interval").to_pylist(),
        }
    )[split == TRAIN].dropna()
    counts = frame.value_counts().reset_index().sort_values(["count", "price"], kind="stable")
    return dict(zip(counts["poi"], counts["price"], strict=True))  # the last, most frequent, stays


def _items(pois: Source, prices: dict[str, str]) -> pa.Table:
    ids = pois.required("wm_poi_id")
    levels = zip(
        *(_text(pois, f"primary_{level}_tag_id").to_pylist() for level in ("first", "second",
                                                                           "third")),
        strict=True,
    )  # fmt: skip
    scores = {name: _text(pois, column).to_pylist() for name, column in _SCORES.items()}
    attributes = []
    for row, poi in enumerate(ids.to_pylist()):
        held = {name: values[row] for name, values in scores.items()}
        held["price_interval"] = prices.get(poi)
        attributes.append([(name, value) for name, value in held.items() if value is not None])
    area = _text(pois, "aor_id").to_pylist()
    return pa.table(
        {
            "item_id": ids,
            "kind": pa.array(["poi"] * len(ids)),
            "category": pa.array(
                [[tag for tag in path if tag is not None] for path in levels],
                pa.list_(pa.string()),
            ),
            "brand": _text(pois, "poi_brand_id"),
            "location": pa.array(
                [{"lat": None, "lon": None, "area": name} for name in area],
                pa.struct([("lat", pa.float64()), ("lon", pa.float64()), ("area", pa.string())]),
            ),
            "attributes": pa.array(attributes, pa.map_(pa.string(), pa.string())),
        }
    )


def _users(users: Source) -> pa.Table:
    columns = ("avg_pay_amt", "avg_pay_amt_weekdays", "avg_pay_amt_weekends")
    values = {name: _text(users, name).to_pylist() for name in columns}
    return pa.table(
        {
            "user_id": combined(users.required("user_id")),
            "attributes": pa.array(
                [
                    [(name, column[row]) for name, column in values.items() if column[row]]
                    for row in range(len(users))
                ],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )
