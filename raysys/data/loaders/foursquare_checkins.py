"""Foursquare NYC check-ins: three CSV files with one row per check-in (user, place, day, minute).

The three files are one log: their split is per user and overlaps in time, so it is ignored and
the log is cut at one day. `start_day` counts from each user's own first check-in (a user's first
day is 0), so a day number is not a calendar day; weekday and minute are local. Every check-in
is a request; its negatives are other venues of the same area. Venue attributes and area borders
come from training days only.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator
from sklearn.cluster import KMeans

from raysys.data.loaders.base import Imported, Options, categorical
from raysys.data.loaders.derived import derived_lists
from raysys.data.loaders.lists import numbered, pair_codes
from raysys.data.loaders.local_time import local_feature, mealtime, weekday
from raysys.data.loaders.negatives import NegativeRule
from raysys.data.loaders.reading import CSV, Source, read_text, require_file
from raysys.data.manifest import DataCard
from raysys.data.split import (
    DAY_US,
    TRAIN,
    TimeCut,
    bounds_text,
    from_iso,
    percent,
    split_by_time,
    split_names,
    time_bounds,
)
from raysys.errors import DataError

Int64Array = npt.NDArray[np.int64]
_FILES = ("foursquare_train.csv", "foursquare_valid.csv", "foursquare_test.csv")
# Day 0 needs a date; the set's first check-ins are of this day.
_DAY_0 = "2012-04-03"
_MINUTE_US = 60_000_000
_SIDE = 8
_CLUSTERS = 6


class FoursquareOptions(Options):
    """`valid_day`, `test_day`: first days of these parts; shares of the rows otherwise."""

    valid_share: float = Field(0.1, gt=0, lt=1)
    test_share: float = Field(0.3, gt=0, lt=1)
    valid_day: int | None = None
    test_day: int | None = None
    negatives: int = Field(19, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _days_together(self) -> "FoursquareOptions":
        if (self.valid_day is None) != (self.test_day is None):
            raise ValueError("valid_day and test_day come together")
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share and test_share leave nothing to train on")
        return self


class FoursquareCheckins:
    """Loader of foursquare_{train,valid,test}.csv."""

    name = "foursquare-checkins"
    version = "1"
    options = FoursquareOptions

    def files(self, src: Path, options: FoursquareOptions) -> list[Path]:
        """The three files of the folder `src`."""
        return [require_file(src / name) for name in _FILES]

    def load(self, src: Path, options: FoursquareOptions) -> Imported:
        """Read all three as one log and cut it at one day."""
        log = pd.concat([_rows(read_text(path, CSV)) for path in self.files(src, options)])
        if log["id"].duplicated().any():
            twice = log.loc[log["id"].duplicated(), "id"].iloc[0]
            raise DataError(f"{src}: check-in id {twice} occurs twice")
        source_rows = len(log)
        log = log.sort_values("id", kind="stable").drop_duplicates(
            ["user_id", "location_id", "start_day", "start_min"], ignore_index=True
        )
        ts = (
            from_iso(_DAY_0) + log["start_day"] * DAY_US + log["start_min"] * _MINUTE_US
        ).to_numpy()
        bounds = _bounds(ts, options)
        log["split"] = split_by_time(ts, bounds)
        log["cell"] = _cells(log)
        venues, log["item"] = np.unique(log["location_id"], return_inverse=True)
        users = numbered("u", log["user_id"].to_numpy(), 4)
        item_ids = numbered("v", venues, 5)
        moment = pair_codes(log["user_id"].to_numpy(), ts)
        rule = NegativeRule(rule="same-area", count=options.negatives, seed=options.seed)
        candidates, clicks = derived_lists(
            rule,
            items=item_ids,
            item=log["item"].to_numpy(),
            moment=moment,
            split=log["split"].to_numpy(),
            chosen=np.ones(len(log), bool),
            area=log["cell"].to_numpy(),
        )
        context = pa.StructArray.from_arrays(
            [
                mealtime(log["start_min"].to_numpy() // 60),
                weekday(log["weekday"].to_numpy()),
                _cell_names(log["cell"].to_numpy()),
            ],
            names=["mealtime", "weekday", "area"],
        )
        shared = {"user_id": users, "ts": pa.array(ts), "context": context}
        events = pa.table(
            {
                **shared,
                "item_id": item_ids.take(pa.array(log["item"].to_numpy())),
                "behaviour": pa.array(["checkin"] * len(log)),
            }
        )
        impressions = pa.table(
            {
                **shared,
                "impression_id": numbered("c", log["id"].to_numpy()),
                "candidates": candidates,
                "clicks": clicks,
                "orders": pa.array([[]] * len(log), pa.list_(pa.string())),
                "split": split_names(log["split"].to_numpy()),
            }
        )
        return Imported(
            events=events,
            impressions=impressions.sort_by([("ts", "ascending"), ("user_id", "ascending")]),
            items=_items(log, item_ids, options.seed),
            card=DataCard(
                dataset="foursquare-checkins",
                version="nyc",
                reader=self.name,
                filters=("the files' own split is ignored",),
                label_rule="click = the venue checked in at",
                split_rule=f"time: last {percent(options.test_share)} of check-ins test, "
                f"{percent(options.valid_share)} before them valid, cut at whole days"
                if options.test_day is None
                else f"time: valid from day {options.valid_day}, test from day {options.test_day}",
                split_bounds=bounds_text(bounds),
                negative_policy=rule.describe(),
                negative_seed=rule.seed,
                group_key="impression",
                history_cut="check-ins before the request",
                counts={"source_rows": source_rows, "merged_rows": source_rows - len(log)},
                licence="cite Yang et al. 2015; check the set's terms",
                notes={
                    "time": "days count from each user's own first check-in; day 0 is written as "
                    f"{_DAY_0}, clock times are local",
                    "attributes": "area borders, popularity decile and hour cluster from "
                    "training days",
                },
            ),
            history_behaviours=("checkin",),
            candidates="built",
            contexts=[
                local_feature("mealtime", "mealtime"),
                local_feature("weekday", "weekday"),
                categorical("area", _cell_names(np.arange(_SIDE * _SIDE)).to_pylist()),
            ],
        )


def _rows(source: Source) -> pd.DataFrame:
    whole = {
        name: source.integers(name)
        for name in ("id", "user_id", "location_id", "start_day", "start_min", "weekday")
    }
    for name, top in (("start_min", 1440), ("weekday", 7)):
        bad = (whole[name] < 0) | (whole[name] >= top)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{source.where(row)}: column {name!r} must be 0 to {top - 1}, "
                f"not {whole[name][row]}"
            )
    places: dict[str, Any] = {
        name: source.floats(name).to_numpy(zero_copy_only=False)
        for name in ("latitude", "longitude")
    }
    return pd.DataFrame(whole | places)


def _bounds(ts: Int64Array, options: FoursquareOptions) -> tuple[int, int]:
    if options.valid_day is not None and options.test_day is not None:
        day_0 = from_iso(_DAY_0)
        return day_0 + options.valid_day * DAY_US, day_0 + options.test_day * DAY_US
    return time_bounds(ts, TimeCut(valid_share=options.valid_share, test_share=options.test_share))


def _cells(log: pd.DataFrame) -> Int64Array:
    """Cell [N] of an 8 × 8 grid whose lines hold equal shares of the training check-ins."""
    train = log[log["split"] == TRAIN]
    share = np.arange(1, _SIDE) / _SIDE
    row, column = (
        np.searchsorted(np.quantile(train[axis], share), log[axis], side="right")
        for axis in ("latitude", "longitude")
    )
    return (row * _SIDE + column).astype(np.int64)


def _cell_names(cell: Int64Array) -> pa.Array:
    return pc.binary_join_element_wise(
        numbered("r", cell // _SIDE, 1), numbered("c", cell % _SIDE, 1), ""
    )


def _items(log: pd.DataFrame, item_ids: pa.Array, seed: int) -> pa.Table:
    by_item = log.groupby("item")
    cell = log.groupby("item")["cell"].agg(lambda cells: int(cells.mode().iloc[0]))
    train = log[log["split"] == TRAIN]
    visits = train["item"].value_counts().sort_index()
    decile = (visits.rank(method="average", pct=True) * 10).clip(upper=9.999).astype(int)
    cluster = _hour_clusters(train, seed)
    areas = _cell_names(cell.to_numpy().astype(np.int64)).to_pylist()
    place = by_item[["latitude", "longitude"]].median()
    location = [
        {"lat": lat, "lon": lon, "area": area}
        for (lat, lon), area in zip(place.to_numpy().tolist(), areas, strict=True)
    ]
    known: dict[int, dict[str, str]] = {
        item: {"popularity_decile": str(decile[item]), "hour_cluster": str(cluster[item])}
        for item in visits.index
    }
    return pa.table(
        {
            "item_id": item_ids,
            "kind": pa.array(["venue"] * len(item_ids)),
            "location": pa.array(
                location,
                pa.struct([("lat", pa.float64()), ("lon", pa.float64()), ("area", pa.string())]),
            ),
            "attributes": pa.array(
                [list(known.get(item, {}).items()) for item in range(len(item_ids))],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )


def _hour_clusters(train: pd.DataFrame, seed: int) -> "pd.Series[int]":
    """Cluster of each venue's profile over the 24 hours, smoothed by the profile of all."""
    profile = np.zeros((int(train["item"].max()) + 1, 24))
    np.add.at(profile, (train["item"], train["start_min"] // 60), 1)
    items = np.flatnonzero(profile.sum(1))
    profile = profile[items] + 5 * profile.sum(0) / profile.sum()
    # Square roots of shares: distances between them are those of Hellinger.
    shares = np.sqrt(profile / profile.sum(1, keepdims=True))
    count = min(_CLUSTERS, len(items))
    found = KMeans(count, n_init=4, random_state=seed % (1 << 32)).fit_predict(shares)
    return pd.Series(found, index=items)
