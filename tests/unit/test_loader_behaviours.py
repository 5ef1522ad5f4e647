"""Logs of many behaviours on files written by hand: Deskdrop, REES46, MerRec."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset, session_logs
from raysys.data.manifest import Manifest
from raysys.errors import ConfigError, DataError

Row = dict[str, Any]
DAYS = 20


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def moment(day: float) -> pd.Timestamp:
    return pd.Timestamp("2023-05-01", tz="UTC") + pd.Timedelta(days=day)


def rows_of(path: Path, table: str) -> list[Row]:
    return Dataset(path).table(table).to_pylist()


def imported(name: str, src: Path, out: Path, **options: Any) -> Manifest:
    manifest = import_dataset(name, src, out, options)
    report = check(out)
    assert report.ok, report.faults
    return manifest


# ------------------------------------------------------------------ Deskdrop


def deskdrop(folder: Path, **changes: Any) -> Path:
    kinds = ("VIEW", "LIKE", "BOOKMARK", "COMMENT CREATED", "FOLLOW")
    shared = dict(userAgent="", userRegion="SP", userCountry="BR")
    seen = [
        dict(timestamp=int(moment(day + 0.1 * n).timestamp()), eventType=kinds[day % 5 if n else 0],
             contentId=-100 - (day + n) % 4, personId=-7 - n, sessionId=day, **shared)
        for day in range(DAYS) for n in range(3)
    ]  # fmt: skip
    seen[4].update(changes)
    article = dict(timestamp=1_459_193_988, authorPersonId=4, contentType="HTML", url="http://x")
    told = [
        dict(eventType=kind, contentId=-100 - n, title=f"t{n}", text=f'"{n}",\n two lines',
             lang="pt", **article)
        for kind, n in [*(("CONTENT SHARED", n) for n in range(4)), ("CONTENT REMOVED", 2)]
    ]  # fmt: skip
    folder.mkdir()
    write_csv(folder / "users_interactions.csv", seen)
    write_csv(folder / "shared_articles.csv", told)
    return folder


def test_deskdrop_is_the_mapped_importer_with_a_packaged_mapping(tmp_path: Path) -> None:
    src = deskdrop(tmp_path / "src")
    with pytest.raises(ConfigError, match="count is 19, but beside a positive the log holds only"):
        import_dataset("deskdrop", src, tmp_path / "few", {})
    manifest = imported("deskdrop", deskdrop_of_many(tmp_path / "many"), tmp_path / "out")
    assert manifest.history_behaviours == ("view", "like", "bookmark", "comment", "follow")
    assert manifest.data_card.reader == "deskdrop@1"
    assert "users_interactions.csv" in manifest.data_card.source_files
    assert "deskdrop.yaml" in manifest.data_card.source_files
    events = rows_of(tmp_path / "out", "events")
    assert {event["behaviour"] for event in events} == set(manifest.history_behaviours)
    late = [event for event in events if event["ts"] == moment(0.5).value // 1000]
    assert {event["context"]["hour"] for event in late} == {"09"}  # of São Paulo
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["-102"]["text"] == '"2",\n two lines'
    assert dict(items["-102"]["attributes"]) == dict(language="pt", format="HTML", url="http://x")
    views = [event for event in events if event["behaviour"] == "view"]
    assert len(rows_of(tmp_path / "out", "impressions")) == len(views)


def deskdrop_of_many(folder: Path) -> Path:
    """As `deskdrop`, with so many articles that 19 of them can be drawn."""
    deskdrop(folder)
    path = folder / "users_interactions.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    more = [
        {**row, "contentId": -200 - n, "timestamp": int(moment(0.5).timestamp()), "personId": -90,
         "eventType": "VIEW"}
        for n, row in enumerate(rows[:30])
    ]  # fmt: skip
    write_csv(path, [*rows, *more])
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(eventType="SHARE"),
            "_interactions.csv line 6: .*'eventType' has the value SHARE",
        ),
        (dict(personId=""), "users_interactions.csv line 6: column 'personId' is empty"),
        (dict(timestamp="x"), "users_interactions.csv line 6: column 'timestamp' is no number: x"),
    ],
)
def test_bad_rows_of_deskdrop_are_named(tmp_path: Path, change: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_dataset("deskdrop", deskdrop(tmp_path / "src", **change), tmp_path / "out", {})


# ------------------------------------------------------------------ shops


def plain_log() -> list[Row]:
    """Sessions of 5 users every other day: two views, a cart, and an order every second time."""
    rows = []
    for day in range(DAYS):
        for user in range(5):
            item = (day + user) % 7
            session = dict(user=f"u{user}", session=f"s{day}-{user}")
            steps = [("view", 0, item), ("view", 5, item + 1), ("cart", 8, item)]
            if day % 2:
                steps += [("order", 10, item), ("order", 12, item + 1)]
            for kind, minutes, what in steps:
                at = moment(day) + pd.Timedelta(minutes=20 * user + minutes)
                rows.append(dict(**session, kind=kind, item=str(what), at=at,
                                 price=10.0 + what + day / 100))  # fmt: skip
    return rows


def rees46(folder: Path, change: Callable[[list[Row]], None] = lambda rows: None) -> Path:
    names = {"view": "view", "cart": "cart", "order": "purchase"}
    rows = [
        dict(event_time=f"{row['at']:%Y-%m-%d %H:%M:%S} UTC", event_type=names[row["kind"]],
             product_id=row["item"], category_id=20 + int(row["item"]) % 3,
             category_code="" if row["item"] == "3" else "home.small_things",
             brand="" if row["item"] == "2" else "acme", price=row["price"],
             user_id=row["user"], user_session=row["session"])
        for row in plain_log()
    ]  # fmt: skip
    rows.insert(5, {**rows[2], "event_type": "remove_from_cart"})
    change(rows)
    folder.mkdir()
    # The files' names do not follow time.
    write_csv(folder / "2023-Z.csv", rows[:200])
    write_csv(folder / "2023-A.csv", rows[200:])
    return folder


def merrec(folder: Path, change: Callable[[list[Row]], None] = lambda rows: None) -> Path:
    names = {"view": "item_view", "cart": "item_add_to_cart_tap", "order": "buy_comp"}
    rows = [
        dict(user_id=int(row["user"][1:]), sequence_id=int(row["user"][1:]), sequence_length=9,
             session_id=int(row["session"][1:].split("-")[0]), event_id=names[row["kind"]],
             stime=row["at"], item_id=int(row["item"]), product_id=int(row["item"]) // 2,
             name=f"n{row['item']}", price=row["price"], c0_id=1, c1_id=2, c2_id=3, c0_name="Home",
             c1_name=f"C{int(row['item']) % 3}", c2_name=None, brand_id=1, brand_name="acme",
             item_condition_id=2, size_id=None, shipper_id=1, color="red")
        for row in plain_log()
    ]  # fmt: skip
    rows[0]["event_id"], rows[1]["event_id"], rows[5]["event_id"] = (
        "item_like", "offer_make", "buy_start",
    )  # fmt: skip
    change(rows)
    (folder / "20230501").mkdir(parents=True)
    (folder / "20230601").mkdir()
    pd.DataFrame(rows[200:]).to_parquet(folder / "20230501" / "000000000001.parquet")
    pd.DataFrame(rows[:200]).to_parquet(folder / "20230601" / "000000000000.parquet")
    return folder


def test_rees46_asks_before_the_session_for_what_was_bought_in_it(tmp_path: Path) -> None:
    manifest = imported("rees46", rees46(tmp_path / "src"), tmp_path / "out", negatives=3)
    log = plain_log()
    starts = {}
    for row in log:
        key = row["user"], row["session"]
        starts[key] = min(starts.get(key, row["at"]), row["at"])
    shown = rows_of(tmp_path / "out", "impressions")
    asked = {(row["user_id"], row["ts"]): row for row in shown}
    sessions = {(r["user"], r["session"]) for r in log if r["kind"] == "order"}
    assert len(shown) == len(asked) == len(sessions)
    for user, session in sessions:
        row = asked[user, starts[user, session].value // 1000]
        bought = [r for r in log if r["session"] == session and r["kind"] == "order"]
        assert row["orders"] == [max(bought, key=lambda r: r["price"])["item"]]
        touched = {r["item"] for r in log if r["session"] == session}
        assert set(row["candidates"]) & touched == set(row["orders"])
        assert row["context"]["hour"] == f"{starts[user, session]:%H}"
    events = rows_of(tmp_path / "out", "events")
    assert len(events) == len(log)  # without what was taken out of the cart
    orders = {(e["user_id"], e["ts"]) for e in events if e["behaviour"] == "order"}
    assert len(orders) == len(sessions)  # both lines at one time
    assert all((e["value"] is None) == (e["behaviour"] != "order") for e in events)
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["1"]["name"] == "acme small things"
    assert items["1"]["category"] == ["home", "small things"]
    assert items["2"]["name"] == "small things"
    assert items["3"]["category"] == []
    first = min((r for r in log if r["item"] == "4"), key=lambda r: r["at"])
    assert items["4"]["price"] == first["price"]
    assert manifest.data_card.filters == ("what was taken out of carts is not read",)


def test_merrec_tells_six_actions_and_the_words_of_listings(tmp_path: Path) -> None:
    manifest = imported("merrec", merrec(tmp_path / "src"), tmp_path / "out", negatives=3)
    assert manifest.data_card.licence == "CC-BY-NC-4.0"
    assert set(manifest.data_card.source_files) == {
        "20230501/000000000001.parquet", "20230601/000000000000.parquet",
    }  # fmt: skip
    events = rows_of(tmp_path / "out", "events")
    told = {(event["behaviour"], event["scenario"]) for event in events}
    assert told == {("view", None), ("like", None), ("cart", "cart"), ("cart", "offer"),
                    ("cart", "checkout"), ("order", None)}  # fmt: skip
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["5"]["category"] == ["Home", "C2"]
    expected = dict(product="2", condition="2", shipper="1", color="red")
    assert dict(items["5"]["attributes"]) == expected
    # Each purchase is an order of its own.
    bought = sum(row["kind"] == "order" for row in plain_log())
    assert len(rows_of(tmp_path / "out", "impressions")) == bought


@pytest.mark.parametrize("layout", [rees46, merrec])
def test_chosen_users_are_whole_and_pieces_do_not_matter(
    tmp_path: Path, layout: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    src, name = layout(tmp_path / "src"), layout.__name__
    imported(name, src, tmp_path / "all", negatives=3)
    part = imported(name, src, tmp_path / "part", negatives=3, users_share=0.6)
    events = rows_of(tmp_path / "part", "events")
    users = {event["user_id"] for event in events}
    assert 0 < len(users) < 5
    everything = rows_of(tmp_path / "all", "events")
    assert events == [event for event in everything if event["user_id"] in users]
    assert part.data_card.filters[0] == "60 % of users by hash with seed 0"
    # A catalogue that is merged after every piece is the same.
    monkeypatch.setattr(session_logs, "_PENDING", 0)
    again = imported(name, src, tmp_path / "again", negatives=3)
    assert again.tables == Dataset(tmp_path / "all").manifest.tables


def set_to(row: int, **values: Any) -> Callable[[list[Row]], None]:
    return lambda rows: rows[row].update(values)


BAD: dict[str, tuple[Callable[..., Path], Callable[[list[Row]], None], str]] = {
    "kind": (rees46, set_to(4, event_type="purchased"),
             r"2023-Z\.csv line 6: column 'event_type' has no meaning for 'purchased'; did you mean"
             " 'purchase'"),
    "time": (rees46, set_to(4, event_time="2023-05-01"), r"2023-Z\.csv line 6: .* is no time"),
    "user": (rees46, set_to(210, user_id=""), r"2023-A\.csv line 12: column 'user_id' is empty"),
    "price": (rees46, set_to(4, price="much"), r"line 6: column 'price' is no number: much"),
    "action": (merrec, set_to(7, event_id="buy"),
               r"0000\.parquet row 8: column 'event_id' has no meaning for 'buy'"),
    "no item": (merrec, set_to(207, item_id=None),
                r"0001\.parquet row 8: column 'item_id' is empty"),
    "no column": (merrec, lambda rows: [row.pop("c1_name") for row in rows] and None,
                  r"no column 'c1_name'; did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_of_shops_are_named(tmp_path: Path, name: str) -> None:
    layout, change, message = BAD[name]
    with pytest.raises(DataError, match=message):
        import_dataset(layout.__name__, layout(tmp_path / "src", change), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", [rees46, merrec])
def test_empty_folders_and_shares_are_refused(
    tmp_path: Path, layout: Callable[[Path], Path]
) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no \.\w+ file"):
        import_dataset(layout.__name__, tmp_path / "nothing", tmp_path / "out", {})
    src = layout(tmp_path / "src")
    with pytest.raises(DataError, match="no event of a chosen user; raise users_share"):
        import_dataset(layout.__name__, src, tmp_path / "out", {"users_share": 1e-12})
    with pytest.raises(ConfigError, match="users_shar"):
        import_dataset(layout.__name__, src, tmp_path / "out", {"users_shar": 0.5})


def test_a_log_without_orders_is_refused(tmp_path: Path) -> None:
    def only_views(rows: list[Row]) -> None:
        rows[:] = [row for row in rows if row["event_type"] != "purchase"]

    with pytest.raises(DataError, match="no orders in the log"):
        import_dataset("rees46", rees46(tmp_path / "src", only_views), tmp_path / "out", {})
