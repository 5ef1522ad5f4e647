"""`ctr/din` with dated features served over HTTP: by look-up, of the day before, night by night."""

from pathlib import Path

import pytest
from own_cluster import free_port, ray_cluster, served
from tastes import HOUR, NOW, din, planted, told_on

from raysys.artifacts.predictor import Predictor
from raysys.data.requests import Request
from raysys.recipes.registry import run
from serve_apps.client import Client

DAY = 24 * HOUR


def asked(user: str, day: int, hour: int = 12, tz: int = 0) -> Request:
    return Request(
        request_id=f"{user}-{day}-{hour}", user_id=user, ts=NOW + day * DAY + hour * HOUR,
        tz_offset_min=tz, candidates=("sweet", "salty"),
    )  # fmt: skip


def served_scores(client: Client, request: Request) -> list[float]:
    """In the order of the candidates."""
    answer = client.rank("ctr", request)
    assert answer.fallback is None
    found = {item.item_id: item.score for item in answer.items}
    return [found[item] for item in request.candidates]


@pytest.mark.slow
def test_requests_read_the_day_before_and_a_new_night_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    data, table = planted(tmp_path)  # dated one day before the first, and on the fourth
    folder = tmp_path / "run"
    run(din(data, table), folder, show_progress=False)
    predictor = Predictor.load(folder)
    requests = [asked(f"u{user:02d}", day) for user in (0, 1, 29) for day in (0, 3, 4, 5)]
    model = dict(ctr=dict(run=str(folder), num_cpus=0.5))
    # Serve keeps the port that it was first started with.
    config = dict(models=model, http=dict(request_timeout_s=20, port=free_port()))
    with ray_cluster(cpus=2) as cluster:
        with served(cluster, tmp_path, config) as url, Client(url, timeout_s=30) as client:
            found = {request.request_id: served_scores(client, request) for request in requests}
            for request in requests:
                wanted = predictor.score([request])["score"].to_pylist()
                # Replicas may run with another number of threads, which rounds otherwise.
                assert found[request.request_id] == pytest.approx(wanted, abs=1e-5)
            # The table of the fourth day says the opposite, and says it from the fifth on.
            for day, sweet in ((3, True), (4, False)):
                ours, theirs = found[f"u01-{day}-12"]
                assert (ours > theirs) == sweet
            late = served_scores(client, asked("u01", 3, 23))
            assert late == pytest.approx(found["u01-3-12"], abs=1e-6)
            turned = served_scores(client, asked("u01", 3, 23, tz=60))
            assert turned == pytest.approx(found["u01-4-12"], abs=1e-6)
            undated = asked("u01", 3).model_copy(update={"ts": None})
            nobody = asked("stranger", 3)
            assert served_scores(client, undated) == pytest.approx(found["u29-3-12"], abs=1e-6)
            assert served_scores(client, nobody) == pytest.approx(found["u29-3-12"], abs=1e-6)
        told_on(folder / "indexes" / "features", 2, {"u29": 1.0})
        told_on(folder / "indexes" / "features", 4, {"u29": 0.0})
        with served(cluster, tmp_path, config) as url, Client(url, timeout_s=30) as client:
            for day, sweet in ((3, True), (4, True), (5, False)):
                ours, theirs = served_scores(client, asked("u29", day))
                assert (ours > theirs) == sweet, day
