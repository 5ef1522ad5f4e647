"""The nightly job of HKFR under kill -9, in the middle of asking an endpoint."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import hkfr_city
import pytest
from hkfr_city import City
from hkfr_endpoint import GOOD, Answer, Endpoint, serving

from raysys.data.dataset import Dataset
from raysys.hkfr.store import KnowledgeStore
from raysys.recipes import hkfr_knowledge

pytestmark = pytest.mark.chaos

USERS, PART = 41, 4  # the last user has no events
DAY = "2024-01-05"


def build(data: str, out: str, url: str) -> None:
    """The job, as the command does it, in parts of a few rows."""
    hkfr_knowledge._ROWS_PER_PART = PART
    backend = dict(name="remote_llm", enabled=True, url=url, model="m", concurrency=2)
    hkfr_city.build(Path(data), Path(out), date.fromisoformat(DAY), backend=backend)


def start(data: Path, out: Path, endpoint: Endpoint) -> subprocess.Popen[bytes]:
    """`build` in a process of its own."""
    given = ", ".join(repr(str(value)) for value in (data, out, endpoint.url))
    code = f"import test_hkfr_chaos as t; t.build({given})"
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_killed_job_goes_on_without_gap_or_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAYSYS_SALT", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    here = Path(__file__).parent
    roots = [*sys.path, str(here), str(here.parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(root for root in roots if root))
    city = City(users=USERS)
    for event in city.events:
        if event["behaviour"] == "search":  # no two users have one text
            event["text"] = f"soup of {int(event['user_id'][1:]) + 100} spices"
    data, out = city.write(tmp_path / "data"), tmp_path / "k"
    asked = threading.Semaphore(0)

    def reply(_: dict[str, Any]) -> Answer:
        asked.release()
        time.sleep(0.01)
        return GOOD

    kills = (1, 7, 6, 12)
    with serving(reply) as endpoint:
        for requests in kills:
            child = start(data, out, endpoint)
            for _ in range(requests):
                assert asked.acquire(timeout=60)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            while asked.acquire(blocking=False):
                pass
            keys = KnowledgeStore(out).texts(["key"])["key"].to_pylist()
            assert len(keys) == len(set(keys))
            assert KnowledgeStore(out).dates() == []  # a day is there when it is whole
        assert start(data, out, endpoint).wait() == 0
        calls = len(endpoint.bodies)
        assert start(data, out, endpoint).wait() == 0
        assert len(endpoint.bodies) == calls
    store = KnowledgeStore(out)
    _, bound = store.bound(store.dates()[0])
    texts = {row["key"]: row for row in store.texts().to_pylist()}
    assert Counter(bound["user_id"].to_pylist()) == Counter(f"u{n}" for n in range(USERS))
    assert len(texts) == USERS
    assert set(bound["key"].to_pylist()) == set(texts) and len(store.texts()) == len(texts)
    fused = [row for row in texts.values() if row["backend"] == "remote_llm"]
    # A kill loses what was asked since the last part: its rows, and those on their way.
    assert len(fused) <= calls <= len(fused) + len(kills) * (PART + 2 * 2)
    assert {path.name for path in out.iterdir()} == {
        ".lock", "knowledge.json", "texts", f"date={DAY}",
    }  # fmt: skip
    assert Dataset(data).card.id == store.bound(store.dates()[0])[0].data_card_id
