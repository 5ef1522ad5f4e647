"""Parts of the importers: time cuts, folds, fold histories, negatives, times, local clocks."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.loaders.fold_history import fold_history
from raysys.data.loaders.lists import merge_duplicates
from raysys.data.loaders.local_time import local_part
from raysys.data.loaders.negatives import NegativeRule, Pool, draw_negatives
from raysys.data.loaders.reading import CSV, Source, read_text
from raysys.data.split import (
    TEST,
    TRAIN,
    VALID,
    Folds,
    TimeCut,
    from_iso,
    iso,
    split_by_time,
    split_by_user_time,
    time_bounds,
)
from raysys.errors import DataError

DAY = 86_400_000_000


@given(st.lists(st.integers(0, 400), min_size=60, max_size=200, unique=True))
def test_a_time_cut_gives_three_parts_in_order(hours: list[int]) -> None:
    ts = np.array(hours, np.int64) * 3_600_000_000
    bounds = time_bounds(ts, TimeCut())
    split = split_by_time(ts, bounds)
    assert ts[split == TRAIN].max() < bounds[0] <= ts[split == VALID].min()
    assert ts[split == VALID].max() < bounds[1] <= ts[split == TEST].min()


def test_a_time_cut_of_a_long_log_never_parts_a_day() -> None:
    bounds = time_bounds(np.arange(960, dtype=np.int64) * 3_600_000_000, TimeCut())
    assert bounds == (28 * DAY, 32 * DAY)


def test_a_cut_with_an_empty_part_is_refused() -> None:
    cut = TimeCut(valid_from="2024-01-02", test_from="2024-01-03")
    with pytest.raises(DataError, match="leaves no test rows"):
        time_bounds(np.array([0, from_iso("2024-01-02")]), cut)


@given(st.integers(-(10**15), 4 * 10**15))
def test_iso_text_and_microseconds_are_inverse(ts: int) -> None:
    assert from_iso(iso(ts)) == ts


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=80))
def test_the_user_cut_is_in_time_order_within_each_user(rows: list[tuple[int, int]]) -> None:
    user, ts = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    split = split_by_user_time(user, ts, TimeCut())
    for one in set(user.tolist()):
        mine = user == one
        order = np.argsort(ts[mine], kind="stable")
        assert (np.diff(split[mine][order]) >= 0).all()
        assert (split[mine] == TEST).sum() == pytest.approx(0.2 * mine.sum(), abs=0.51)


@given(st.integers(2, 6), st.integers(0, 5))
def test_folds_are_a_partition_and_equal_keys_stay_together(folds: int, seed: int) -> None:
    keys = np.array([f"k{n % 37}" for n in range(90)], object)
    tested = np.zeros(len(keys), int)
    for fold in range(folds):
        split = Folds(folds=folds, fold=fold, seed=seed).split(keys)
        assert all(len({*split[keys == key]}) == 1 for key in set(keys))
        assert {TRAIN, VALID, TEST} == {*split.tolist()}
        tested += split == TEST
    assert (tested == 1).all()


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([TRAIN, VALID, TEST]), st.booleans()),
        min_size=1, max_size=60,
    )
)  # fmt: skip
def test_fold_histories_against_a_plain_loop(rows: list[tuple[int, int, bool]]) -> None:
    owner, split, positive = (np.array(column) for column in zip(*rows, strict=True))
    found = fold_history(owner.astype(np.int64), split.astype(np.int8), positive.astype(bool))
    events: list[int] = []
    for user in sorted({*owner.tolist()}):
        for part in (TRAIN, VALID):
            events += [r for r in range(len(rows))
                       if owner[r] == user and split[r] == part and positive[r]]  # fmt: skip
    assert found.rows.tolist() == events
    for row, (user, part, _) in enumerate(rows):
        allowed = [
            e for e in events if owner[e] == user
            and (split[e] < part or (part == TRAIN and split[e] == TRAIN and e < row))
        ]  # fmt: skip
        assert found.end[row] == len(allowed)
        mine = [e for e in events if owner[e] == user]
        assert mine[: found.end[row]] == allowed


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.booleans())
def test_negatives_are_distinct_lawful_and_as_many_as_there_are(
    seed: int, count: int, steep: bool
) -> None:
    random = np.random.default_rng(seed)
    item = np.arange(30)
    area = item % 3
    weight = np.exp(random.normal(0, 6 if steep else 0, 30))
    moment, where = random.integers(0, 20, 50), random.integers(0, 3, 50)
    taken = random.integers(0, 20, 200), random.integers(0, 30, 200)
    owner, drawn = draw_negatives(
        NegativeRule(count=count, seed=seed), Pool(item, area, weight), moment, where, taken
    )
    forbidden = set(zip(*(column.tolist() for column in taken), strict=True))
    assert (np.diff(owner) >= 0).all()
    for row in range(50):
        mine = drawn[owner == row].tolist()
        lawful = {
            i for i in item.tolist()
            if area[i] == where[row] and (int(moment[row]), i) not in forbidden
        }  # fmt: skip
        assert set(mine) <= lawful
        assert len(mine) == len(set(mine)) == min(count, len(lawful))


def test_popular_negatives_follow_their_counts() -> None:
    pool = Pool(np.arange(4), np.zeros(4, np.int64), np.array([1.0, 2.0, 3.0, 4.0]))
    nothing = np.zeros(1, np.int64) - 1, np.zeros(1, np.int64)
    zeros = np.zeros(40_000, np.int64)
    _, drawn = draw_negatives(NegativeRule(count=1), pool, zeros, zeros, nothing)
    share = np.bincount(drawn) / len(drawn)
    assert np.abs(share - [0.1, 0.2, 0.3, 0.4]).max() < 0.01


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc"), st.booleans()), max_size=40))
def test_merged_duplicates_against_a_dict(rows: list[tuple[int, str, bool]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    expected: dict[tuple[int, str], bool] = {}
    for owner, item, label in rows:
        expected[owner, item] = expected.get((owner, item), False) or label
    owner, items, label, gone = merge_duplicates(
        np.array([row[0] for row in rows], np.int64),
        pa.array([row[1] for row in rows], pa.string()),
        np.array([row[2] for row in rows], bool),
    )
    found = zip(owner.tolist(), items.to_pylist(), label.tolist(), strict=True)
    assert [((o, i), y) for o, i, y in found] == list(expected.items())
    assert gone == len(rows) - len(expected)


@given(st.datetimes(datetime(1960, 1, 1), datetime(2200, 1, 1)), st.integers(-720, 840))
def test_local_parts_are_those_of_the_datetime_module(moment: datetime, offset: int) -> None:
    ts = pa.array([round((moment - datetime(1970, 1, 1)).total_seconds() * 1e6)])
    local = moment + timedelta(minutes=offset)
    assert local_part("weekday", ts, offset)[0].as_py() == local.strftime("%a")
    assert local_part("hour", ts, offset)[0].as_py() == local.strftime("%H")
    kind = "weekend" if local.weekday() >= 5 else "workday"
    assert local_part("day_kind", ts, offset)[0].as_py() == kind


def test_an_unknown_time_has_no_local_part() -> None:
    assert local_part("mealtime", pa.array([None, 0], pa.int64())).to_pylist() == [None, "night"]


TIMES = [
    ("iso", "2024-05-01 10:00:00", "UTC", "2024-05-01T10:00:00Z"),
    ("iso", "2024-05-01T10:00:00+02:00", "UTC", "2024-05-01T08:00:00Z"),
    ("iso", "2024-05-01", "UTC", "2024-05-01T00:00:00Z"),
    ("iso", "2024-05-01 10:00:00", "Asia/Shanghai", "2024-05-01T02:00:00Z"),
    ("s", "1714557600", "Asia/Shanghai", "2024-05-01T10:00:00Z"),
    ("ms", "1714557600500", "UTC", "2024-05-01T10:00:00.500000Z"),
    ("us", "1714557600000001", "UTC", "2024-05-01T10:00:00.000001Z"),
    ("%d.%m.%Y %H:%M", "01.05.2024 10:00", "UTC", "2024-05-01T10:00:00Z"),
]


@pytest.mark.parametrize(("form", "text", "zone", "expected"), TIMES)
def test_times_in_every_form(
    tmp_path: Path, form: str, text: str, zone: str, expected: str
) -> None:
    (tmp_path / "log.csv").write_text(f"at,x\n{text},1\n")
    ts = read_text(tmp_path / "log.csv", CSV).times("at", form, timezone=zone)
    assert iso(ts[0].as_py()) == expected


FAR = [
    ("s", pa.array([0, 1714557600000000]), "row 2: column 'at' lies in the future: 17145576"),
    ("ms", pa.array([0.0, -1e300]), "row 2: column 'at' lies before the year 1: -1e"),
    ("iso", pa.array([0, 10**17], pa.timestamp("s")), "row 2: column 'at' lies in the future"),
    ("iso", pa.array([-(10**17)], pa.timestamp("ms", "UTC")), "lies before the year 1"),
    ("iso", pa.array([2**31 - 1], pa.date32()), "row 1: column 'at' lies in the future"),
]


@pytest.mark.parametrize(("form", "values", "message"), FAR)
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_times_beyond_the_calendar_are_named(
    tmp_path: Path, form: str, values: pa.Array, message: str, zone: str | None
) -> None:
    source = Source(tmp_path / "log.parquet", pa.table({"at": values}))
    with pytest.raises(DataError, match=message + ".*; check the unit"):
        source.times("at", form, timezone=zone)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_every_unit_are_microseconds(tmp_path: Path, unit: str) -> None:
    moment = dict(s=1_714_557_600, ms=1_714_557_600_123, us=1_714_557_600_123_456,
                  ns=1_714_557_600_123_456_789)[unit]  # fmt: skip
    column = pa.array([moment, None], pa.timestamp(unit, "UTC"))
    ts = Source(tmp_path / "log.parquet", pa.table({"at": column})).times("at")
    exact = {"s": 0, "ms": 123_000}.get(unit, 123_456)
    assert ts.to_pylist() == [1_714_557_600_000_000 + exact, None]


def test_a_label_is_never_missing(tmp_path: Path) -> None:
    for values in ([True, False, None], [1, 0, None]):
        source = Source(tmp_path / "log.parquet", pa.table({"label": values}))
        with pytest.raises(DataError, match=r"log\.parquet row 3: column 'label' is"):
            source.labels("label")
    good = Source(tmp_path / "log.parquet", pa.table({"label": [True, False]}))
    assert good.labels("label").tolist() == [True, False]


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("a,b,a\n1,2,3\n")
    source = read_text(path, CSV)
    assert source.strings("b").to_pylist() == ["2"]
    with pytest.raises(DataError, match=r"log\.csv: 2 columns are called 'a'; give each a name"):
        source.strings("a")


def test_lines_are_physical_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('a,b\n1,"two\nlines"\n\n3,\n')
    source = read_text(path, CSV)
    with pytest.raises(DataError, match="line 5: column 'b' is empty"):
        source.required("b")
    path.write_text('a,b\n1,"two\nlines"\n\n3\n')
    with pytest.raises(DataError, match="line 5: 1 columns where 2 are expected"):
        read_text(path, CSV)
