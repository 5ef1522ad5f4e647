"""dhrd-prompts, foursquare-checkins, movielens and ebnerd: each set's trap a test."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset
from raysys.errors import DataError

needs_data = pytest.mark.skipif("RAYSYS_DATA" not in os.environ, reason="RAYSYS_DATA is not set")


def rows_of(path: Path, table: str) -> list[dict[str, Any]]:
    return Dataset(path).table(table).to_pylist()


def dhrd_rows(count: int) -> list[dict[str, Any]]:
    """`count` histories with a positive and a negative each, twins far apart in the file."""
    rows = []
    for label in (1, 0):
        for n in range(count):
            rows.append(
                {
                    "row": len(rows),
                    "hist_day": ["Mon", "Sat"],
                    "hist_hour": [12, n % 24],
                    "hist_cuisine": ["pizza", f"c{n}"],
                    "hist_price": [0.5, 0.25],
                    "dish_name": f"dish {n} {label}",
                    "cuisine": f"c{n}" if label else "sushi",
                    "price": 0.1,
                    "label": label,
                }
            )
    return rows


def write_dhrd(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "orders.parquet")
    return folder


def test_dhrd_puts_twins_into_one_impression_and_one_fold(tmp_path: Path) -> None:
    source = write_dhrd(tmp_path / "src", dhrd_rows(20))
    tested = []
    for fold in range(4):
        out = tmp_path / f"out{fold}"
        import_dataset("dhrd-prompts", source, out, {"folds": 4, "fold": fold})
        assert check(out).ok
        rows = rows_of(out, "impressions")
        assert len(rows) == 20
        assert all(len(r["candidates"]) == 2 and len(r["clicks"]) == 1 for r in rows)
        assert all(r["history_end"] == 2 for r in rows)
        assert len({r["user_id"] for r in rows}) == 20
        tested += [r["user_id"] for r in rows if r["split"] == "test"]
        assert {r["split"] for r in rows} == {"train", "valid", "test"}
    assert sorted(tested) == sorted({r["user_id"] for r in rows})
    items = {row["item_id"]: row for row in rows_of(out, "items")}
    dish = items[rows[3]["clicks"][0]]
    assert (dish["name"], dish["category"], dish["price"]) == ("dish 3 1", ["c3"], 0.1)
    event = rows_of(out, "events")[1]
    assert event["context"]["weekday"] == "Sat"
    assert items[event["item_id"]]["category"] == ["c0"]


def test_dhrd_an_empty_history_is_that_users_own(tmp_path: Path) -> None:
    rows = dhrd_rows(20)
    for n in range(20):
        for row in (rows[n], rows[n + 20]):
            for name in ("hist_day", "hist_hour", "hist_cuisine", "hist_price"):
                row[name] = (row[name][::-1] * 2)[: (0 if n == 7 else n % 3 + 1)]
    out = tmp_path / "out"
    import_dataset("dhrd-prompts", write_dhrd(tmp_path / "src", rows), out)
    assert check(out).ok
    events = [event["user_id"] for event in rows_of(out, "events")]
    shown = rows_of(out, "impressions")
    assert [row["history_end"] for row in shown] == [events.count(r["user_id"]) for r in shown]
    assert sorted(row["history_end"] for row in shown)[:2] == [0, 1]


def test_dhrd_a_history_with_two_positives_is_refused(tmp_path: Path) -> None:
    rows = dhrd_rows(3)
    rows[4]["label"] = 1
    with pytest.raises(DataError, match=r"row 2: its history has 2 positive candidates"):
        import_dataset("dhrd-prompts", write_dhrd(tmp_path / "src", rows), tmp_path / "out")


def test_dhrd_truncated_parquet_and_missing_column(tmp_path: Path) -> None:
    source = write_dhrd(tmp_path / "src", dhrd_rows(3))
    file = source / "orders.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="unreadable Parquet file"):
        import_dataset("dhrd-prompts", source, tmp_path / "out")
    pq.write_table(pa.table({"hist_days": [["Mon"]]}), file)
    with pytest.raises(DataError, match="no column 'hist_day'; did you mean 'hist_days'"):
        import_dataset("dhrd-prompts", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_data
def test_dhrd_cuisine_in_history_ranks_pairs_at_810(tmp_path: Path) -> None:
    source = Path(os.environ["RAYSYS_DATA"]) / "dhrd_stockholm"
    import_dataset("dhrd-prompts", source, tmp_path / "out")
    items = {row["item_id"]: row["category"][0] for row in rows_of(tmp_path / "out", "items")}
    past: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "out", "events"):
        past.setdefault(row["user_id"], set()).add(items[row["item_id"]])
    wins = []
    rows = rows_of(tmp_path / "out", "impressions")
    for row in rows:
        (click,) = row["clicks"]
        (other,) = set(row["candidates"]) - {click}
        a, b = (items[item] in past[row["user_id"]] for item in (click, other))
        wins.append(0.5 + 0.5 * (int(a) - int(b)))
    assert len(wins) == 925
    assert np.mean(wins) == pytest.approx(0.810, abs=0.0005)
    assert np.std(wins, ddof=1) / 925**0.5 == pytest.approx(0.009, abs=0.0005)
    first = np.mean([row["candidates"][0] == row["clicks"][0] for row in rows])
    assert abs(first - 0.5) < 3 * 0.5 / 925**0.5  # the list order tells nothing


def write_foursquare(folder: Path) -> Path:
    """30 users walk over 40 venues in 4 areas for 50 days; the files' split is per user."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for user in range(30):
        for day in range(50):
            venue = int(random.integers(40))
            corner = venue % 4
            rows.append(
                {
                    "id": len(rows), "user_id": user, "location_id": venue,
                    "latitude": corner // 2 - 0.5 + venue / 1000,
                    "longitude": corner % 2 - 0.5 + venue / 1000,
                    "start_day": day, "start_min": int(random.integers(1440)),
                    "weekday": (day + user) % 7,
                }
            )  # fmt: skip
    frame = pd.DataFrame(rows)
    frame = pd.concat([frame, frame.iloc[:1].assign(id=len(rows))])  # one check-in sent twice
    part = np.arange(len(frame)) % 3
    for number, name in enumerate(("train", "valid", "test")):
        frame[part == number].to_csv(folder / f"foursquare_{name}.csv", index=False)
    return folder


def test_foursquare_is_cut_at_one_day_whatever_the_files_say(tmp_path: Path) -> None:
    source = write_foursquare(tmp_path / "src")
    manifest = import_dataset(
        "foursquare-checkins", source, tmp_path / "out",
        {"valid_day": 30, "test_day": 40, "negatives": 3},
    )  # fmt: skip
    assert check(tmp_path / "out").ok
    assert manifest.data_card.counts["merged_rows"] == 1
    frame = Dataset(tmp_path / "out").table("impressions").to_pandas()
    day = (frame["ts"] - frame["ts"].min() // 86_400_000_000 * 86_400_000_000) // 86_400_000_000
    expected = np.select([day < 30, day < 40], ["train", "valid"], "test")
    assert (frame["split"] == expected).all()


def test_foursquare_negatives_are_of_the_area_and_places_tell_nothing(tmp_path: Path) -> None:
    source = write_foursquare(tmp_path / "src")
    import_dataset("foursquare-checkins", source, tmp_path / "out", {"negatives": 3})
    corner = {f"v{venue:05d}": venue % 4 for venue in range(40)}
    taken: dict[tuple[str, int], set[str]] = {}
    rows = rows_of(tmp_path / "out", "impressions")
    for row in rows:
        taken.setdefault((row["user_id"], row["ts"]), set()).add(row["clicks"][0])
    places = []
    for row in rows:
        (click,) = row["clicks"]
        assert {corner[item] for item in row["candidates"]} == {corner[click]}
        others = set(row["candidates"]) - {click}
        assert not others & taken[row["user_id"], row["ts"]]
        places.append((row["candidates"].index(click) + 0.5) / len(row["candidates"]))
    assert abs(np.mean(places) - 0.5) < 0.03


def test_foursquare_attributes_come_from_training_days_only(tmp_path: Path) -> None:
    source = write_foursquare(tmp_path / "src")
    late = pd.DataFrame(
        {"id": range(9000, 9030), "user_id": range(30), "location_id": 99, "latitude": -0.5,
         "longitude": -0.5, "start_day": 45, "start_min": 600, "weekday": 1}
    )  # fmt: skip
    test = source / "foursquare_test.csv"
    pd.concat([pd.read_csv(test), late]).to_csv(test, index=False)
    import_dataset("foursquare-checkins", source, tmp_path / "out",
                   {"valid_day": 30, "test_day": 40, "negatives": 3})  # fmt: skip
    attributes = {r["item_id"]: dict(r["attributes"]) for r in rows_of(tmp_path / "out", "items")}
    assert attributes["v00099"] == {}
    assert attributes["v00000"].keys() == {"popularity_decile", "hour_cluster"}
    before = [r for r in rows_of(tmp_path / "out", "impressions") if r["split"] != "test"]
    assert all("v00099" not in row["candidates"] for row in before)


@needs_data
@pytest.mark.slow
def test_foursquare_on_the_real_files(tmp_path: Path) -> None:
    source = Path(os.environ["RAYSYS_DATA"]) / "foursquare_nyc_checkins"
    manifest = import_dataset("foursquare-checkins", source, tmp_path / "out", {"negatives": 4})
    counts = manifest.data_card.counts
    assert counts["source_rows"] == 59_701 + 17_073 + 18_598
    assert counts["impression_users"] == 535
    frame = Dataset(tmp_path / "out").table("impressions", ["user_id", "clicks", "split"])
    pairs = frame.to_pandas().assign(item=lambda f: f["clicks"].str[0])
    past = set(zip(*pairs.loc[pairs["split"] != "test", ["user_id", "item"]].to_numpy().T,
                   strict=True))  # fmt: skip
    test = pairs[pairs["split"] == "test"]
    again = np.mean([key in past for key in zip(test["user_id"], test["item"], strict=True)])
    assert 0.70 < again < 0.76  # most test check-ins are revisits
    assert check(tmp_path / "out").ok


def write_movielens(folder: Path) -> Path:
    folder.mkdir()
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n1,"Men, The (1950)",Drama|War\n2,Up (2009),(no genres listed)\n'
        + "".join(f"{n},Film {n} (1999),Comedy\n" for n in range(3, 12))
    )
    ratings = [f"{u},{m},{1 + (m + u) % 5},{1_000_000_000 + u * 10_000 + m}"
               for u in (1, 2, 10) for m in range(1, 11)]  # fmt: skip
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(ratings))
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,2,funny,1000000500\n")
    return folder


def test_movielens_is_cut_per_user_and_events_are_sorted(tmp_path: Path) -> None:
    manifest = import_dataset("movielens", write_movielens(tmp_path / "src"), tmp_path / "out")
    assert check(tmp_path / "out").ok
    assert manifest.data_card.split_bounds == {}
    rows = rows_of(tmp_path / "out", "impressions")
    for user in ("1", "2", "10"):
        mine = [row["split"] for row in rows if row["user_id"] == user]
        assert mine == ["train"] * 7 + ["valid"] + ["test"] * 2
    events = rows_of(tmp_path / "out", "events")
    assert list(dict.fromkeys(e["user_id"] for e in events)) == ["1", "10", "2"]
    assert [e["behaviour"] for e in events if e["user_id"] == "1"].count("tag") == 1
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["1"]["title"] == "Men, The (1950)"
    assert dict(items["1"]["attributes"]) == {"genres": "Drama|War", "year": "1950"}
    assert items["1"]["category"] == ["Drama"]
    rated = {(e["user_id"], e["item_id"]): e["value"] for e in events}
    for row in rows:
        (item,) = row["candidates"]
        assert bool(row["clicks"]) == (rated[row["user_id"], item] >= 4)


def test_movielens_can_be_cut_at_one_time(tmp_path: Path) -> None:
    source = write_movielens(tmp_path / "src")
    manifest = import_dataset("movielens", source, tmp_path / "out", {"cut": "time"})
    assert manifest.data_card.split_bounds.keys() == {"valid", "test"}
    assert check(tmp_path / "out").ok


@needs_data
def test_movielens_on_the_real_files(tmp_path: Path) -> None:
    source = Path(os.environ["RAYSYS_DATA"]) / "ml_latest_small"
    manifest = import_dataset("movielens", source, tmp_path / "out")
    assert manifest.data_card.counts["source_rows"] == 100_836
    events = Dataset(tmp_path / "out").table("events", ["user_id", "behaviour"]).to_pandas()
    tags = events[events["behaviour"] == "tag"]
    assert (len(tags), tags["user_id"].nunique()) == (3_683, 58)
    assert events["user_id"].nunique() == 610


def when(day: int, minute: int = 0) -> pd.Timestamp:
    return pd.Timestamp(2023, 5, day, 12, minute)


def write_ebnerd(
    folder: Path,
    *,
    articles: bool = True,
    clicked: int = 12,
    future: float = 99.0,
    read: dict[int, float | None] | None = None,
    both: tuple[int, ...] = (),
) -> Path:
    def shown(number: int, user: int, day: int, click: int) -> dict[str, Any]:
        return {
            "impression_id": number, "user_id": user, "impression_time": when(day),
            "device_type": 1 + number % 3, "is_subscriber": number % 2 == 0,
            "article_ids_inview": [11, 12, 12, 13],
            "article_ids_clicked": [11, 12] if number in both else [click],
            "article_id": 77 if number % 2 else None,
            "read_time": future, "scroll_percentage": future,
            "next_read_time": (read or {}).get(number, 33.0), "next_scroll_percentage": future,
        }  # fmt: skip

    logs = {
        "train": [shown(1, 100, 18, 11), shown(2, 100, 19, 13), shown(3, 200, 20, clicked)],
        "validation": [shown(4, 100, 25, 12), shown(5, 200, 26, 11)],
        "test": [shown(6, 100, 28, 12), shown(0, 100, 29, 11), shown(0, 200, 29, 11)],
    }
    pasts = {"train": [(17, 1)], "validation": [(17, 1), (18, 0)], "test": [(26, 0)]}
    for part, log in logs.items():
        (folder / part).mkdir(parents=True)
        frame = pd.DataFrame(log)
        if part == "test":
            frame = frame.drop(columns=["article_ids_clicked", "next_read_time"])
            frame["is_beyond_accuracy"] = frame["impression_id"] == 0
        frame.to_parquet(folder / part / "behaviors.parquet")
        times = [when(day, minute) for day, minute in pasts[part]]
        pd.DataFrame(
            {
                "user_id": [100], "impression_time_fixed": [times],
                "article_id_fixed": [[11] * len(times)], "read_time_fixed": [[5.0] * len(times)],
                "scroll_percentage_fixed": [[1.0] * len(times)],
            }
        ).to_parquet(folder / part / "history.parquet")  # fmt: skip
    if articles:
        pd.DataFrame(
            {
                "article_id": [11, 12], "title": ["A", "B"], "subtitle": ["a", "b"],
                "body": ["x", "y"], "published_time": [when(1), when(2)],
                "category_str": ["sport", "kultur"], "subcategory": [[1], []],
                "ner_clusters": [["Kim"], []], "entity_groups": [["PER"], []],
                "topics": [["t"], []], "premium": [True, False], "total_inviews": [5.0, 6.0],
                "total_pageviews": [5.0, 6.0], "total_read_time": [5.0, 6.0],
            }
        ).to_parquet(folder / "articles.parquet")  # fmt: skip
    return folder


def test_ebnerd_splits_histories_and_bars_leaking_columns(tmp_path: Path) -> None:
    manifest = import_dataset("ebnerd", write_ebnerd(tmp_path / "src"), tmp_path / "out")
    assert check(tmp_path / "out").ok
    rows = {row["impression_id"]: row for row in rows_of(tmp_path / "out", "impressions")}
    assert {key: row["split"] for key, row in rows.items()} == {
        "train-1": "train", "train-2": "train", "train-3": "valid",
        "validation-4": "test", "validation-5": "test",
    }  # fmt: skip
    assert rows["train-3"]["candidates"] == ["11", "12", "13"]
    assert rows["train-3"]["clicks"] == ["12"]
    assert rows["train-2"]["context"]["device"] == "tablet"
    events = rows_of(tmp_path / "out", "events")
    assert len(events) == 2  # the overlapping read is one event
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["11"]["entities"][0]["type"] == "PER"
    assert items["11"]["category"] == ["sport", "1"]
    assert items["13"]["title"] is None
    text = repr([rows, events, items])
    assert "33.0" not in text
    assert "total_" not in text
    assert "next_*" in manifest.data_card.notes["barred"]


def test_ebnerd_an_order_is_one_click_read_for_more_than_30_seconds(tmp_path: Path) -> None:
    read = {1: 30.0, 2: 30.5, 3: None, 4: 31.0}
    source = write_ebnerd(tmp_path / "src", read=read, both=(4,))
    import_dataset("ebnerd", source, tmp_path / "out")
    rows = {row["impression_id"][-1]: row for row in rows_of(tmp_path / "out", "impressions")}
    # Not longer than 30 s; longer; unknown; of two clicks, either may be meant; left at 33 s.
    assert {key: row["orders"] for key, row in rows.items()} == {
        "1": [], "2": ["13"], "3": [], "4": [], "5": ["11"]
    }  # fmt: skip
    assert [rows[key]["context"]["page"] for key in "12345"] == [
        "article", "front", "article", "front", "article"
    ]  # fmt: skip


def test_ebnerd_the_future_changes_orders_and_nothing_else(tmp_path: Path) -> None:
    tables = {}
    for name, future, seconds in (("a", 99.0, 33.0), ("b", 1.0, 33.0), ("c", 99.0, 5.0)):
        source = write_ebnerd(
            tmp_path / name / "src", future=future, read=dict.fromkeys(range(1, 6), seconds)
        )
        out = tmp_path / name / "out"
        import_dataset("ebnerd", source, out)
        names = ("events", "items", "impressions", "contexts")
        tables[name] = {table: rows_of(out, table) for table in names}
    assert tables["a"] == tables["b"]
    assert any(row["orders"] for row in tables["a"]["impressions"])
    for row in tables["a"]["impressions"]:
        row["orders"] = []
    assert tables["a"] == tables["c"]


def test_ebnerd_without_articles_and_with_the_hidden_test(tmp_path: Path) -> None:
    source = write_ebnerd(tmp_path / "src", articles=False)
    manifest = import_dataset("ebnerd", source, tmp_path / "out", {"hidden_test": True})
    rows = {row["impression_id"]: row for row in rows_of(tmp_path / "out", "impressions")}
    assert set(rows) == {"train-1", "train-2", "train-3", "validation-4", "validation-5", "test-6"}
    assert rows["test-6"]["clicks"] == []
    assert manifest.tables["items"].rows == 3
    report = check(tmp_path / "out")
    assert report.ok
    assert report.warnings == [
        "constant labels in split test: 0 of 3 candidates clicked; training and metrics will "
        "refuse it"
    ]


def test_ebnerd_a_click_outside_the_list_is_refused(tmp_path: Path) -> None:
    source = write_ebnerd(tmp_path / "src", clicked=99)
    with pytest.raises(DataError, match="impression 3: clicked article 99 is not among"):
        import_dataset("ebnerd", source, tmp_path / "out")
