"""bing-news and mind: hand-written files in the public layouts, each trap a test."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset
from raysys.errors import ConfigError, DataError

BING = [
    "7\tCubs win series\t0\t1:Cubs",
    "7\tcubs  WIN series\t1\t1:Cubs;2:World Series",
    *(f"7\tstory {n}\t{n % 2}\t{n}:Name {n}" for n in range(10, 30)),
    *(f"8\tstory {n}\t{(n + 1) % 2}\t{n}:Name {n}" for n in range(10, 30)),
]


def write_bing(folder: Path, lines: list[str] = BING) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw_train.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    return folder


def rows_of(path: Path, table: str) -> list[dict[str, Any]]:
    return Dataset(path).table(table).to_pylist()


def test_bing_merges_a_users_repeated_titles_with_the_maximal_label(tmp_path: Path) -> None:
    manifest = import_dataset("bing-news", write_bing(tmp_path / "src"), tmp_path / "out")
    assert manifest.data_card.counts["merged_rows"] == 1
    items = {row["title"]: row for row in rows_of(tmp_path / "out", "items")}
    assert len(items) == 21
    cubs = items["Cubs win series"]
    assert [e["label"] for e in cubs["entities"]] == ["Cubs", "World Series"]
    shown = [row for row in rows_of(tmp_path / "out", "impressions")
             if cubs["item_id"] in row["candidates"]]  # fmt: skip
    assert len(shown) == 1
    assert cubs["item_id"] in shown[0]["clicks"]


def test_bing_histories_hold_no_test_click_and_no_own_label(tmp_path: Path) -> None:
    source = write_bing(tmp_path / "src")
    seen: set[tuple[str, str]] = set()
    for fold in range(3):
        out = tmp_path / f"out{fold}"
        import_dataset("bing-news", source, out, {"folds": 3, "fold": fold})
        assert check(out).ok
        events: dict[str, list[str]] = {}
        for row in rows_of(out, "events"):
            events.setdefault(row["user_id"], []).append(row["item_id"])
        for row in rows_of(out, "impressions"):
            history = events.get(row["user_id"], [])[: row["history_end"]]
            assert not set(history) & set(row["candidates"])
            if row["split"] == "test":
                assert not set(events.get(row["user_id"], [])) & set(row["clicks"])
                assert row["history_end"] == len(events.get(row["user_id"], []))
                seen |= {(row["user_id"], item) for item in row["candidates"]}
    assert len(seen) == 41  # every merged row is a test row of exactly one fold


def test_bing_training_slates_are_small_and_test_lists_whole(tmp_path: Path) -> None:
    import_dataset("bing-news", write_bing(tmp_path / "s"), tmp_path / "o", {"slate": 4})
    rows = rows_of(tmp_path / "o", "impressions")
    assert max(len(r["candidates"]) for r in rows if r["split"] == "train") <= 4
    test_users = [r["user_id"] for r in rows if r["split"] == "test"]
    assert len(test_users) == len(set(test_users))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1\ta\t1"], "line 1: 3 columns where 4 are expected (user, title, label, entities)"),
        (["1\ta\t1\t1:A", "1\tb\tyes\t1:A"], "line 2: column 'label' is no number: yes"),
        (["1\ta\t1\t1:A", "1\tb\t2\t1:A"], "line 2: column 'label' must be 0 or 1, not 2"),
        (["1\ta\t1\t1:A", "1\tb\t0\tA"],
         "line 2: malformed entity 'A' (want id:name); mend the file or pass "
         "--on-bad-entities drop"),
        (["1\ta\t1\t1:A", "\tb\t0\t1:A"], "line 2: column 'user' is empty"),
    ],
)  # fmt: skip
def test_bing_bad_rows_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    source = write_bing(tmp_path / "src", lines)
    with pytest.raises(DataError) as caught:
        import_dataset("bing-news", source, tmp_path / "out")
    assert str(caught.value) == f"{source / 'raw_train.txt'} {message}"
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_bing_bad_entities_can_be_dropped(tmp_path: Path) -> None:
    source = write_bing(tmp_path / "src", [*BING, "9\tnew one\t1\tbroken"])
    import_dataset("bing-news", source, tmp_path / "out", {"on_bad_entities": "drop"})
    items = {row["title"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["new one"]["entities"] == []


def test_a_fold_that_does_not_exist_and_unknown_options_are_refused(tmp_path: Path) -> None:
    source = write_bing(tmp_path / "src")
    with pytest.raises(ConfigError, match="fold 3 does not exist: 3 folds are 0 to 2"):
        import_dataset("bing-news", source, tmp_path / "out", {"folds": 3, "fold": 3})
    with pytest.raises(ConfigError, match="unknown key flods; did you mean fold"):
        import_dataset("bing-news", source, tmp_path / "out", {"flods": 3})
    with pytest.raises(ConfigError, match="no loader 'bing'; did you mean 'bing-news'"):
        import_dataset("bing", source, tmp_path / "out")


@pytest.mark.skipif("RAYSYS_DATA" not in os.environ, reason="RAYSYS_DATA is not set")
def test_bing_on_the_real_file(tmp_path: Path) -> None:
    manifest = import_dataset(
        "bing-news", Path(os.environ["RAYSYS_DATA"]) / "bing_news", tmp_path / "out"
    )
    counts = manifest.data_card.counts
    assert counts["source_rows"] == 10_401
    assert counts["merged_rows"] == 163
    assert counts["impression_users"] == 469
    assert counts["candidate_rows"] == 10_238
    impressions = Dataset(tmp_path / "out").table("impressions").to_pandas()
    clicks = impressions["clicks"].map(len).sum()
    # 6,305 clicked rows; 163 rows went into others, and clicks among them with clicks merged.
    assert 6_305 - 163 <= clicks <= 6_305
    place = [
        (list(row.candidates).index(click) + 0.5) / len(row.candidates)
        for row in impressions.itertuples()
        for click in row.clicks
    ]
    assert abs(np.mean(place) - 0.5) < 0.02  # the file's own order would tell the label
    assert check(tmp_path / "out").ok


NEWS = (
    '{0}\tsports\tsoccer\tTitle "of {0}\tAbstract\thttp://x\t'
    '[{{"Label": "Club", "Type": "O", "WikidataId": "Q{1}", "Confidence": 0.5, '
    '"OccurrenceOffsets": [0], "SurfaceForms": ["Club"]}}]\t[]'
)
TRAIN = [
    "1\tU1\t11/09/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0",
    "2\tU2\t11/12/2019 12:00:00 PM\t\tN3-0 N4-1",
    "3\tU1\t11/14/2019 11:59:59 PM\tN1 N2\tN1-0 N4-1 N4-0",
]
DEV = [
    "1\tU1\t11/15/2019 8:00:00 AM\tN1 N2 N5\tN3-1 N9-0",
    "2\tU3\t11/15/2019 9:00:00 AM\tN2\tN3-0 N4-1",
]


def write_mind(folder: Path, train: list[str] = TRAIN, dev: list[str] = DEV, **news: str) -> Path:
    for part, log in (("MINDsmall_train", train), ("MINDsmall_dev", dev)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "behaviors.tsv").write_text("\n".join(log) + "\n")
        lines = [news.get(f"N{n}") or NEWS.format(f"N{n}", n) for n in range(1, 6)]
        (folder / part / "news.tsv").write_text("\n".join(lines) + "\n")
        (folder / part / "entity_embedding.vec").write_text("Q1\t0.5\t1\t\nQ2\t0\t-1\t\n")
    return folder


def test_mind_splits_ids_histories_and_stubs(tmp_path: Path) -> None:
    manifest = import_dataset("mind", write_mind(tmp_path / "src"), tmp_path / "out")
    assert check(tmp_path / "out").ok
    shown = {row["impression_id"]: row for row in rows_of(tmp_path / "out", "impressions")}
    assert {key: row["split"] for key, row in shown.items()} == {
        "train-1": "train", "train-2": "train", "train-3": "valid", "dev-1": "test",
        "dev-2": "test",
    }  # fmt: skip
    assert shown["train-3"]["candidates"] == ["N1", "N4"]  # the repeated candidate is one, clicked
    assert shown["train-3"]["clicks"] == ["N4"]
    assert manifest.data_card.counts["merged_candidates"] == 1
    events = rows_of(tmp_path / "out", "events")
    assert [(e["user_id"], e["seq"], e["item_id"]) for e in events] == [
        ("U1", 0, "N1"), ("U1", 1, "N2"), ("U1", 2, "N5"), ("U3", 0, "N2"),
    ]  # fmt: skip
    # What dev adds to a history lies before dev, but after every training impression.
    assert [e["ts"] is None for e in events] == [True, True, False, True]
    assert shown["train-3"]["ts"] < events[2]["ts"] < shown["dev-1"]["ts"]
    items = {row["item_id"]: row for row in rows_of(tmp_path / "out", "items")}
    assert items["N9"]["title"] is None
    assert items["N1"]["title"] == 'Title "of N1'
    assert items["N1"]["entities"][0]["id"] == "Q1"
    assert items["N1"]["category"] == ["sports", "soccer"]
    vectors = {row["id"]: row["vector"] for row in rows_of(tmp_path / "out", "entities")}
    assert vectors == {"Q1": [0.5, 1.0], "Q2": [0.0, -1.0]}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([TRAIN[0], TRAIN[0], *TRAIN[1:]], "line 2: duplicate impression id 1"),
        ([*TRAIN, "4\tU1\t2019-11-10\tN1 N2\tN3-1"],
         "line 4: column 'time' is no time in the form '%m/%d/%Y %I:%M:%S %p': 2019-11-10"),
        ([*TRAIN, "4\tU1\t11/10/2019 9:00:00 AM\tN1 N2\tN3-1 N4"],
         "line 4: candidate N4 has no label -0 or -1"),
        ([*TRAIN, "4\tU1\t11/10/2099 9:00:00 AM\tN1 N2\tN3-1"],
         "line 4: column 'time' lies in the future: 11/10/2099 9:00:00 AM; check the unit and the "
         "clock that wrote the log"),
        ([*TRAIN, "4\tU1\t11/10/2019 9:00:00 AM"],
         "line 4: 3 columns where 5 are expected (impression_id, user_id, time, history, "
         "impressions)"),
    ],
)  # fmt: skip
def test_mind_bad_rows_are_named(tmp_path: Path, train: list[str], message: str) -> None:
    source = write_mind(tmp_path / "src", train)
    with pytest.raises(DataError) as caught:
        import_dataset("mind", source, tmp_path / "out")
    assert str(caught.value) == f"{source / 'MINDsmall_train' / 'behaviors.tsv'} {message}"
    assert not (tmp_path / "out").exists()


def test_mind_two_histories_of_one_user_in_a_split_are_refused(tmp_path: Path) -> None:
    train = [*TRAIN, "4\tU1\t11/10/2019 9:00:00 AM\tN5\tN3-1"]
    with pytest.raises(DataError, match="user U1 has different histories in one split"):
        import_dataset("mind", write_mind(tmp_path / "src", train), tmp_path / "out")


def test_mind_malformed_entities_fail_or_are_dropped(tmp_path: Path) -> None:
    broken = NEWS.format("N3", 3).replace('"Label"', "Label")
    source = write_mind(tmp_path / "src", N3=broken)
    with pytest.raises(DataError, match=r"news.tsv line 3: column 'title_entities': malformed"):
        import_dataset("mind", source, tmp_path / "out")
    import_dataset("mind", source, tmp_path / "out", {"on_bad_entities": "drop"})
    items = {row["item_id"]: row["entities"] for row in rows_of(tmp_path / "out", "items")}
    assert items["N3"] == []
    assert items["N2"] != []
