"""foursquare-restaurants and frappe: logs without any time, where only the split hides a label."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset
from raysys.data.split import TEST, TRAIN, VALID, Folds
from raysys.errors import DataError

needs_data = pytest.mark.skipif("RAYSYS_DATA" not in os.environ, reason="RAYSYS_DATA is not set")
PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}


def rows_of(path: Path, table: str) -> list[dict[str, Any]]:
    return Dataset(path).table(table).to_pylist()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, unique=True),
    st.integers(2, 6),
    st.integers(0, 3),
)
def test_each_owner_is_spread_evenly_over_the_folds(
    pairs: list[tuple[int, int]], folds: int, seed: int
) -> None:
    owners = np.array([owner for owner, _ in pairs])
    keys = np.array([f"{owner}/{unit}" for owner, unit in pairs], object)
    counts, tested = [], np.zeros(len(pairs), int)
    for fold in range(folds):
        options = Folds(folds=folds, fold=fold, seed=seed)
        split = options.split_within(owners, keys)
        order = np.random.default_rng(0).permutation(len(pairs))
        assert (options.split_within(owners[order], keys[order]) == split[order]).all()
        tested += split == TEST
        counts.append(np.bincount(owners[split == TEST], minlength=6))
    assert (tested == 1).all()
    assert (np.max(counts, axis=0) - np.min(counts, axis=0) <= 1).all()


def venues_of(user: int) -> list[int]:
    """Venues that user `user` of the written log checked in at, some of them twice."""
    random = np.random.default_rng(user)
    return random.permutation(30)[: 1 + user % 12].tolist()


def write_restaurants(folder: Path) -> Path:
    """24 users, 30 venues with check-ins and 5 without; every second user tips where he went, and
    all at a venue where they did not."""
    folder.mkdir()
    checkins, tips = [], []
    for user in range(24):
        for venue in venues_of(user):
            checkins += [f"{user}\t{venue}"] * (1 + (user + venue) % 2)
            if user % 2:
                tips.append(f"{user}\t{venue}\tu{user} likes v{venue}, a cr\u00e8me")
        tips.append(f"{user}\t{30 + user % 5}\tu{user} was at v{30 + user % 5}")
    tags = [f"{venue}\tcaf\u00e9,lunch , " if venue % 2 else f"{venue}\t" for venue in range(35)]
    for name, lines, encoding in (
        ("checkins", checkins, "ascii"),
        ("tips", tips, "latin-1"),
        ("tags", tags, "gbk"),
    ):
        text = "\n".join(lines) + "\n"
        (folder / f"dataset_ubicomp2013_{name}.txt").write_bytes(text.encode(encoding))
    return folder


def numbers(row: dict[str, Any]) -> tuple[int, int]:
    """(user, venue) of an impression or an event."""
    venue = row["clicks"][0] if "clicks" in row else row["item_id"]
    return int(row["user_id"][1:]), int(venue[1:])


def test_restaurants_every_pair_is_tested_once(tmp_path: Path) -> None:
    source = write_restaurants(tmp_path / "src")
    tested: Counter[tuple[int, int]] = Counter()
    for fold in range(3):
        out = tmp_path / f"out{fold}"
        import_dataset("foursquare-restaurants", source, out, dict(folds=3, fold=fold, negatives=4))
        assert check(out).ok
        rows = rows_of(out, "impressions")
        assert {numbers(row) for row in rows} == {(u, v) for u in range(24) for v in venues_of(u)}
        test = [numbers(row) for row in rows if row["split"] == "test"]
        tested.update(test)
        for user in range(24):
            share = sum(u == user for u, _ in test) - len(venues_of(user)) / 3
            assert abs(share) < 1
    assert set(tested.values()) == {1}


def test_restaurants_nothing_of_a_held_out_pair_is_seen(tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_dataset("foursquare-restaurants", write_restaurants(tmp_path / "src"), out,
                   {"negatives": 4, "valid_share": 0.2})  # fmt: skip
    part = {numbers(row): row["split"] for row in rows_of(out, "impressions")}
    events: dict[int, list[tuple[int, str]]] = {}
    for event in rows_of(out, "events"):
        user, venue = numbers(event)
        events.setdefault(user, []).append((venue, event["behaviour"]))
        assert (event["text"] is None) == (event["behaviour"] == "checkin")
    for user in range(24):
        expected = Counter()
        for venue in venues_of(user):
            if part[user, venue] != "test":
                expected[venue, "checkin"] = 1 + (user + venue) % 2
                expected[venue, "comment"] = user % 2
        expected[30 + user % 5, "comment"] = 1
        assert Counter(events[user]) == +expected
    for row in rows_of(out, "impressions"):
        user, venue = numbers(row)
        mine = events[user]
        seen, rest = mine[: row["history_end"]], mine[row["history_end"] :]
        assert seen[0] == (30 + user % 5, "comment")
        assert all(v != venue for v, _ in seen)
        allowed = {"train": {"train"}, "valid": {"train"}, "test": {"train", "valid"}}
        assert {part[user, v] for v, _ in seen[1:]} <= allowed[row["split"]]
        if row["split"] != "train":
            left = {part[user, v] for v, _ in rest}
            assert not left & allowed[row["split"]]
    for item in rows_of(out, "items"):
        venue = int(item["item_id"][1:])
        for user in range(1, 24, 2):
            said = f"u{user} likes v{venue}, a cr\u00e8me" in (item["text"] or "").split("\n")
            assert said == (part.get((user, venue)) == "train")
        assert item["abstract"] == ("caf\u00e9, lunch" if venue % 2 else None)
        assert dict(item["attributes"]) == ({"tags": "caf\u00e9|lunch"} if venue % 2 else {})


def test_restaurants_negatives_tell_no_later_choice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_dataset("foursquare-restaurants", write_restaurants(tmp_path / "src"), out,
                   {"negatives": 8, "valid_share": 0.2})  # fmt: skip
    rows = rows_of(out, "impressions")
    part = {numbers(row): PARTS[row["split"]] for row in rows}
    later = 0
    for row in rows:
        user, venue = numbers(row)
        others = {int(item[1:]) for item in row["candidates"]} - {venue}
        now = PARTS[row["split"]]
        for other in others:
            assert other < 30  # nobody checks in at a venue that is only tipped
            assert part.get((user, other), 9) > now
            assert any(part.get((u, other), 9) <= now for u in range(24))
            later += (user, other) in part
    assert later  # a test choice is as likely a training negative as any other venue


BAD = {
    "no such file": ("checkins", None, "dataset_ubicomp2013_checkins.txt: no such file"),
    "columns": ("tips", b"1\t2\tfine\n1\t2\n", "tips.txt line 2: 2 columns where 3 are expected"),
    "id": ("checkins", b"1\t2\nu1\t2\n", "checkins.txt line 2: column 'user' is no number: u1"),
    "tip": ("tips", b"1\t2\tfine\n1\t3\t \n", "tips.txt line 2: column 'text' is empty"),
    "twice": ("tags", b"1\ta\n2\tb\n1\tc\n", "tags.txt line 3: venue 1 has tags before"),
    "bytes": ("tags", b"1\ta\n2\t\xff\xff\n", "tags.txt: not gbk text"),
}


@pytest.mark.parametrize("fault", BAD)
def test_restaurants_bad_input_is_named(tmp_path: Path, fault: str) -> None:
    source = write_restaurants(tmp_path / "src")
    name, content, message = BAD[fault]
    file = source / f"dataset_ubicomp2013_{name}.txt"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        import_dataset("foursquare-restaurants", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_data
def test_restaurants_on_the_real_files(tmp_path: Path) -> None:
    source = Path(os.environ["RAYSYS_DATA"]) / "foursquare_nyc_restaurants"
    manifest = import_dataset("foursquare-restaurants", source, tmp_path / "out", {"negatives": 4})
    counts = manifest.data_card.counts
    assert (counts["source_checkins"], counts["source_tips"]) == (27_149, 10_377)
    assert (counts["items"], counts["impression_users"]) == (3_298, 2_060)
    assert counts["impressions"] == 13_472
    assert check(tmp_path / "out").ok
    table = Dataset(tmp_path / "out").table("impressions", ["split"]).to_pandas()
    assert (table["split"] == "test").mean() == pytest.approx(0.2, abs=0.01)
    words = " ".join(row["abstract"] or "" for row in rows_of(tmp_path / "out", "items"))
    assert "caf\u00e9" in words and "\u30e9\u30fc\u30e1\u30f3" in words
    users = {event["user_id"] for event in rows_of(tmp_path / "out", "events")}
    assert len(users) > 3_000  # most users left tips, many of them nothing else


HEADER = "user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity"
META = (
    "item\tpackage\tcategory\tdownloads\tdeveloper\ticon\tlanguage\tdescription\tname\tprice\t"
    "rating\tshort desc"
)


def frappe_rows() -> list[tuple[str, ...]]:
    """400 openings of 20 apps by 8 users; apps 0 to 4 are paid."""
    random = np.random.default_rng(3)
    rows = set()
    while len(rows) < 400:
        user, item = random.integers(8), random.integers(20)
        rows.add(
            (
                str(user), str(item), "2", str(random.choice(["morning", "night"])), "monday",
                "workday", str(random.choice(["unknown", "home"])),
                "paid" if item < 5 else "free", str(random.choice(["sunny", "unknown"])), "Spain",
                str(random.integers(3)),
            )
        )  # fmt: skip
    return sorted(rows)


def write_frappe(folder: Path, rows: list[tuple[str, ...]], *, meta: bool = True) -> Path:
    folder.mkdir()
    text = "\n".join(["\t".join(row) for row in rows])
    (folder / "frappe.csv").write_text(f"{HEADER}\n{text}\n")
    if meta:
        lines = [
            f"{n}\tcom.app{n}\tTools\t1,000 - 5,000\tunknown\thttp://icon\ten\t"
            f'"Does {n} things,\nand well"\tApp {n}\t{"$1.99" if n < 5 else "Free"}\t4.2\tnice'
            for n in range(21)
        ]
        (folder / "meta.csv").write_text("\n".join([META, *lines]) + "\n")
    return folder


def test_frappe_reads_contexts_counts_and_words(tmp_path: Path) -> None:
    rows = frappe_rows()
    again = (*rows[0][:2], "5", *rows[0][3:])
    source = write_frappe(tmp_path / "src", [*rows, again])
    manifest = import_dataset("frappe", source, tmp_path / "out", {"negatives": 3})
    assert check(tmp_path / "out").ok
    card = manifest.data_card
    assert card.split_rule.startswith("random, there are no times to split by")
    assert (card.counts["source_rows"], card.counts["merged_rows"]) == (401, 1)
    expected = Counter()
    for user, item, cnt, *context in [*rows, again]:
        known = tuple(
            None if value == ("0" if name == "city" else "unknown") else value
            for name, value in zip(HEADER.split("\t")[3:], context, strict=True)
        )
        expected[f"u{int(user):05d}", f"a{int(item):05d}", known] += int(cnt)
    shown = rows_of(tmp_path / "out", "impressions")
    found = {(r["user_id"], r["clicks"][0], tuple(r["context"].values())) for r in shown}
    assert found == set(expected)
    events = rows_of(tmp_path / "out", "events")
    assert len(events) == sum(row["split"] != "test" for row in shown)
    for event in events:
        context = tuple(event["context"].values())
        assert event["value"] == expected[event["user_id"], event["item_id"], context]
    declared = {row["name"]: row["values"] for row in rows_of(tmp_path / "out", "contexts")}
    assert list(declared) == HEADER.split("\t")[3:]
    assert (declared["homework"], declared["city"]) == (["home"], ["1", "2"])
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert len(items) == 21
    app = items["a00003"]
    assert (app["name"], app["abstract"], app["text"], app["category"], app["price"]) == (
        "App 3", "nice", "Does 3 things,\nand well", ["Tools"], 1.99
    )  # fmt: skip
    assert dict(app["attributes"]) == {
        "package": "com.app3", "downloads": "1,000 - 5,000", "language": "en", "rating": "4.2"
    }  # fmt: skip
    assert items["a00007"]["price"] == 0


def test_frappe_negatives_share_the_cost_and_histories_stop_before_the_row(tmp_path: Path) -> None:
    source = write_frappe(tmp_path / "src", frappe_rows(), meta=False)
    tested: Counter[str] = Counter()
    for fold in range(3):
        out = tmp_path / f"out{fold}"
        import_dataset("frappe", source, out, dict(folds=3, fold=fold, negatives=3))
        assert check(out).ok
        rows = rows_of(out, "impressions")
        opened: dict[tuple[Any, ...], int] = {}
        for row in rows:
            opened[row["user_id"], row["clicks"][0], *row["context"].values()] = PARTS[row["split"]]
        events: dict[str, list[tuple[Any, ...]]] = {}
        for event in rows_of(out, "events"):
            key = (event["user_id"], event["item_id"], *event["context"].values())
            events.setdefault(event["user_id"], []).append(key)
        for row in rows:
            context, now = tuple(row["context"].values()), PARTS[row["split"]]
            assert {int(item[1:]) < 5 for item in row["candidates"]} == {
                row["context"]["cost"] == "paid"
            }
            for item in set(row["candidates"]) - set(row["clicks"]):
                assert opened.get((row["user_id"], item, *context), 9) > now
            seen = events[row["user_id"]][: row["history_end"]]
            assert (row["user_id"], row["clicks"][0], *context) not in seen
            assert all(opened[key] <= min(now, VALID) for key in seen)
            if row["split"] == "test":
                tested[row["impression_id"]] += 1
    assert len(tested) == 400 and set(tested.values()) == {1}
    assert {row["kind"] for row in rows_of(out, "items")} == {"app"}


def test_frappe_bad_input_is_named(tmp_path: Path) -> None:
    rows = frappe_rows()
    cases = {
        "cnt": ([(*rows[0][:2], "0", *rows[0][3:])], r"line 2: column 'cnt' must be 1 or more"),
        "item": ([(rows[0][0], "x", *rows[0][2:])], r"line 2: column 'item' is no number: x"),
        "short": ([rows[0][:-1]], r"frappe.csv line 2: 10 columns where 11 are expected"),
    }
    for name, (bad, message) in cases.items():
        source = write_frappe(tmp_path / name, bad)
        with pytest.raises(DataError, match=message):
            import_dataset("frappe", source, tmp_path / "out")
    source = write_frappe(tmp_path / "columns", rows)
    file = source / "frappe.csv"
    file.write_text(file.read_text().replace("daytime", "daytimes", 1))
    with pytest.raises(DataError, match="no column 'daytime'; did you mean 'daytimes'"):
        import_dataset("frappe", source, tmp_path / "out")
    file.unlink()
    with pytest.raises(DataError, match=r"frappe.csv: no such file"):
        import_dataset("frappe", source, tmp_path / "out")
    source = write_frappe(tmp_path / "twice", rows)
    meta = (source / "meta.csv").read_text().splitlines()
    (source / "meta.csv").write_text("\n".join([*meta, *meta[1:3]]) + "\n")
    with pytest.raises(DataError, match="item a00000 occurs twice"):
        import_dataset("frappe", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
