"""Next-order prediction: its questions and answers, its measure, and the rivals of HKFR."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hkfr_shop import DAY, START, Row, event, random_events, write_shop
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import ConfigError, DataError, MetricError
from raysys.hkfr.next_task import NextConfig, NextTask, full_ranking
from raysys.hkfr.orders import ItemValues, Orders
from raysys.hkfr.rivals.heuristics import AreaPopularity, Markov, OwnHabit

CATEGORIES = {"i0": "b", "i1": "a", "i2": "a", "i3": "c", "i4": None, "i5": "d"}
CUTS = (16, 22)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))


def shop(folder: Path, seed: int = 0, users: int = 12) -> tuple[list[Row], Any]:
    rows = random_events(np.random.default_rng(seed), [*CATEGORIES, "nowhere"], users, 28)
    return rows, write_shop(folder, CATEGORIES, rows, CUTS)


def plain_orders(rows: list[Row]) -> dict[tuple[str, int], str | None]:
    """Main category of each order, by user and time."""
    lines: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["behaviour"] == "order":
            lines.setdefault((row["user_id"], row["ts"]), []).append(row)
    found = {}
    for key, order in sorted(lines.items()):
        told = all(row.get("value") is not None for row in order)
        weights: Counter[str] = Counter()
        for row in order:
            category = CATEGORIES.get(row["item_id"])
            if category is not None:
                weights[category] += row["value"] if told else 1
        found[key] = min(weights, key=lambda c: (-weights[c], c)) if weights else None
    return found


# ------------------------------------------------------------------ questions


@pytest.mark.parametrize("valued", [True, False])
def test_main_category_is_that_of_most_money_or_else_of_most_lines(
    tmp_path: Path, valued: bool
) -> None:
    rows = random_events(np.random.default_rng(3), list(CATEGORIES), 20, 28)
    for number, row in enumerate(rows):
        if not valued and number % 2:
            row["value"] = None
    data = write_shop(tmp_path / "d", CATEGORIES, rows, CUTS)
    orders, values = Orders.read(data), ItemValues.of(data, "category:0")
    main = [None if code < 0 else values.names[code] for code in orders.main(values)]
    users = data.histories.users.to_pylist()
    keys = [(users[user], ts) for user, ts in zip(orders.user, orders.ts, strict=True)]
    assert dict(zip(keys, main, strict=True)) == plain_orders(rows)


def test_the_order_of_lines_within_an_order_does_not_matter(tmp_path: Path) -> None:
    rows = random_events(np.random.default_rng(5), list(CATEGORIES), 20, 28)
    found = []
    for number, given_ in enumerate((rows, rows[::-1])):
        data = write_shop(tmp_path / str(number), CATEGORIES, given_, CUTS)
        found.append(Orders.read(data).main(ItemValues.of(data, "category:0")).tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize(("cut", "zone_min"), [("day", 0), ("day", -300), ("order", 480)])
def test_questions_are_the_first_orders_after_what_is_known(
    tmp_path: Path, cut: str, zone_min: int
) -> None:
    rows = random_events(np.random.default_rng(1), [*CATEGORIES, "nowhere"], 30, 28)
    rows = [{**row, "tz_offset_min": zone_min} for row in rows]
    data = write_shop(tmp_path / "d", CATEGORIES, rows, CUTS)
    zone = zone_min * DAY // 1440
    task = NextTask.of_data(data, NextConfig(cut=cut, candidates=3))
    users = data.histories.users.to_pylist()
    mains = plain_orders(rows)
    trained = Counter(m for (_, ts), m in mains.items() if m and ts < START + CUTS[0] * DAY)
    names = sorted(trained, key=lambda name: (-trained[name], name))[:3]
    assert list(task.names) == names
    expected, end = {}, {}
    for (user, ts), main in mains.items():
        midnight = START + (ts + zone - START) // DAY * DAY - zone
        known = midnight if cut == "day" else ts
        earlier = [t for u, t in mains if u == user and t < ts]
        if main is None or (earlier and max(earlier) >= known):
            continue
        expected[user, ts] = names.index(main) if main in names else -1
        end[user, ts] = sum(r["user_id"] == user and r["ts"] < known for r in rows)
    keys = [(users[u], t) for u, t in zip(task.user, task.orders.ts[task.row], strict=True)]
    assert dict(zip(keys, task.target.tolist(), strict=True)) == expected
    assert dict(zip(keys, (task.end - task.start).tolist(), strict=True)) == end
    for split, (low, high) in dict(train=(0, 16), valid=(16, 22), test=(22, 99)).items():
        days = (task.of(split).orders.ts[task.of(split).row] - START) / DAY
        assert ((days >= low) & (days < high)).all() and len(days)


def test_slices_count_earlier_orders_and_repeats(tmp_path: Path) -> None:
    rows, data = shop(tmp_path / "d", seed=2, users=40)
    task = NextTask.of_data(data, NextConfig(cut="order", candidates=2))
    users, mains, slices = data.histories.users.to_pylist(), plain_orders(rows), task.slices()
    for q in range(len(task)):
        user, ts = users[task.user[q]], task.orders.ts[task.row[q]]
        past = [main for (u, t), main in mains.items() if u == user and t < ts]
        size = len(past)
        bins = {"orders 0": size == 0, "orders 1-2": size in (1, 2),
                "orders 3-5": 3 <= size <= 5, "orders >5": size > 5}  # fmt: skip
        repeat = mains[user, ts] in [p for p in past if p in task.names]
        expected = bins | {"repeat": repeat, "new": not repeat}
        assert {name: bool(mask[q]) for name, mask in slices.items()} == expected


def test_what_happens_from_the_cut_on_changes_nothing_that_is_known(tmp_path: Path) -> None:
    rows, data = shop(tmp_path / "a", seed=4, users=30)
    edge = START + CUTS[1] * DAY
    # Every event of the test days becomes another one at the same time.
    changed = [r if r["ts"] < edge else {**r, "item_id": "i3"} for r in rows]
    other = write_shop(tmp_path / "b", CATEGORIES, changed, CUTS)
    tasks = [NextTask.of_data(d, NextConfig()) for d in (data, other)]
    assert tasks[0].names == tasks[1].names
    for one, two in zip(*[[t.of(s) for s in ("train", "valid")] for t in tasks], strict=True):
        for name in ("items", "behaviour", "age_s", "mask"):
            windows = [getattr(t.window(np.arange(len(t)), 20), name) for t in (one, two)]
            np.testing.assert_array_equal(*windows)
        for ranker in (AreaPopularity("area"), OwnHabit(), OwnHabit(0), OwnHabit(7, 1), Markov()):
            scored = []
            for task, of in zip(tasks, (one, two), strict=True):
                ranker.fit(task.of("train"), task.of("valid"), 0)
                scored.append(ranker.scores(of))
            np.testing.assert_array_equal(*scored)


BAD = {
    "no orders": (dict(behaviour="share"), DataError, "no event of behaviour share"),
    "no behaviour": (dict(behaviour="buy"), ConfigError, "no behaviour 'buy'; there are click"),
    "no values": (dict(target="brand"), ConfigError, "no item has a brand"),
    "no field": (dict(target="shelf"), ConfigError, "'shelf' is unknown"),
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_questions_are_refused(tmp_path: Path, name: str) -> None:
    options, kind, message = BAD[name]
    _, data = shop(tmp_path / "d")
    with pytest.raises(kind, match=message):
        NextTask.of_data(data, NextConfig(**options))


# ------------------------------------------------------------------ measure


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=6),
    st.data(),
)
def test_full_ranking_is_the_mean_over_all_orders_of_ties(
    scores: list[list[int]], data: st.DataObject
) -> None:
    target = [data.draw(st.integers(-1, 6)) for _ in scores]
    found = full_ranking(np.array(scores, float), np.array(target), (2, 5))
    for q, (row, right) in enumerate(zip(scores, target, strict=True)):
        for k in (2, 5):
            above = sum(s > row[right] for s in row)
            places = range(above + 1, above + row.count(row[right]) + 1)
            hits = [float(p <= k) for p in places]
            gains = [1 / math.log2(p + 1) if p <= k else 0.0 for p in places]
            expected = (0.0, 0.0) if right < 0 else (np.mean(hits), np.mean(gains))
            got = found[f"hr@{k}~full"][q], found[f"ndcg@{k}"][q]
            assert got == pytest.approx(expected)


@given(st.integers(0, 2**32))
def test_gain_of_a_hit_between_5_and_10_lies_within_its_bounds(seed: int) -> None:
    """§4: ΔNDCG / ΔHR lies in [1 / log2 11, 1 / log2 7] where one answer is right."""
    rng = np.random.default_rng(seed)
    scores, target = rng.integers(0, 9, (30, 15)).astype(float), rng.integers(-1, 15, 30)
    found = {name: values.mean() for name, values in full_ranking(scores, target).items()}
    hits = found["hr@10~full"] - found["hr@5~full"]
    gain = found["ndcg@10"] - found["ndcg@5"]
    assert hits / math.log2(11) - 1e-12 <= gain <= hits / math.log2(7) + 1e-12


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(MetricError, match="nan"):
        full_ranking(np.array([[1.0, np.nan]]), np.array([0]))


# ------------------------------------------------------------------ heuristics


def plain_past(task: NextTask, q: int) -> list[tuple[int, int]]:
    """(label, order row) of the earlier orders of a question that have one, oldest first."""
    rows = range(int(task.first[q]), int(task.last[q]))
    return [(int(task.label[r]), r) for r in rows if task.label[r] >= 0]


def test_heuristics_are_what_a_few_lines_say(tmp_path: Path) -> None:
    _, data = shop(tmp_path / "d", seed=6, users=40)
    task = NextTask.of_data(data, NextConfig(cut="order"))
    train, test = task.of("train"), task.of("test")
    size = len(task.names)
    answers = Counter(int(t) for t in train.target if t >= 0)
    share = np.array([answers[v] / sum(answers.values()) for v in range(size)])
    after: Counter[tuple[int, int]] = Counter()
    for q in range(len(train)):
        if (past := plain_past(train, q)) and train.target[q] >= 0:
            after[past[-1][0], int(train.target[q])] += 1
    where = data.codec.names.index("area")
    there = Counter(
        (int(train.orders.context[train.row[q], where]), int(train.target[q]))
        for q in range(len(train))
    )
    rankers = {
        "area": AreaPopularity("area", 2.0), "often": OwnHabit(), "last": OwnHabit(0),
        "habit": OwnHabit(3.0, 2.0, 0.5), "markov": Markov(1.5),
    }  # fmt: skip
    scores = {}
    for name, ranker in rankers.items():
        ranker.fit(train, task.of("valid"), 0)
        scores[name] = ranker.scores(test)
    for q in range(len(test)):
        past, ts = plain_past(test, q), test.orders.ts
        now, place = int(test.row[q]), int(test.orders.context[test.row[q], where])
        often = Counter(label for label, _ in past)
        last = {label: 1 / (now - row) for label, row in past}
        habit: dict[int, float] = Counter()
        for label, row in past:
            same = meal(ts[row]) == meal(ts[now])
            habit[label] += 2 ** (-(ts[now] - ts[row]) / DAY / 3.0) * (3.0 if same else 1.0)
        placed = np.array([there[place, v] for v in range(size)])
        expected = {"area": (placed + 2 * share) / (placed.sum() + 2)}
        if past:
            follows = np.array([after[past[-1][0], v] for v in range(size)])
            expected["markov"] = (follows + 1.5 * share) / (follows.sum() + 1.5)
        else:
            expected["markov"] = share
        for name, weights, strength in (
            ("often", often, 1e-6), ("last", last, 1e-6), ("habit", habit, 0.5)
        ):  # fmt: skip
            expected[name] = strength * share + [weights.get(v, 0.0) for v in range(size)]
        for name, values in expected.items():
            np.testing.assert_allclose(scores[name][q], values, err_msg=name)


def meal(ts: int) -> int:
    hour = (ts - START) // (DAY // 24) % 24
    return sum(hour >= begin for begin in (5, 11, 14, 17, 22)) % 5  # night runs past midnight


def test_a_cold_user_gets_popularity(tmp_path: Path) -> None:
    rows = [event(f"u{n}", n % 15 + 0.5, "order", f"i{n % 3}") for n in range(30)]
    rows += [event("cold", day, "order", "i3") for day in (17.5, 23.5)]
    rows = [r for r in rows if r["user_id"] != "cold" or r["ts"] > START + 23 * DAY]
    rows.append(event("v", 17.5, "order", "i0"))
    data = write_shop(tmp_path / "d", CATEGORIES, rows, CUTS)
    task = NextTask.of_data(data, NextConfig())
    cold = task.of("test")
    assert len(cold) == 1
    assert cold.target.tolist() == [-1]
    for ranker in (OwnHabit(), OwnHabit(0), OwnHabit(7, 1), Markov(), AreaPopularity()):
        ranker.fit(task.of("train"), task.of("valid"), 0)
        assert np.argsort(-ranker.scores(cold)[0]).tolist() == list(range(len(task.names)))


def test_an_unknown_area_is_refused(tmp_path: Path) -> None:
    _, data = shop(tmp_path / "d", seed=6, users=40)
    task = NextTask.of_data(data, NextConfig())
    with pytest.raises(ConfigError, match="no context feature 'town'; there are area"):
        AreaPopularity("town").fit(task.of("train"), task.of("valid"), 0)
