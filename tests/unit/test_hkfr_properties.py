"""The property tests of the HKFR specification (§6), under its numbers."""

from datetime import date, timedelta
from math import ceil
from pathlib import Path
from typing import Any

import hkfr_city
import numpy as np
import pyarrow.parquet as pq
import pytest
from hkfr_city import FIRST_DAY, City
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import ConfigError
from raysys.hkfr import render
from raysys.hkfr.claims import folded
from raysys.hkfr.config import AnonymiseOptions, InstructionConfig, KnowledgeConfig
from raysys.hkfr.events import log_of
from raysys.hkfr.knowledge import NOTHING
from raysys.hkfr.select import chosen
from raysys.hkfr.store import KnowledgeStore
from raysys.options import resolve, validate
from raysys.recipes.hkfr_instructions import build_instructions

Row = dict[str, Any]
DAY = 6
CUT = FIRST_DAY + timedelta(days=DAY)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return City().write(tmp_path_factory.mktemp("hkfr") / "city")


@pytest.fixture(scope="module")
def daily(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knowledge of every day."""
    out = tmp_path_factory.mktemp("hkfr") / "daily"
    assert hkfr_city.build(city, out, days=hkfr_city.DAYS).cold == 1
    return out


@pytest.fixture(scope="module")
def samples(city: Path, daily: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """All samples of the city."""
    out = tmp_path_factory.mktemp("hkfr") / "samples"
    return asked(city, daily, out)


def asked(data: Path, knowledge: Path, out: Path, **options: Any) -> list[Row]:
    """Rows of the samples with these options."""
    fields = dict(category="category:1", sub_category="category:2")
    build_instructions(data, knowledge, out, validate(InstructionConfig, fields | options))
    return pq.read_table(out / "samples.parquet").to_pylist()


def texts(store: Path, name: date | str) -> dict[str, str]:
    """Text of each user on a day, or of each request."""
    found = KnowledgeStore(store)
    text = {row["key"]: row["text"] for row in found.texts().to_pylist()}
    _, rows = found.bound(name)  # type: ignore[arg-type]
    return {row["request_id"] or row["user_id"]: text[row["key"]] for row in rows.to_pylist()}


@pytest.mark.parametrize("edit", ["delete", "rewrite"])
def test_01_no_leakage(city: Path, tmp_path: Path, edit: str) -> None:
    changed = City()
    late = [event for event in changed.events if event["ts"] >= hkfr_city.at(DAY, 0)]
    if edit == "delete":
        changed.events = [event for event in changed.events if event not in late]
    for event in late:
        event.update(item_id="p11", text=None, behaviour="order", scenario="elsewhere")
    changed.write(tmp_path / "changed")
    for name, data in (("a", city), ("b", tmp_path / "changed")):
        hkfr_city.build(data, tmp_path / name, CUT)
    assert texts(tmp_path / "a", CUT) == texts(tmp_path / "b", CUT)
    lines = [
        next(hkfr_city.teller(data).documents(log, [log.before_day(CUT)])).lines
        for data in (city, tmp_path / "changed")
        for user, log in hkfr_city.logs(data).items()
        if user == "u0"
    ]
    assert lines[0] == lines[1] != []


def test_01_no_leakage_into_the_knowledge_of_a_request(city: Path, tmp_path: Path) -> None:
    # What a request led to lies after it, and so does all else of that moment on.
    changed = City()
    for event in changed.events:
        if event["ts"] >= hkfr_city.at(DAY, 10.9):
            event["item_id"] = "p7"
    changed.write(tmp_path / "changed")
    for name, data in (("a", city), ("b", tmp_path / "changed")):
        hkfr_city.build(data, tmp_path / name, as_of_request=True)
    a, b = texts(tmp_path / "a", "requests"), texts(tmp_path / "b", "requests")
    early = [request for request in a if int(request.split("-")[1]) <= DAY]
    assert [a[request] for request in early] == [b[request] for request in early]
    assert a != b


def shared(sizes: list[int], total: int) -> list[int]:
    """Shares as equal as sizes allow: one each, round after round."""
    shares = [0] * len(sizes)
    while total and shares != sizes:
        for group, size in enumerate(sizes):
            if total and shares[group] < size:
                shares[group] += 1
                total -= 1
    return shares


@settings(max_examples=60)
@given(
    groups=st.lists(st.integers(0, 4), max_size=60),
    orders=st.sets(st.integers(0, 4), max_size=2),
    limit=st.integers(1, 30),
    share=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_02_budget_and_quotas(
    groups: list[int], orders: set[int], limit: int, share: float
) -> None:
    codes = np.array(groups, np.int64)
    ordered = np.array([group in orders for group in groups], bool)
    kept = chosen(codes, ordered, limit, share, "quota").tolist()
    assert len(kept) == min(limit, len(groups))
    assert kept == sorted(set(kept))
    assert sum(groups[place] in orders for place in kept) >= min(
        int(ordered.sum()), ceil(share * limit)
    )
    counts = [sum(groups[place] == group for place in kept) for group in range(5)]
    for group in range(5):  # the newest of each group
        places = [place for place, other in enumerate(groups) if other == group]
        assert [place for place in kept if groups[place] == group] == places[
            len(places) - counts[group] :
        ]
    sizes = [groups.count(group) for group in range(5)]
    if len(groups) > limit:
        first = shared([sizes[g] * (g in orders) for g in range(5)], ceil(share * limit))
        rest = shared([sizes[g] * (g not in orders) for g in range(5)], limit - sum(first))
        quota = [a + b for a, b in zip(first, rest, strict=True)]
        more = shared([s - q for s, q in zip(sizes, quota, strict=True)], limit - sum(quota))
        # Of equals, which one gets the odd event is left open.
        wanted = [q + m for q, m in zip(quota, more, strict=True)]
        assert sorted(counts) == sorted(wanted)
    assert (
        chosen(codes, ordered, limit, share, "recent").tolist() == list(range(len(groups)))[-limit:]
    )


def test_02_the_order_of_the_input_does_not_matter(city: Path) -> None:
    log = hkfr_city.logs(city)["u1"]
    mixed = log_of("u1", log.rows.take(np.random.default_rng(0).permutation(len(log.rows))))
    tell = hkfr_city.teller(city, limit=10)
    given = [next(tell.documents(each, [len(log.rows)])).lines for each in (log, mixed)]
    assert given[0] == given[1]
    assert len(given[0]) == 10
    assert sum(" ordered " in line for line in given[0]) >= 4


def test_03_every_name_stands_in_the_events(city: Path, tmp_path: Path) -> None:
    hkfr_city.build(city, tmp_path / "k", CUT)
    tell = hkfr_city.teller(city)
    names = {folded(name) for name in tell.items.names()}
    for user, log in hkfr_city.logs(city).items():
        text = folded(texts(tmp_path / "k", CUT)[user])
        said = folded(" ".join(next(tell.documents(log, [log.before_day(CUT)])).lines))
        for name in names:
            assert name not in text or name in said


PRIVATE = {
    "phone": "+44 20 7946 0958",
    "local phone": "0171 234 56 78",
    "mail": "ada.l@example.org",
    "address": "12 Old Kent Road",
    "german address": "Hauptstraße 7",
    "name": "Ada Lovelace",
    "link": "https://example.org/me?u=ada",
}


def test_03_redaction_removes_names_phones_and_addresses(tmp_path: Path) -> None:
    planted = City()
    for event, secret in zip(planted.events[1::5], PRIVATE.values(), strict=False):
        event.update(text=f"bring it to {secret}, please", behaviour="comment")
    assert len([event for event in planted.events if event["behaviour"] == "comment"]) == 7
    planted.items[0]["name"] = "Red Thai, call 0171 234 56 78"
    data = planted.write(tmp_path / "data")
    tell = hkfr_city.teller(data, AnonymiseOptions(names=("ada lovelace",)))
    lines = [
        line
        for log in hkfr_city.logs(data).values()
        for line in next(tell.documents(log, [len(log.rows)])).lines
    ]
    assert sum("bring it to (" in line and "), please" in line for line in lines) == 7
    assert any("Red Thai, call (phone)" in line for line in lines)
    for secret in PRIVATE.values():
        assert not any(secret.casefold() in line.casefold() for line in lines)


def test_03_the_remote_back_end_is_off_unless_enabled() -> None:
    given = ["backend.name=remote_llm", "backend.url=https://llm.example.org", "backend.model=m"]
    with pytest.raises(ConfigError, match="enabled: true"):
        resolve(KnowledgeConfig, None, given)
    with pytest.raises(ConfigError, match="https"):
        resolve(
            KnowledgeConfig,
            None,
            [given[0], "backend.url=http://llm.example.org", given[2], "backend.enabled=true"],
        )


def test_04_equal_keys_hit_and_other_templates_or_models_miss(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hkfr_city.build(city, tmp_path / "a", CUT)
    hkfr_city.build(city, tmp_path / "b", CUT)
    assert texts(tmp_path / "a", CUT) == texts(tmp_path / "b", CUT)
    assert first.changed == first.users == 4
    again = hkfr_city.build(city, tmp_path / "a", CUT)
    assert (again.changed, again.texts) == (0, 0)
    other = hkfr_city.build(city, tmp_path / "a", CUT, backend={"name": "events"})
    assert other.changed == 4
    other = hkfr_city.build(city, tmp_path / "a", CUT, backend={"name": "events", "tokens": 9})
    assert other.changed == 4
    monkeypatch.setitem(render.TEMPLATES, "order", render.Template(2, "ordered"))
    # Whoever has no event of that kind keeps his text.
    assert hkfr_city.build(city, tmp_path / "a", CUT).changed == 3
    assert len(KnowledgeStore(tmp_path / "a").texts()["key"].unique()) == len(
        KnowledgeStore(tmp_path / "a").texts()
    )


def test_04_the_second_night_fuses_only_who_has_new_events(city: Path, tmp_path: Path) -> None:
    quiet = City()
    late = hkfr_city.at(DAY, 0)
    quiet.events = [e for e in quiet.events if e["user_id"] == "u1" or e["ts"] < late]
    data = quiet.write(tmp_path / "data")
    assert hkfr_city.build(data, tmp_path / "k", CUT).changed == 4
    night = hkfr_city.build(data, tmp_path / "k", CUT + timedelta(days=1))
    assert (night.changed, night.texts) == (1, 1)
    assert KnowledgeStore(tmp_path / "k").dates() == [CUT, CUT + timedelta(days=1)]


def test_06_answers_come_from_the_next_order_only(samples: list[Row], tmp_path: Path) -> None:
    shown = {row["impression_id"]: row for row in City().impressions}
    names = {row["item_id"]: row for row in City().items}
    assert {row["task"] for row in samples} >= {"category", "merchant", "yes_or_no", "days_until"}
    for row in samples:
        request = shown[row["sample_id"].rsplit("/", 1)[0]]
        told = [request[name] for name in ("user_id", "ts", "split")]
        assert [row["user_id"], row["ts"], row["split"]] == told
        if row["task"] in ("merchant", "category"):
            (bought,) = request["orders"]
            answer = names[bought]["name"], names[bought]["category"][1]
            assert row["answer"] == answer[row["task"] == "category"]
        # Knowledge ends with the day before: it dates nothing of the request's day.
        today = date.fromtimestamp(request["ts"] // 1_000_000).isoformat()
        assert today not in row["knowledge"]


def test_06_orders_in_the_log_are_no_answers(samples: list[Row], tmp_path: Path) -> None:
    changed = City()
    for event in changed.events:
        if event["behaviour"] == "order":
            event["item_id"] = "p0"
    data = changed.write(tmp_path / "data")
    hkfr_city.build(data, tmp_path / "k", as_of_request=True)
    tasks = ("merchant", "category")
    others = asked(data, tmp_path / "k", tmp_path / "i", tasks=tasks)
    assert {row["sample_id"]: row["answer"] for row in others} == {
        row["sample_id"]: row["answer"] for row in samples if row["task"] in tasks
    }


def test_12_a_cold_user_has_a_valid_text_and_a_flag(daily: Path, samples: list[Row]) -> None:
    day = KnowledgeStore(daily).dates()[-1]
    assert texts(daily, day)["u3"] == NOTHING
    _, rows = KnowledgeStore(daily).bound(day)
    flags = {row["user_id"]: (row["cold"], row["events"]) for row in rows.to_pylist()}
    assert flags["u3"] == (True, 0)
    assert not any(cold for user, (cold, _) in flags.items() if user != "u3")
    assert {row["knowledge"] for row in samples if row["user_id"] == "u3"} == {NOTHING}
