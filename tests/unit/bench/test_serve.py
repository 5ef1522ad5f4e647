"""The serving bench: what it asks is what a server takes."""

from pathlib import Path

import serve_fixtures as fixtures

from bench.serve import _limit, _requests
from raysys.artifacts.predictor import Predictor


def test_requests_are_answerable(tmp_path: Path) -> None:
    predictor = Predictor.load(fixtures.ctr_run(tmp_path))
    requests = _requests(predictor, candidates=20, count=8, seed=0)
    assert [len(request.candidates) for request in requests] == [20] * 8
    assert not [fault for request in requests if (fault := predictor.fit.misfit(request))]
    predictor.score(requests)
    assert not predictor.unknown["items"]
    assert not predictor.unknown["users"]
    assert all(milliseconds > 0 for milliseconds in _limit(predictor, requests).values())
