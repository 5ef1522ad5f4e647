"""The Meituan TRD layout on files written by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset
from raysys.errors import DataError

USERS = ["user_id\tavg_pay_amt\tavg_pay_amt_weekdays\tavg_pay_amt_weekends"] + [
    f"u{n}\t[{n}0,{n}5)\tNULL\t[9,{n}9)" for n in range(3)
]
POIS = [
    "wm_poi_id\twm_poi_name\tprimary_second_tag_id\tprimary_third_tag_id\tprimary_first_tag_id"
    "\tpoi_brand_id\taor_id\tpoi_score\tdelivery_comment_avg_score\tfood_comment_avg_score"
] + [
    f"p{n}\tx{n}\ts{n % 3}\tt{n}\tf{n % 2}\t{'NULL' if n == 3 else 'b1'}\ta{n % 2}"
    f"\t4.{n}\t4.1\t未知"
    for n in range(8)
]
HEADER = "user_id\twm_order_id\twm_poi_id\taor_id\torder_price_interval\torder_timestamp" + (
    "\tord_period_name\torder_scene_name\taoi_id\ttakedlvr_aoi_type_name\tdt"
)
START = int(pd.Timestamp("2021-03-01 00:00", tz="Asia/Shanghai").timestamp())


def order(n: int, day: int, hour: int) -> dict[str, Any]:
    return dict(
        user_id=f"u{n % 3}", wm_order_id=f"o{n}", wm_poi_id=f"p{n * 3 % 8}", aor_id=f"a{n * 3 % 2}",
        order_price_interval="<29" if n % 3 else "[29,36)",
        order_timestamp=START + (day * 24 + hour) * 3600, ord_period_name=hour // 6,
        order_scene_name="未知", aoi_id=f"z{n}",
        takedlvr_aoi_type_name="住宅区" if n % 2 else "NULL", dt=f"202103{day + 1:02d}",
    )  # fmt: skip


def write(folder: Path, **changes: list[str] | None) -> Path:
    folder.mkdir()
    train = [order(n, n // 2, 7 + n % 2 * 12) for n in range(42)]
    test = [order(n, 21 + (n - 42) // 2, 0 if n == 42 else 12) for n in range(42, 56)]
    names = HEADER.split("\t")
    asked = [n for n in names if n not in ("wm_poi_id", "order_price_interval", "order_scene_name")]
    files: dict[str, list[str] | None] = {
        "users": USERS,
        "pois": POIS,
        "orders_train": [HEADER, *("\t".join(str(row[n]) for n in names) for row in train)],
        "orders_test_poi": [
            "\t".join(asked), *("\t".join(str(row[n]) for n in asked) for row in test)
        ],
        "orders_poi_test_label": ["user_id\twm_order_id\twm_poi_id\tdt"]
        + ["\t".join(str(row[n]) for n in ("user_id", "wm_order_id", "wm_poi_id", "dt"))
           for row in reversed(test)],
    } | changes  # fmt: skip
    for name, lines in files.items():
        if lines is not None:
            suffix = "tsv" if name == "users" else "txt"
            (folder / f"{name}.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def rows_of(path: Path, table: str) -> list[dict[str, Any]]:
    return Dataset(path).table(table).to_pylist()


def test_orders_become_requests_in_their_area(tmp_path: Path) -> None:
    manifest = import_dataset("trd", write(tmp_path / "src"), tmp_path / "out", {"negatives": 2})
    assert check(tmp_path / "out").ok
    assert manifest.data_card.split_bounds == {
        "valid": "2021-03-18T16:00:00Z", "test": "2021-03-21T16:00:00Z"
    }  # fmt: skip
    shown = {row["impression_id"]: row for row in rows_of(tmp_path / "out", "impressions")}
    assert len(shown) == 56
    for n in range(56):
        row = shown[f"o{n}"]
        assert row["clicks"] == row["orders"] == [f"p{n * 3 % 8}"]
        assert row["user_id"] == f"u{n % 3}"
        area = {int(item[1:]) % 2 for item in row["candidates"]}
        assert area == {n * 3 % 2}  # in these files a restaurant delivers to its own area only
        assert len(row["candidates"]) == 3
        assert row["split"] == ("train" if n < 36 else "valid" if n < 42 else "test")
        assert row["context"]["place"] == ("住宅区" if n % 2 else None)
    assert shown["o42"]["context"]["weekday"] == "Mon"  # local midnight, Sunday in UTC
    assert shown["o1"]["context"] == {"period": "3", "weekday": "Mon", "place": "住宅区"}
    assert shown["o1"]["tz_offset_min"] == 480
    events = rows_of(tmp_path / "out", "events")
    assert {event["behaviour"] for event in events} == {"order"}
    assert len(events) == 56


def test_restaurants_and_users(tmp_path: Path) -> None:
    import_dataset("trd", write(tmp_path / "src"), tmp_path / "out", {"negatives": 2})
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["p4"]["category"] == ["f0", "s1", "t4"]
    assert items["p4"]["brand"] == "b1"
    assert items["p3"]["brand"] is None
    assert items["p3"]["location"]["area"] == "a1"
    for poi in range(8):
        prices = [order(n, 0, 0)["order_price_interval"] for n in range(36) if n * 3 % 8 == poi]
        usual = max(sorted(set(prices)), key=lambda price: (prices.count(price), price))
        attributes = dict(items[f"p{poi}"]["attributes"])
        assert attributes == {"quality": f"4.{poi}", "delivery": "4.1", "price_interval": usual}
    users = {row["user_id"]: dict(row["attributes"]) for row in rows_of(tmp_path / "out", "users")}
    assert users["u1"] == {"avg_pay_amt": "[10,15)", "avg_pay_amt_weekends": "[9,19)"}


LATE = "\t".join(str(v) for v in order(90, 22, 1).values())
TRAIN = ["\t".join(str(v) for v in order(n, n // 2, 7).values()) for n in range(10)]
BAD: dict[str, tuple[dict[str, list[str] | None], str]] = {
    "no file": (dict(pois=None), r"src/pois: no such file ending in \.txt, \.tsv, \.csv"),
    "no answer": (
        dict(orders_poi_test_label=["user_id\twm_order_id\twm_poi_id\tdt", "u0\to42\tp1\t1"]),
        r"orders_test_poi\.txt line 3: order o43 has no answer in .*orders_poi_test_label\.txt",
    ),
    "order twice": (dict(orders_train=[HEADER, *TRAIN, TRAIN[0]]), "order o0 occurs twice"),
    "late": (
        dict(orders_train=[HEADER, *TRAIN, LATE]),
        r"orders_train\.txt line 12: a training order of the test week or later",
    ),
    "no time": (
        dict(orders_train=[HEADER, TRAIN[0].replace(str(START + 7 * 3600), "")]),
        r"orders_train\.txt line 2: column 'order_timestamp' is empty",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(DataError, match=message):
        import_dataset("trd", write(tmp_path / "src", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_validation_days_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="valid_days 40 leave no training order"):
        import_dataset("trd", write(tmp_path / "src"), tmp_path / "out", {"valid_days": 40})
