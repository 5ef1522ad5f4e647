"""The mapped importer: every way to give impressions, and every bad input by its message."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset
from raysys.errors import ConfigError, DataError

DAYS = [f"2024-05-{day:02d}" for day in range(1, 21)]
EVENTS = ["customer,sku,at,action,weather,temp"] + [
    f"c{n % 4},s{(n * 7) % 11},{DAYS[n // 4]} {8 + n % 12:02d}:30:00,"
    f"{'bought' if n % 3 else 'seen'},{'rain' if n % 2 else 'sun'},{n % 30 - 5}"
    for n in range(80)
]
ITEMS = ["sku,name,dept,aisle,price,hood,colour"] + [
    f's{n},"Thing, {n}",food,a{n % 3},{n}.5,h{n % 2},{"red" if n % 2 else ""}' for n in range(9)
]
DERIVED: dict[str, Any] = {
    "dataset": "shop",
    "events": {
        "files": "events.csv", "user": "customer", "item": "sku",
        "time": {"column": "at", "form": "%Y-%m-%d %H:%M:%S", "timezone": "Europe/Berlin"},
        "behaviour": {"column": "action", "values": {"seen": "view", "bought": "order"}},
    },
    "items": {
        "files": "items.csv", "id": "sku", "name": "name", "category": ["dept", "aisle"],
        "price": "price", "location": {"area": "hood"}, "attributes": {"colour": "colour"},
    },
    "contexts": {
        "weather": {"column": "weather"},
        "temperature": {"column": "temp", "edges": [0, 10, 20]},
        "mealtime": {"part": "mealtime"},
    },
    "impressions": {"kind": "derived", "positive": "order", "negatives": {"count": 3}},
    "history": ["view", "order"],
}  # fmt: skip
LISTS = ["request,who,when,shown,clicked,ordered"] + [
    f"r{n},u{n % 3},{1714550400 + n * 40_000},a{n % 5} b{n % 4} c,{'c' if n % 2 else ''},"
    f"{'c' if n % 4 == 1 else ''}"
    for n in range(30)
]
LISTED: dict[str, Any] = {
    "dataset": "lists",
    "impressions": {
        "kind": "lists", "files": "lists.csv", "id": "request", "user": "who",
        "time": {"column": "when", "form": "s"}, "candidates": "shown", "clicks": "clicked",
        "orders": "ordered",
    },
}  # fmt: skip
ROWS = ["request,who,sku,label"] + [
    f"r{n // 4},u{n // 4 % 3},i{n % 4}x{n // 4 % 5},{int(n % 4 == n // 4 % 4)}" for n in range(120)
]
ROWED: dict[str, Any] = {
    "dataset": "rows",
    "impressions": {
        "kind": "rows", "files": "rows.csv", "id": "request", "user": "who", "item": "sku",
        "click": "label",
    },
}  # fmt: skip


def write(
    folder: Path, mapping: dict[str, Any], **files: list[str]
) -> tuple[Path, dict[str, Path]]:
    folder.mkdir(exist_ok=True)
    known = {"events": EVENTS, "items": ITEMS, "lists": LISTS, "rows": ROWS} | files
    for name, lines in known.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    return folder, {"mapping": folder / "mapping.yaml"}


def changed(mapping: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a mapping with one place changed; None removes it."""
    out: dict[str, Any] = json.loads(json.dumps(mapping))
    node = out
    *parents, leaf = path.split(".")
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    return out


def rows_of(path: Path, table: str) -> list[dict[str, Any]]:
    return Dataset(path).table(table).to_pylist()


def test_derived_impressions_contexts_items_and_time(tmp_path: Path) -> None:
    source, options = write(tmp_path / "src", DERIVED)
    manifest = import_dataset("mapped", source, tmp_path / "out", options)
    assert check(tmp_path / "out").ok
    assert manifest.contexts == {
        "weather": "categorical", "temperature": "numeric", "mealtime": "categorical"
    }  # fmt: skip
    events = rows_of(tmp_path / "out", "events")
    assert len(events) == 80
    assert events[0] == {
        "user_id": "c0", "seq": 0, "tz_offset_min": 120, "item_id": "s0", "text": None,
        "ts": int(pd.Timestamp("2024-05-01 06:30").value // 1000), "subject": None,
        "behaviour": "view", "scenario": None, "value": None,
        "context": {"weather": "sun", "temperature": -5.0, "mealtime": "breakfast"},
    }  # fmt: skip
    taken: dict[tuple[str, int], set[str]] = {}
    for event in events:
        taken.setdefault((event["user_id"], event["ts"]), set()).add(event["item_id"])
    shown = rows_of(tmp_path / "out", "impressions")
    assert len(shown) == sum(event["behaviour"] == "order" for event in events)
    for row in shown:
        assert len(row["candidates"]) == len(set(row["candidates"])) == 4
        assert set(row["candidates"]) & taken[row["user_id"], row["ts"]] == set(row["clicks"])
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["s10"]["name"] is None  # in the log, not in the items file
    assert items["s1"]["name"] == "Thing, 1"
    assert items["s1"]["category"] == ["food", "a1"]
    assert dict(items["s1"]["attributes"]) == {"colour": "red"}
    assert items["s2"]["attributes"] == []


def test_a_lead_hides_the_look_before_the_purchase(tmp_path: Path) -> None:
    """Each order is preceded by a look at the same item, 20 minutes before."""
    looks = [
        f"c{n % 4},s{(n * 7) % 11},{DAYS[n // 4]} {8 + n % 12:02d}:{{}},{{}},sun,5"
        for n in range(80)
    ]
    log = [line.format("10:00", "seen") for line in looks]
    log += [line.format("30:00", "bought") for line in looks]
    source, options = write(tmp_path / "src", DERIVED, events=[EVENTS[0], *log])
    import_dataset("mapped", source, tmp_path / "plain", options)
    led = changed(DERIVED, "impressions.lead_minutes", 30)
    source, options = write(tmp_path / "src", led, events=[EVENTS[0], *log])
    card = import_dataset("mapped", source, tmp_path / "led", options).data_card
    assert "requested 30 minutes before" in card.label_rule
    assert check(tmp_path / "led").ok
    for name, gives_away in (("plain", True), ("led", False)):
        events = rows_of(tmp_path / name, "events")
        for row in rows_of(tmp_path / name, "impressions"):
            (bought,) = row["clicks"]
            last = [e for e in events if e["user_id"] == row["user_id"] and e["ts"] < row["ts"]][
                -1:
            ]
            recent = [e for e in last if row["ts"] - e["ts"] < 1_800_000_000]
            assert (bought in [e["item_id"] for e in recent]) == gives_away


def test_days_are_cut_at_local_midnight(tmp_path: Path) -> None:
    for zone, offset in (("Europe/Berlin", "+02:00"), ("UTC", "+00:00")):
        mapping = changed(DERIVED, "events.time.timezone", zone)
        source, options = write(tmp_path / "src", mapping)
        card = import_dataset("mapped", source, tmp_path / zone[:3], options).data_card
        assert ("of Europe/Berlin" in card.split_rule) == (zone != "UTC")
        for bound in card.split_bounds.values():
            local = pd.Timestamp(bound).tz_convert(offset if zone == "UTC" else zone)
            assert local == local.normalize()


def test_derived_same_area_negatives_share_the_items_area(tmp_path: Path) -> None:
    mapping = changed(
        DERIVED, "impressions.negatives", {"rule": "same-area", "count": 2, "seed": 5}
    )
    source, options = write(tmp_path / "src", mapping)
    import_dataset("mapped", source, tmp_path / "out", options)
    area = {f"s{n}": f"h{n % 2}" for n in range(9)}
    for row in rows_of(tmp_path / "out", "impressions"):
        assert len({area.get(item) for item in row["candidates"]}) == 1


def test_one_seed_one_data_set(tmp_path: Path) -> None:
    source, options = write(tmp_path / "src", DERIVED)
    first, again = (
        import_dataset("mapped", source, tmp_path / name, options) for name in ("a", "b")
    )
    assert first.hash == again.hash
    source, options = write(tmp_path / "src", changed(DERIVED, "impressions.negatives.seed", 1))
    other = import_dataset("mapped", source, tmp_path / "c", options)
    assert other.data_card_id != first.data_card_id
    assert (
        other.tables["impressions"].files[0].sha256 != first.tables["impressions"].files[0].sha256
    )


def test_given_lists_make_clicks_and_orders_the_history(tmp_path: Path) -> None:
    source, options = write(tmp_path / "src", LISTED)
    manifest = import_dataset("mapped", source, tmp_path / "out", options)
    assert check(tmp_path / "out").ok
    assert manifest.candidates == "logged"
    shown = rows_of(tmp_path / "out", "impressions")
    assert [(row["clicks"], row["orders"]) for row in shown[:3]] == [
        ([], []), (["c"], ["c"]), ([], []),
    ]  # fmt: skip
    behaviours = [row["behaviour"] for row in rows_of(tmp_path / "out", "events")]
    assert sorted(set(behaviours)) == ["click", "order"]
    assert len(behaviours) == 15


def test_lists_of_parquet_and_json_lines_are_the_same(tmp_path: Path) -> None:
    source, options = write(tmp_path / "src", LISTED)
    import_dataset("mapped", source, tmp_path / "csv", options)
    frame = pd.read_csv(source / "lists.csv", keep_default_na=False)
    for name in ("shown", "clicked", "ordered"):
        frame[name] = frame[name].str.split()
    frame.to_parquet(source / "lists.parquet")
    frame.to_json(source / "lists.jsonl", orient="records", lines=True)
    for kind in ("parquet", "jsonl"):
        mapping = changed(LISTED, "impressions.files", f"lists.{kind}")
        source, options = write(tmp_path / "src", mapping)
        import_dataset("mapped", source, tmp_path / kind, options)
        for table in ("events", "impressions", "items"):
            assert rows_of(tmp_path / kind, table) == rows_of(tmp_path / "csv", table)


def test_rows_without_time_go_into_folds_with_training_history(tmp_path: Path) -> None:
    source, options = write(tmp_path / "src", ROWED)
    tested: list[str] = []
    for fold in range(3):
        out = tmp_path / f"out{fold}"
        import_dataset("mapped", source, out, {**options, "folds": 3, "fold": fold})
        assert check(out).ok
        past: dict[str, list[str]] = {}
        for event in rows_of(out, "events"):
            past.setdefault(event["user_id"], []).append(event["item_id"])
        rows = rows_of(out, "impressions")
        tested += [row["impression_id"] for row in rows if row["split"] == "test"]
        clicks: dict[str, int] = {}
        for row in rows:
            if row["split"] == "train":  # a request sees the clicks of those before it
                assert row["history_end"] == clicks.get(row["user_id"], 0)
                clicks[row["user_id"]] = row["history_end"] + len(row["clicks"])
        for row in rows:
            if row["split"] == "test":
                assert row["history_end"] == len(past.get(row["user_id"], []))
            if row["split"] == "valid":
                assert row["history_end"] == clicks.get(row["user_id"], 0)
    assert sorted(tested) == sorted(f"r{n}" for n in range(30))


def test_derived_without_time_keeps_test_pairs_out_of_the_events(tmp_path: Path) -> None:
    mapping = changed(changed(DERIVED, "events.time", None), "contexts.mealtime", None)
    source, options = write(tmp_path / "src", mapping)
    import_dataset("mapped", source, tmp_path / "out", options)
    assert check(tmp_path / "out").ok
    past: dict[str, list[str]] = {}
    for event in rows_of(tmp_path / "out", "events"):
        past.setdefault(event["user_id"], []).append(event["item_id"])
    for row in rows_of(tmp_path / "out", "impressions"):
        history = past.get(row["user_id"], [])[: row["history_end"]]
        assert row["clicks"][0] not in history
        if row["split"] == "test":
            assert row["clicks"][0] not in past.get(row["user_id"], [])


BAD_INPUTS = {
    "short row": (
        DERIVED, {"events": [*EVENTS[:2], "c1,s1,2024-05-01 10:00:00", *EVENTS[2:]]},
        "{src}/events.csv line 3: 3 columns where 6 are expected (customer, sku, at, action, "
        "weather, temp)",
    ),
    "bad date": (
        DERIVED, {"events": [*EVENTS, "c1,s1,yesterday,seen,sun,1"]},
        "{src}/events.csv line 82: column 'at' is no time in the form '%Y-%m-%d %H:%M:%S': "
        "yesterday",
    ),
    "future": (
        DERIVED, {"events": [*EVENTS, "c1,s1,2124-05-01 10:00:00,seen,sun,1"]},
        "{src}/events.csv line 82: column 'at' lies in the future: 2124-05-01 10:00:00; check the "
        "unit and the clock that wrote the log",
    ),
    "unnamed behaviour": (
        DERIVED, {"events": [*EVENTS, "c1,s1,2024-05-01 10:00:00,sold,sun,1"]},
        "{src}/events.csv line 82: column 'action' has the value sold, which the mapping gives no "
        "behaviour; name it or set others: drop",
    ),
    "no item": (
        DERIVED, {"events": [*EVENTS, "c1,,2024-05-01 10:00:00,seen,sun,1"]},
        "{src}/events.csv line 82: column 'sku' is empty",
    ),
    "no number": (
        DERIVED, {"events": [*EVENTS, "c1,s1,2024-05-01 10:00:00,seen,sun,warm"]},
        "{src}/events.csv line 82: column 'temp' is no number: warm",
    ),
    "item twice": (
        DERIVED, {"items": [*ITEMS, ITEMS[1]]}, "item s0 occurs twice in the items table",
    ),
    "click not shown": (
        LISTED, {"lists": [*LISTS, "r99,u1,1714550400,a b,z,"]},
        "{src}/lists.csv line 32: click z is not among the candidates",
    ),
    "order not clicked": (
        LISTED, {"lists": [*LISTS, "r99,u1,1714550400,a b,a,b"]},
        "{src}/lists.csv line 32: order b is not among the clicks",
    ),
    "impression twice": (
        LISTED, {"lists": [*LISTS, LISTS[3]]},
        "{src}/lists.csv line 32: duplicate impression id r2",
    ),
    "candidate twice": (
        LISTED, {"lists": [*LISTS, "r99,u1,1714550400,a b a,,"]},
        "{src}/lists.csv line 32: candidate a occurs twice",
    ),
    "no candidates": (
        LISTED, {"lists": [*LISTS, "r99,u1,1714550400,,,"]},
        "{src}/lists.csv line 32: column 'shown' is empty",
    ),
    "two users": (
        ROWED, {"rows": [*ROWS, "r0,u2,new,0"]},
        "{src}/rows.csv line 122: its request has another user in an earlier row",
    ),
    "label": (
        ROWED, {"rows": [*ROWS, "r0,u0,new,7"]},
        "{src}/rows.csv line 122: column 'label' must be 0 or 1, not 7",
    ),
    "candidate row twice": (
        ROWED, {"rows": [*ROWS, ROWS[1]]},
        "{src}/rows.csv line 122: candidate i0x0 occurs twice in its request",
    ),
    "missing file": (
        changed(LISTED, "impressions.files", "nothing*.csv"), {},
        "{src}/nothing*.csv: no such file",
    ),
    "missing column": (
        changed(LISTED, "impressions.candidates", "show"), {},
        "{src}/lists.csv: no column 'show'; did you mean 'shown'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_gives_one_clear_error_and_no_folder(tmp_path: Path, name: str) -> None:
    mapping, files, message = BAD_INPUTS[name]
    source, options = write(tmp_path / "src", mapping, **files)
    with pytest.raises(DataError) as caught:
        import_dataset("mapped", source, tmp_path / "out", options)
    assert str(caught.value) == message.format(src=source)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


NO_AREAS = changed(DERIVED, "items.location", None)
BAD_MAPPINGS = {
    "context column": (
        changed(DERIVED, "contexts.weather.column", "wether"),
        "mapping: contexts.weather: no column 'wether' in events.csv; did you mean 'weather'?",
    ),
    "unknown key": (
        changed(DERIVED, "evnts", {}),
        "{src}/mapping.yaml: unknown key evnts; did you mean events?",
    ),
    "two histories": (
        {**LISTED, "events": changed(DERIVED, "events.time", None)["events"]},
        "events beside given impressions need times on both",
    ),
    "time zone": (
        changed(DERIVED, "events.time.timezone", "Berlin"),
        "no time zone 'Berlin'; write it like Europe/Berlin",
    ),
    "behaviour": (
        changed(DERIVED, "events.behaviour.values", {"seen": "saw"}),
        "unknown behaviours ['saw']; known are click",
    ),
    "areas": (
        changed(NO_AREAS, "impressions.negatives.rule", "same-area"),
        "mapping: negatives of rule same-area need items with location.area",
    ),
    "positive": (
        changed(DERIVED, "impressions.positive", "buy"),
        "impressions.derived.positive: unknown behaviours ['buy']; known are click",
    ),
    "count": (
        changed(DERIVED, "impressions.negatives.count", 11),
        "impressions.negatives.count is 11, but beside a positive the log holds only 10 items",
    ),
    "edges": (
        changed(DERIVED, "contexts.temperature.edges", [10, 0]),
        "edges belong to a column and must ascend",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MAPPINGS)
def test_bad_mappings_are_refused(tmp_path: Path, name: str) -> None:
    mapping, message = BAD_MAPPINGS[name]
    source, options = write(tmp_path / "src", mapping)
    with pytest.raises(ConfigError) as caught:
        import_dataset("mapped", source, tmp_path / "out", options)
    assert message.format(src=source) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folds_for_a_timed_log_are_refused(tmp_path: Path) -> None:
    source, options = write(tmp_path / "src", LISTED)
    with pytest.raises(ConfigError, match="the log has times, so it is split by time"):
        import_dataset("mapped", source, tmp_path / "out", {**options, "folds": 5, "fold": 0})


def test_an_existing_folder_is_kept_unless_overwritten(tmp_path: Path) -> None:
    source, options = write(tmp_path / "src", LISTED)
    import_dataset("mapped", source, tmp_path / "out", options)
    with pytest.raises(DataError, match="exists already; choose another --out or pass --overwrite"):
        import_dataset("mapped", source, tmp_path / "out", options)
    import_dataset("mapped", source, tmp_path / "out", options, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]
