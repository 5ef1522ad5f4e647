"""HKFR's instructions: tasks, answers, the folder that tuning reads, and the command."""

import json
import re
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path
from string import Formatter
from typing import Any

import hkfr_city
import pyarrow.parquet as pq
import pytest
from hkfr_city import FIRST_DAY, City, cache, city, daily
from typer.testing import CliRunner

from raysys.cli.main import make_app
from raysys.data.dataset import Dataset
from raysys.errors import ConfigError, DataError
from raysys.hkfr.config import InstructionConfig
from raysys.hkfr.tasks import TASKS
from raysys.options import validate
from raysys.recipes.hkfr_instructions import InstructionsReport, build_instructions

__all__ = ["cache", "city", "daily"]  # the fixtures

Row = dict[str, Any]
FIELDS = dict(category="category:1", sub_category="category:2")


def asked(
    data: Path, knowledge: Path, out: Path, **options: Any
) -> tuple[InstructionsReport, list[Row]]:
    """The report and the samples with these options."""
    config = validate(InstructionConfig, FIELDS | options)
    report = build_instructions(data, knowledge, out, config, overwrite=True)
    return report, pq.read_table(out / "samples.parquet").to_pylist()


def of_city(changed: City, folder: Path, **options: Any) -> tuple[InstructionsReport, list[Row]]:
    """The same of a city of one's own, with knowledge up to each request."""
    data = changed.write(folder / "data")
    hkfr_city.build(data, folder / "k", as_of_request=True)
    return asked(data, folder / "k", folder / "i", **options)


def test_there_are_twenty_tasks_in_two_wordings_with_the_same_slots() -> None:
    assert len(TASKS) == 20
    for task in TASKS.values():
        slots = [{name for _, name, _, _ in Formatter().parse(p) if name} for p in task.phrasings]
        assert len(set(task.phrasings)) >= 2
        assert all(names == slots[0] for names in slots)


def test_the_folder_is_what_tuning_reads(city: Path, daily: Path, tmp_path: Path) -> None:
    report, rows = asked(city, daily, tmp_path / "i")
    assert list(rows[0]) == [
        "sample_id", "user_id", "ts", "task", "knowledge", "instruction", "answer", "split",
    ]  # fmt: skip
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    assert manifest["data_card_id"] == report.data_card_id == Dataset(city).card.id
    for name in ("samples.parquet", "vocabulary.json"):
        assert manifest["sha256"][name] == sha256((tmp_path / "i" / name).read_bytes()).hexdigest()
    vocabulary = json.loads((tmp_path / "i" / "vocabulary.json").read_text())
    assert vocabulary == {
        "category": sorted(hkfr_city.CUISINES),
        "merchant": sorted(row["name"] for row in City().items),
    }
    assert len({row["sample_id"] for row in rows}) == len(rows)
    for row in rows:
        assert all(value not in (None, "") for value in row.values())
        assert row["answer"] in vocabulary.get(row["task"], [row["answer"]])
        day = date.fromtimestamp(row["ts"] // 1_000_000)
        number = (day - FIRST_DAY).days
        part = "train" if number < hkfr_city.VALID_FROM else "valid"
        assert row["split"] == ("test" if number >= hkfr_city.TEST_FROM else part)
    assert set(report.tasks) | set(report.skipped) == set(TASKS)
    # Its items tell neither, and nobody orders twice or at another time of day.
    assert set(report.skipped) >= {"dish_type", "delivery", "mealtime", "basket_size"}
    assert report.skipped["dish_type"] == "no request has what it asks"
    assert report.skipped["mealtime"] == "every answer is 'breakfast'"


def test_equal_seeds_give_equal_files(city: Path, daily: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        asked(city, daily, tmp_path / out, seed=3)
    _, other = asked(city, daily, tmp_path / "c", seed=4)
    _, some = asked(city, daily, tmp_path / "d", seed=3, tasks=["yes_or_no", "rank"])
    names = ("samples.parquet", "vocabulary.json", "manifest.json")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    same = pq.read_table(tmp_path / "a" / "samples.parquet").to_pylist()
    assert same != other
    assert some == [row for row in same if row["task"] in ("yes_or_no", "rank")]


def test_choices_hold_the_right_answer_anywhere(city: Path, daily: Path, tmp_path: Path) -> None:
    _, rows = asked(city, daily, tmp_path / "i")
    requests = {row["impression_id"]: row for row in City().impressions}
    names = {row["item_id"]: row["name"] for row in City().items}
    places, answers = [], []
    for row in rows:
        request = requests[row["sample_id"].split("/")[0]]
        if row["task"] not in ("yes_or_no", "better_of_two", "rank"):
            continue
        (bought,) = (names[item] for item in request["orders"])
        if row["task"] == "yes_or_no":
            assert (f'"{bought}"' in row["instruction"]) == (row["answer"] == "yes")
            answers.append(row["answer"])
        elif row["task"] == "better_of_two":
            assert row["answer"] == bought
            places.append(re.findall(r'"([^"]+)"', row["instruction"]).index(bought))
        else:
            best, looked, other = row["answer"].split("; ")
            assert best == bought
            assert looked in [names[item] for item in request["clicks"]]
            assert other not in [names[item] for item in request["clicks"]]
            assert all(f'"{name}"' in row["instruction"] for name in (best, looked, other))
    assert len(set(answers)) == len(set(places)) == 2


def test_an_order_of_several_categories_is_one_sample_of_the_main_one(tmp_path: Path) -> None:
    mixed = City()
    (first,) = [row for row in mixed.impressions if row["impression_id"] == "u0-6"]
    first.update(candidates=["p0", "p1", "p4", "p2"], clicks=["p0", "p1", "p4"])
    first["orders"] = ["p0", "p1", "p4"]  # thai, pizza, pizza
    _, rows = of_city(mixed, tmp_path)
    (category,) = [r for r in rows if r["sample_id"] == "u0-6/category"]
    (merchant,) = [r for r in rows if r["sample_id"] == "u0-6/merchant"]
    (size,) = [r for r in rows if r["sample_id"] == "u0-6/basket_size"]
    assert category["answer"] == "pizza"
    assert merchant["answer"] == mixed.items[1]["name"]
    assert size["answer"] == "two or three items"


def test_days_until_are_those_up_to_the_next_order_of_the_same_part(
    city: Path, daily: Path, tmp_path: Path
) -> None:
    _, rows = asked(city, daily, tmp_path / "i", tasks=["days_until"])
    assert len(rows) == 3 * 5
    days = {(FIRST_DAY + timedelta(days=day)): day for day in range(hkfr_city.DAYS)}
    told = {days[date.fromtimestamp(r["ts"] // 1_000_000)]: r["answer"] for r in rows}
    # Orders are on days 2, 3, 6, 7, 10, 11; what comes after a part is not known in it.
    assert told == {
        3: "the same day",
        4: "2 to 3 days",
        5: "the next day",
        7: "the same day",
        11: "the same day",
    }


def test_new_or_repeat_looks_at_the_orders_before(tmp_path: Path) -> None:
    _, rows = of_city(City(), tmp_path, tasks=["new_or_repeat", "category"])
    city = City()
    for row in rows:
        if row["task"] == "new_or_repeat":
            (request,) = [r for r in city.impressions if r["impression_id"] in row["sample_id"]]
            before = {
                event["item_id"]
                for event in city.events
                if event["user_id"] == row["user_id"]
                and event["behaviour"] == "order"
                and event["ts"] < row["ts"]
            }
            assert row["answer"] == ("repeat" if set(request["orders"]) & before else "new")


def test_a_log_without_orders_asks_about_clicks(tmp_path: Path) -> None:
    browsed = City()
    for request in browsed.impressions:
        request["orders"] = []
    browsed.events = [event for event in browsed.events if event["behaviour"] != "order"]
    report, rows = of_city(browsed, tmp_path, answer_from="clicks")
    assert "category" in report.tasks
    asks = [row for row in rows if row["task"] == "merchant"]
    assert len(asks) == len(browsed.impressions)
    with pytest.raises(DataError, match="answer_from=clicks"):
        asked(tmp_path / "data", tmp_path / "k", tmp_path / "j", tasks=["merchant"])
    assert not (tmp_path / "j").exists()


def test_at_most_so_many_training_samples_of_a_user(
    city: Path, daily: Path, tmp_path: Path
) -> None:
    whole, _ = asked(city, daily, tmp_path / "i")
    report, rows = asked(city, daily, tmp_path / "i", train_per_user=2)
    trained = [row["user_id"] for row in rows if row["split"] == "train"]
    assert sorted(trained) == sorted(2 * [f"u{n}" for n in range(4)])
    assert report.samples["test"] == whole.samples["test"]


def test_knowledge_that_is_too_old_other_or_of_other_options_is_not_used(
    city: Path, daily: Path, tmp_path: Path
) -> None:
    hkfr_city.build(city, tmp_path / "k", FIRST_DAY + timedelta(days=4))
    report, rows = asked(city, tmp_path / "k", tmp_path / "i", max_age_days=1)
    used = {(date.fromtimestamp(row["ts"] // 1_000_000) - FIRST_DAY).days for row in rows}
    assert used == {4, 5}
    assert report.without_knowledge == 4 * (len(range(3, hkfr_city.DAYS)) - 2)
    hkfr_city.build(city, tmp_path / "k", FIRST_DAY + timedelta(days=5), prose_tokens=9)
    with pytest.raises(DataError, match="other options"):
        asked(city, tmp_path / "k", tmp_path / "i")
    newer = City().write(tmp_path / "newer", version="2")
    with pytest.raises(DataError, match="is of data card"):
        asked(newer, daily, tmp_path / "j")
    with pytest.raises(DataError, match="no knowledge store"):
        asked(city, city, tmp_path / "j")
    assert not (tmp_path / "j").exists()


def test_pseudonyms_of_another_salt_are_refused(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_SALT", "first")
    hkfr_city.build(city, tmp_path / "k", as_of_request=True, anonymise={"opaque_ids": True})
    report, rows = asked(city, tmp_path / "k", tmp_path / "i")
    names = {row["name"] for row in City().items}
    assert not any(name in f"{r['knowledge']}{r['answer']}" for r in rows for name in names)
    assert report.vocabulary["merchant"] == 12
    monkeypatch.setenv("RAYSYS_SALT", "second")
    with pytest.raises(ConfigError, match="RAYSYS_SALT"):
        asked(city, tmp_path / "k", tmp_path / "j")


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigError, match="colour"):
        validate(InstructionConfig, {"tasks": ["colour"]})
    with pytest.raises(ConfigError, match="task"):
        validate(InstructionConfig, {"task": ["category"]})


def test_the_command(city: Path, daily: Path, tmp_path: Path) -> None:
    app, runner = make_app("build"), CliRunner()
    command = ["build", "hkfr-instructions", "--data", str(city), "--knowledge", str(daily)]
    options = [f"{name}={value}" for name, value in FIELDS.items()]
    told = runner.invoke(app, [*command, "--out", str(tmp_path / "i"), "--json", *options])
    assert json.loads(told.stdout)["vocabulary"] == {"category": 3, "merchant": 12}
    again = runner.invoke(app, [*command, "--out", str(tmp_path / "i"), *options])
    assert isinstance(again.exception, DataError)
    wrong = runner.invoke(app, [*command, "--out", str(tmp_path / "j"), "category=colour:1"])
    assert isinstance(wrong.exception, ConfigError)
    assert not (tmp_path / "j").exists()
