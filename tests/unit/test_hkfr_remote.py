"""HKFR's remote back-end against a real HTTP server: good, late, bad and missing answers."""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import hkfr_city
import pytest
from hkfr_city import City
from hkfr_endpoint import GOOD, HANG_UP, SILENCE, Answer, Endpoint, completion, said, serving

from raysys.errors import ConfigError
from raysys.hkfr.store import KnowledgeStore
from raysys.recipes.hkfr_knowledge import KnowledgeReport

DAY = date(2024, 1, 5)
BUSY: Answer = (429, "later", {"Retry-After": "0"})
BROKEN: Answer = (503, "", {})
GONE: Answer = (HANG_UP, "", {})
SILENT: Answer = (SILENCE, "", {})


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAYSYS_SALT", "a salt")
        patch.setenv("OPENAI_API_KEY", "a key")
        yield


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users u0, u1, u2, and u3 without events."""
    return City().write(tmp_path_factory.mktemp("hkfr") / "city")


def remote(endpoint: Endpoint, **options: Any) -> dict[str, Any]:
    """Options of the back-end: one user after the other, without waits."""
    given = dict(name="remote_llm", enabled=True, url=endpoint.url, model="m")
    return given | dict(concurrency=1, backoff_s=0, retries=2) | options


def asked(
    data: Path, out: Path, *answers: Answer, **options: Any
) -> tuple[KnowledgeReport, Endpoint]:
    """A run whose requests get these answers one after the other, and good ones afterwards."""
    left = list(answers)
    with serving(lambda _: left.pop(0) if left else GOOD) as endpoint:
        report = hkfr_city.build(data, out, DAY, backend=remote(endpoint, **options))
    return report, endpoint


def rows(out: Path) -> list[dict[str, Any]]:
    """Texts of the users with events."""
    return [row for row in KnowledgeStore(out).texts().to_pylist() if row["record"] != NOTHING]


NOTHING = '{"facts":[],"interests":[],"prose":""}'


def test_what_is_sent_and_kept(city: Path, tmp_path: Path) -> None:
    report, endpoint = asked(city, tmp_path / "k")
    assert (report.llm_calls, report.tokens, report.fallbacks) == (3, 21, 0)
    assert [row["text"] for row in rows(tmp_path / "k")] == [
        "The user looks around.\nThe user is known."
    ] * 3
    for body, headers in zip(endpoint.bodies, endpoint.headers, strict=True):
        assert headers["Authorization"] == "Bearer a key"
        assert body["response_format"]["json_schema"]["strict"] is True
        assert (body["model"], body["temperature"]) == ("m", 0)
        assert body["user"].startswith("user-")
        assert not {"u0", "u1", "u2"} & set(json.dumps(body).replace('"', " ").split())
    again, endpoint = asked(city, tmp_path / "k")
    assert (again.changed, again.llm_calls, endpoint.bodies) == (0, 0, [])


def test_busy_broken_and_lost_endpoints_are_asked_again(city: Path, tmp_path: Path) -> None:
    # One user needs three tries, the next one three more.
    report, endpoint = asked(city, tmp_path / "k", BUSY, BROKEN, GOOD, GONE, BUSY, GOOD)
    assert (report.llm_calls, report.fallbacks) == (3, 0)
    assert len(endpoint.bodies) == 7
    assert {row["backend"] for row in rows(tmp_path / "k")} == {"remote_llm"}


@pytest.mark.parametrize(
    "answers",
    [[BROKEN] * 3, [BUSY] * 3, [GONE] * 3, [(401, "", {})], [(302, "", {"Location": "/v2"})]],
    ids=["broken", "busy", "gone", "refused", "elsewhere"],
)
def test_without_an_answer_the_template_stands_in_until_the_next_run(
    city: Path, tmp_path: Path, answers: list[Answer]
) -> None:
    report, endpoint = asked(city, tmp_path / "k", *answers)
    assert (report.fallbacks, report.changed) == (1, 4)
    assert len(endpoint.bodies) == len(answers) + 2
    assert sorted(row["backend"] for row in rows(tmp_path / "k")) == [
        "remote_llm", "remote_llm", "template",
    ]  # fmt: skip
    # The text is that of the template itself, under its own key.
    plain = hkfr_city.build(city, tmp_path / "plain", DAY)
    assert plain.texts == 4
    own = {(row["key"], row["text"]) for row in rows(tmp_path / "plain")}
    assert sum((row["key"], row["text"]) in own for row in rows(tmp_path / "k")) == 1
    again, endpoint = asked(city, tmp_path / "k")
    assert (again.changed, again.llm_calls, again.fallbacks) == (1, 1, 0)


@pytest.mark.slow
def test_a_silent_endpoint_is_not_waited_for(city: Path, tmp_path: Path) -> None:
    answers = (SILENT, GOOD, SILENT, SILENT, GOOD)
    report, endpoint = asked(city, tmp_path / "k", *answers, timeout_s=3, retries=1)
    assert (report.llm_calls, report.fallbacks, len(endpoint.bodies)) == (3, 1, 5)


JUNK = {
    "no JSON": (200, "<html>", {}),
    "no completion": (200, '{"choices": []}', {}),
    "null": (200, "null", {}),
    "deep": (200, "[" * 100_000, {}),
    "no content": completion(None),  # type: ignore[arg-type]
    "prose": completion("The user likes soup."),
    "deep content": completion("[" * 100_000),
    "long number": completion("1" * 5000),
    "other schema": completion('{"role": "admin"}'),
    "more than asked": completion(said(*["The user is known."] * 6)),
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_junk_is_asked_for_once_more_and_then_the_templates(
    city: Path, tmp_path: Path, junk: Answer
) -> None:
    # The first user gets junk twice, the second once.
    report, endpoint = asked(city, tmp_path / "k", junk, junk, junk)
    assert (report.llm_calls, report.fallbacks, len(endpoint.bodies)) == (5, 1, 5)
    (fallen,) = [row for row in rows(tmp_path / "k") if row["fallback"]]
    assert fallen["backend"] == "template"
    assert asked(city, tmp_path / "k")[0].llm_calls == 0


def test_an_endpoint_that_is_down_is_left_alone(city: Path, tmp_path: Path) -> None:
    answers = [BROKEN] * 9
    report, endpoint = asked(city, tmp_path / "k", *answers, retries=0, give_up_after=2)
    assert len(endpoint.bodies) == 2
    assert (report.fallbacks, report.llm_calls) == (3, 2)


def test_what_the_events_do_not_say_is_dropped_and_counted(city: Path, tmp_path: Path) -> None:
    answer = said(
        "The user is known.", "The user loves Starbucks.", "He is an engineer.",
        prose="The user looks\ud83daround <|im_end|>. The user has two children.",
    )  # fmt: skip
    report, _ = asked(city, tmp_path / "k", *[completion(answer, tokens=-1)] * 3)
    assert (report.claims, report.dropped_claims, report.tokens) == (15, 9, 0)
    for row in rows(tmp_path / "k"):
        assert row["text"] == "The user looks?around ‹|im_end|›.\nThe user is known."
        assert (row["claims"], row["dropped"]) == (5, 3)
    with serving(lambda _: completion(answer)) as endpoint:
        off = hkfr_city.build(city, tmp_path / "k", DAY, backend=remote(endpoint), claims="off")
    assert (off.changed, off.dropped_claims) == (4, 0)
    assert any("Starbucks" in row["text"] for row in rows(tmp_path / "k"))


@pytest.mark.parametrize("missing", ["RAYSYS_SALT", "OPENAI_API_KEY"])
def test_without_salt_or_key_nothing_is_sent(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with serving(lambda _: GOOD) as endpoint:
        with pytest.raises(ConfigError, match=r"salt_env|api_key_env"):
            hkfr_city.build(city, tmp_path / "k", DAY, backend=remote(endpoint))
        assert endpoint.bodies == []
    assert not (tmp_path / "k").exists()
