"""Requests in columns: from objects or a table, cut and resolved alike."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raysys.data.catalogue import Catalogue
from raysys.data.contexts import ContextCodec, ContextFeature
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.requests import Fit, Request, Requests
from raysys.errors import DataError

CODEC = ContextCodec(features=(ContextFeature(name="meal", kind="categorical", values=("lunch",)),))
CATALOGUE = Catalogue(pa.array(["a", "b", "c"]), np.zeros((5, 0), np.int32))
PAST = Histories(
    users=pa.array(["u", "v"]),
    start=np.array([0, 3, 4]),
    item=np.array([2, 3, 4, 2], np.int32),
    ts=np.array([10, 20, 30, 5]),
    behaviour=np.zeros(4, np.int8),
    context=np.zeros((4, 1), np.int32),
    codec=CODEC,
)
IDS = st.sampled_from(["a", "b", "c", "z"])
REQUESTS = st.lists(
    st.builds(
        Request,
        request_id=IDS,
        user_id=st.sampled_from(["u", "v", "w"]),
        ts=st.none() | st.integers(0, 40),
        history_end=st.none() | st.integers(0, 5) | st.just(2**63 - 1),
        context=st.fixed_dictionaries({}, optional={"meal": st.sampled_from(["lunch", "tea"])}),
        candidates=st.lists(IDS, min_size=1, max_size=4, unique=True).map(tuple),
    ),
    max_size=5,
)


def as_table(requests: list[Request]) -> pa.Table:
    schema = pa.schema(
        [
            ("request_id", pa.string()),
            ("user_id", pa.string()),
            ("ts", pa.int64()),
            ("history_end", pa.int64()),
            ("context", pa.struct([("meal", pa.string())])),
            ("candidates", pa.list_(pa.string())),
        ]
    )
    rows = [r.model_dump(include=set(schema.names)) for r in requests]
    return pa.Table.from_pylist(rows, schema)


def assert_same(one: Requests, other: Requests) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(np.asarray(values), np.asarray(getattr(other, name)))


@given(requests=REQUESTS, data=st.data())
def test_objects_and_tables_give_the_same_columns(
    requests: list[Request], data: st.DataObject
) -> None:
    columns = Requests.of(requests, CODEC)
    assert_same(columns, Requests.of_table(as_table(requests), CODEC))
    if requests:
        chosen = data.draw(st.lists(st.integers(0, len(requests) - 1), max_size=5))
        part = Requests.of([requests[i] for i in chosen], CODEC)
        assert_same(columns.take(np.array(chosen, np.int64)), part)


@given(requests=REQUESTS)
def test_pointers_are_the_users_events_before_the_request(requests: list[Request]) -> None:
    pointers = Requests.of(requests, CODEC).pointers(CATALOGUE, PAST, CODEC)
    begin = {"u": (0, [10, 20, 30]), "v": (3, [5]), "w": (0, [])}
    rows = {"a": 2, "b": 3, "c": 4, "z": 1}
    for i, request in enumerate(requests):
        start, times = begin[request.user_id]
        if request.ts is not None:
            count = sum(ts < request.ts for ts in times)
        elif request.history_end is not None:
            count = min(request.history_end, len(times))
        else:
            count = len(times)
        assert (pointers.start[i], pointers.end[i]) == (start, start + count)
        listed = [rows[item] for item in request.candidates]
        assert pointers.candidates[i].tolist() == listed + [0] * (
            pointers.candidates.shape[1] - len(listed)
        )
        assert pointers.ts[i] == (UNKNOWN_TS if request.ts is None else request.ts)


def test_a_table_of_impressions_will_do() -> None:
    table = pa.table({"impression_id": ["p"], "user_id": ["u"], "candidates": [["a"]]})
    columns = Requests.of_table(table, CODEC)
    assert (columns.ids, columns.candidates, columns.ts.tolist()) == (["p"], ["a"], [UNKNOWN_TS])


@pytest.mark.parametrize("column", ["impression_id", "user_id", "candidates"])
def test_a_table_needs_its_columns(column: str) -> None:
    table = pa.table({"impression_id": ["p"], "user_id": ["u"], "candidates": [["a"]]})
    with pytest.raises(DataError, match=f"column {column} is missing"):
        Requests.of_table(table.drop_columns([column]), CODEC)


@pytest.mark.parametrize("empty", [[], None])
def test_a_request_without_candidates_is_named(empty: list[str] | None) -> None:
    lists = pa.array([["a"], empty], pa.list_(pa.string()))
    table = pa.table({"request_id": ["p", "q"], "user_id": ["u", "u"], "candidates": lists})
    with pytest.raises(DataError, match=r"row 1 \(q\) has no candidates"):
        Requests.of_table(table, CODEC)


@pytest.mark.parametrize(
    "change",
    [
        {"candidates": []},
        {"user_id": ""},
        {"request_id": "x" * 257},
        {"history_end": -1},
        {"tz_offset_min": 1441},
        {"features": [1.0]},
        {"context": {"meal": "x" * 257}},
        {"ts": 2**63},
        {"ts": UNKNOWN_TS},
        {"history_end": 2**63},
        {"history": [{"item_id": "a", "ts": 2}, {"item_id": "a", "ts": 1}]},
        {"history": [{"item_id": "a", "ts": 2}, {"item_id": "a"}]},
        {"history": [{"item_id": "a", "ts": 2**63}]},
        {"history": [{"item_id": "a", "behaviour": "stare"}]},
    ],
)
def test_requests_are_strict(change: dict[str, object]) -> None:
    good: dict[str, object] = {"request_id": "r", "user_id": "u", "candidates": ["a"]}
    Request.model_validate(good)
    with pytest.raises(ValidationError):
        Request.model_validate(good | change)


def test_a_time_in_another_unit_is_refused() -> None:
    """In ms or s it would silently make a newcomer of a known user; in ns no date names it."""
    now = 1_715_600_000_000_000
    fit = Fit(CODEC, since=now - 10_000_000)
    for ts in (now, now + 10**14, None):
        assert fit.misfit(ask(ts)) is None
    for ts in (now // 10**3, now // 10**6, 0, -5):
        assert (fit.misfit(ask(ts)) or "").startswith(f"ts: {ts} is 19")
        assert Fit(CODEC).misfit(ask(ts)) is None  # data without times say nothing of it
    with pytest.raises(ValidationError, match="less than or equal"):
        ask(now * 10**3)


def ask(ts: int | None) -> Request:
    return Request(request_id="r", user_id="u", ts=ts, candidates=("a",))


def test_a_candidate_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"candidates\.2: 'a' is there twice"):
        Request(request_id="r", user_id="u", candidates=("a", "b", "a"))
