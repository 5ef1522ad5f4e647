"""Dated features: a request reads the newest of the week before its day, and nothing later."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tastes import FIRST, HOUR, NOW, din, planted, told_on

from raysys.artifacts.export import export_run
from raysys.artifacts.predictor import Predictor
from raysys.data.dataset import Dataset
from raysys.data.feature_table import (
    DAYS,
    NO_DAY,
    SCHEMA,
    DatedFeature,
    dated_folder,
    local_day,
    read_features,
    write_features,
)
from raysys.data.histories import UNKNOWN_TS
from raysys.data.prepared import prepare
from raysys.data.requests import HistoryEvent, Request
from raysys.errors import ArtifactError, ConfigError, DataError
from raysys.layers.dated import DatedInputs
from raysys.recipes.registry import run
from raysys.recipes.split_scorer import SplitScorer

# Days on which users have a value, a number that names user and day.
Plan = dict[str, list[int]]
plans = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(st.integers(0, 25), unique=True))


def rows(plan: Plan, day: int, name: str = "taste") -> pa.Table:
    users = [user for user, days in plan.items() if day in days]
    return pa.Table.from_pylist(
        [
            dict(owner_kind="user", owner_id=u, name=name, value=[day, ord(u)], source_id="s")
            for u in users
        ],
        schema=SCHEMA,
    )


def feature(plan: Plan) -> DatedFeature:
    pairs = sorted((user, day) for user, days in plan.items() for day in days)
    users = sorted({user for user, _ in pairs})
    return DatedFeature(
        "taste",
        pa.array(users, pa.string()),
        np.array([users.index(user) for user, _ in pairs], np.int32),
        np.array([day for _, day in pairs], np.int32),
        np.array([[day, ord(user)] for user, day in pairs], np.float32).reshape(-1, 2),
    )


@given(plans, st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-3, 40)), max_size=9))
def test_the_newest_of_the_week_before_the_day(plan: Plan, asked: list[tuple[str, int]]) -> None:
    found = feature(plan).at([u for u, _ in asked], np.array([d for _, d in asked], np.int64))
    for (user, day), value in zip(asked, found, strict=True):
        before = [d for d in plan.get(user, []) if day - DAYS <= d <= day - 1]
        expected = [max(before), ord(user)] if before else [np.nan, np.nan]
        np.testing.assert_array_equal(value, expected)


@given(plans, st.integers(0, 30), st.integers(0, 25))
def test_what_is_of_the_day_or_later_changes_nothing(plan: Plan, day: int, cut: int) -> None:
    asked = list("abc"), np.full(3, min(day, cut), np.int64)
    less = {user: [d for d in days if d < cut] for user, days in plan.items()}
    np.testing.assert_array_equal(feature(plan).at(*asked), feature(less).at(*asked))


def test_without_a_time_nothing_is_known() -> None:
    day = local_day(np.array([UNKNOWN_TS, 0, -1]), np.array([0, -1, 0]))
    assert day.tolist() == [NO_DAY, -1, -1]
    assert np.isnan(feature({"a": [0]}).at(["a"], day[:1])).all()


def test_tables_come_back_by_user_and_day(tmp_path: Path) -> None:
    plan = {"b": [3, 1], "a": [1, 2]}
    for day in (2, 1, 3):
        write_features(tmp_path, FIRST + timedelta(days=day), rows(plan, day))
    (read,) = read_features(tmp_path, ["taste"])
    again = DatedFeature.load(tmp_path, "taste") if read.save(tmp_path) is None else None
    first = (FIRST - date(1970, 1, 1)).days
    for one in (read, again):
        assert one is not None
        days = np.array([first + 4, first + 2], np.int64)
        np.testing.assert_array_equal(one.at(["b", "a"], days), [[3, ord("b")], [1, ord("a")]])
    with pytest.raises(DataError, match="exists already"):
        write_features(tmp_path, FIRST + timedelta(days=1), rows(plan, 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(value=[1.0, float("nan")]), "user b: a value is not finite"),
        (dict(value=[1.0, None]), "user b: a value is not finite"),
        (dict(value=[1.0]), "user b on 2023-05-02 has 1 numbers, others have 2"),
        (dict(owner_id="a"), "taste of user a is there twice"),
        (dict(source_id=None), "row 2, column source_id: missing"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    table = rows({"a": [1], "b": [1]}, 1).to_pylist()
    folder = dated_folder(tmp_path, FIRST + timedelta(days=1))
    folder.mkdir()
    changed = pa.Table.from_pylist([table[0], table[1] | change], schema=SCHEMA)
    pq.write_table(changed, folder / "part.parquet")
    with pytest.raises(DataError, match=told):
        read_features(tmp_path, ["taste"])


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no folder date="):
        read_features(tmp_path, ["taste"])
    folder = dated_folder(tmp_path, FIRST)
    folder.mkdir()
    with pytest.raises(DataError, match="holds no Parquet file"):
        read_features(tmp_path, ["taste"])
    pq.write_table(rows({"a": [0]}, 0).drop_columns("value"), folder / "part.parquet")
    with pytest.raises(DataError, match="column value is missing"):
        read_features(tmp_path, ["taste"])
    pq.write_table(rows({"a": [0]}, 0), folder / "part.parquet")
    with pytest.raises(ConfigError, match="no feature 'mood' of users; there are taste"):
        read_features(tmp_path, ["mood"])
    (tmp_path / "date=yesterday").mkdir()
    with pytest.raises(DataError, match="date=yesterday: no date"):
        read_features(tmp_path, ["taste"])


def test_what_is_missing_is_a_learned_default() -> None:
    layer = DatedInputs([(1.0, 2.0), (0.0,)], [(2.0, 4.0), (1.0,)])
    layer.default.data = torch.tensor([7.0, 8.0, 9.0])
    values = torch.tensor([[3.0, 2.0, float("nan")], [float("nan"), float("nan"), 5.0]])
    found = layer(values)
    assert found.tolist() == [[1, 0, 9, 1, 0], [7, 8, 5, 0, 1]]
    found.sum().backward()
    assert layer.default.grad is not None
    assert layer.default.grad.tolist() == [1, 1, 1]


@pytest.mark.slow
def test_din_learns_from_yesterday_and_evaluation_and_requests_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    data, table = planted(tmp_path)
    out = tmp_path / "run"
    outcome = run(din(data, table), out, show_progress=False)
    assert outcome.result["validation"]["gauc"] > 0.9
    for folder in table.iterdir():  # the run has a copy
        folder.rename(folder.with_name(folder.name.removeprefix("date=")))

    predictor = Predictor.load(out)
    day = NOW + 3 * 24 * HOUR

    def asked(user: str, ts: int | None = day, **more: Any) -> np.ndarray:
        request = Request(
            request_id="r", user_id=user, ts=ts, candidates=("sweet", "salty"), **more
        )
        return predictor.score([request])["score"].to_numpy()

    sweet, salty = asked("u01"), asked("u00")
    assert sweet[0] > sweet[1]
    assert salty[0] < salty[1]
    # A history that is sent changes who is asked for as little as a stored one.
    event = HistoryEvent(item_id="sweet", ts=day - HOUR)
    assert not np.array_equal(*(asked(u, history=(event,)) for u in ("u00", "u01")))
    # The last two people, strangers, requests without a time and those of a week later: nothing.
    default = asked("u29")
    for unknown in (asked("stranger"), asked("u01", None), asked("u00", day + 9 * 24 * HOUR)):
        np.testing.assert_array_equal(unknown, default)
    # The day begins by the clock of whoever asks: his next day reads what was of the day itself.
    np.testing.assert_array_equal(asked("u01", day + 23 * HOUR), sweet)
    turned = asked("u01", day + 23 * HOUR, tz_offset_min=60)
    np.testing.assert_array_equal(turned, salty)

    scorer = SplitScorer.of(str(out), prepare(Dataset(data)), "test", lambda _: None)
    logged = scorer.rows.score.reshape(-1, 2)
    for name, found in zip(scorer.requests.users, logged, strict=True):
        expected = default if name > "u27" else (sweet if int(name[1:]) % 2 else salty)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    with pytest.raises(ArtifactError, match="dated features"):
        export_run(out, tmp_path / "ranker.pt2")
    # What the nightly job leaves there is read instead.
    newer = out / "indexes" / "features"
    newer.mkdir(parents=True)  # begun, no date yet: the copy is read
    predictor = Predictor.load(out)
    np.testing.assert_array_equal(asked("u01"), sweet)
    told_on(newer, 2, {"u29": 1.0})
    predictor = Predictor.load(out)
    np.testing.assert_array_equal(asked("u29"), sweet)
    np.testing.assert_array_equal(asked("u01"), default)


def test_options_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    data, table = planted(tmp_path)
    for options, told in {
        "no table": (dict(feature_table=None), "features.tables needs feature_table"),
        "no names": (dict(features={}), "feature_table needs features.tables"),
        "other": (dict(features={"tables": ["mood"]}), "no feature 'mood' of users"),
    }.values():
        with pytest.raises(ConfigError, match=told):
            run(din(data, table, **options), tmp_path / "run", show_progress=False)
    write_features(
        tmp_path / "late", FIRST + timedelta(days=9),
        pa.Table.from_pylist(
            [dict(owner_kind="user", owner_id="u01", name="taste", value=[1.0], source_id="s")],
            schema=SCHEMA,
        ),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no training request finds a value of taste; its dates"):
        run(din(data, tmp_path / "late"), tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()
