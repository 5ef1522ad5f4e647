import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.config import Limits
from serve_apps.schemas import RankRequest, parse

LIMITS = Limits(candidates=3, history=2, context=2, string=8)
GOOD: dict[str, Any] = dict(request_id="r", user_id="u", candidates=["a", "b"])
EVENT: dict[str, Any] = dict(item_id="a", ts=1)


def parsed(**change: Any) -> RankRequest | str:
    return parse(json.dumps({**GOOD, **change}).encode(), LIMITS)


def test_good_requests() -> None:
    for change in (
        dict(),
        dict(ts=5, tz_offset_min=120, context={"meal": "lunch", "degrees": 3}),
        dict(history=[EVENT, EVENT], explain=True, top_k=1),
        dict(history_end=4, candidates=["ü" * 8]),
        dict(ts=253_402_300_799_999_999, history_end=2**63 - 1, history=[dict(item_id="a"), EVENT]),
    ):
        assert isinstance(parsed(**change), RankRequest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(candidates=[]), "candidates: "),
        (dict(candidates=["a", 5]), "candidates.1: "),
        (dict(candidates="ab"), "candidates: "),
        (dict(user_id=7), "user_id: "),
        (dict(user_id=""), "user_id: "),
        (dict(ts="5"), "ts: "),
        (dict(ts=1.5), "ts: "),
        (dict(explain="yes"), "explain: "),
        (dict(top_k=0), "top_k: "),
        (dict(tz_offset_min=5000), "tz_offset_min: "),
        (dict(modle="x"), "modle: "),
        (dict(context={"degrees": float("inf")}), "context.degrees"),
        (dict(context={"meal": ["lunch"]}), "context.meal"),
        (dict(history=[dict(item_id="a", behaviour="wink")]), "unknown behaviour 'wink'"),
        (dict(history=[dict(item_id="a", ts=2), EVENT]), "history.1: events must be oldest first"),
        (
            dict(history=[EVENT, dict(item_id="a")]),
            "history.1: events must be oldest first, those ",
        ),
        (dict(history=[dict(item_id="a", ts=-(2**63))]), "history.0.ts: "),
        (dict(ts=10**20), "ts: "),
        (dict(history_end=10**20), "history_end: "),
        (dict(candidates=list("abcd")), "candidates: 4 entries, at most 3"),
        (dict(history=[EVENT] * 3), "history: 3 entries, at most 2"),
        (dict(context={"a": 1, "b": 1, "c": 1}), "context: 3 entries, at most 2"),
        (dict(history=[{**EVENT, "context": {"a": 1, "b": 1, "c": 1}}]), "context: 3 entries"),
        (dict(candidates=["a" * 9]), "a string of 9 characters"),
        (dict(context={"a": "b" * 9}), "a string of 9 characters"),
        (dict(context={"a" * 9: "b"}), "a string of 9 characters"),
    ],
)
def test_faults_are_named(change: dict[str, Any], message: str) -> None:
    problem = parsed(**change)
    assert isinstance(problem, str)
    assert message in problem


def test_missing_and_broken_json() -> None:
    problem = parse(b"{}", LIMITS)
    assert isinstance(problem, str)
    assert problem.startswith("request_id: Field required (and 2 more)")
    assert isinstance(parse(b"[]", LIMITS), str)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_a_reason(body: bytes) -> None:
    assert isinstance(parse(body, LIMITS), RankRequest | str)
