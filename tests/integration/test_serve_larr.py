"""`ctr/larr-cofars` served over HTTP: no text is encoded on the hot path, misses are filled."""

import time
from itertools import cycle, islice
from pathlib import Path

import pytest
from cofars_runs import valid_requests
from larr_runs import small_city, tiny
from own_cluster import ray_cluster, served

from raysys.artifacts.predictor import Predictor
from raysys.recipes.registry import run
from serve_apps.client import Client


@pytest.mark.slow
def test_a_thousand_requests_make_no_llm_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    city, folder = tmp_path / "city", tmp_path / "run"
    small_city(city)
    run(tiny("ctr/larr-cofars", city), folder, show_progress=False)
    predictor = Predictor.load(folder)
    asked = valid_requests(city, 40)
    models = dict(
        ctr=dict(run=str(folder), num_cpus=0.5),
        scene=dict(num_cpus=0.5, table=str(tmp_path / "filled")),
    )
    with (
        ray_cluster(cpus=2) as cluster,
        served(cluster, tmp_path, dict(models=models, http=dict(request_timeout_s=20))) as url,
        Client(url, timeout_s=30) as client,
    ):
        assert client.models()["ctr"].recipe == "ctr/larr-cofars"
        for number, request in enumerate(islice(cycle(asked), 1000)):
            answer = client.rank("ctr", request)
            assert answer.fallback is None
            if number < len(asked):
                table = predictor.score([request]).to_pylist()
                wanted = {row["item_id"]: row["score"] for row in table}
                # Replicas may run with another number of threads, which rounds otherwise.
                found = {item.item_id: item.score for item in answer.items}
                assert found == pytest.approx(wanted, abs=1e-5)
        stats = client.stats()["ctr"]
        assert stats.requests == 1000
        assert stats.scene is not None
        assert (stats.scene.lookups, stats.scene.misses, stats.scene.llm_calls) == (4000, 0, 0)

        other = {**asked[0].context, "weather": "a sudden dust storm"}
        unseen = asked[0].model_copy(update={"context": other})
        first = [item.score for item in client.rank("ctr", unseen).items]
        end = time.monotonic() + 120
        while client.stats()["ctr"].scene.filled < 1 and time.monotonic() < end:
            time.sleep(0.2)
        filled = client.stats()["ctr"].scene
        assert (filled.queued, filled.filled, filled.llm_calls) == (1, 1, 0)
        assert [item.score for item in client.rank("ctr", unseen).items] != first
        assert client.stats()["ctr"].scene.misses == filled.misses == 1
