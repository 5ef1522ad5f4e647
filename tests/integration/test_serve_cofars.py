"""A served CoFARS run, asked over HTTP to explain itself."""

from pathlib import Path

import pytest
import serve_fixtures as fixtures
from cofars_runs import inline, valid_requests
from own_cluster import ray_cluster, served

from raysys.artifacts.predictor import Predictor
from serve_apps.client import Client


@pytest.mark.slow
def test_a_served_run_explains_its_choice(tmp_path: Path) -> None:
    city, run = fixtures.cofars_run(tmp_path)
    predictor = Predictor.load(run)
    stored = valid_requests(city, 12)
    asked = [*stored[:8], *inline(city, stored[8:], 40)]
    config = dict(models=dict(ctr=dict(run=str(run), num_cpus=0.5)), http={})
    with (
        ray_cluster(cpus=2) as cluster,
        served(cluster, tmp_path, config) as url,
        Client(url) as client,
    ):
        assert client.models()["ctr"].recipe == "ctr/cofars"
        for request in asked:
            plain, said = client.rank("ctr", request), client.rank("ctr", request, explain=True)
            assert plain.retrieval is None and plain.fallback is None
            assert [i.item_id for i in said.items] == [i.item_id for i in plain.items]
            (wanted,) = predictor.explain_retrieval([request])
            assert wanted is not None and said.retrieval is not None
            # Replicas may run with another number of threads, which rounds otherwise.
            assert said.retrieval.contexts[0].context == wanted.contexts[0].context
            assert said.retrieval.back_off == wanted.back_off
            assert said.retrieval.target == wanted.target
            for here, there in zip(said.retrieval.prototypes, wanted.prototypes, strict=True):
                assert here.prototype == there.prototype
                assert here.beta == pytest.approx(there.beta, abs=1e-6)
                assert here.likes.keys() == there.likes.keys() and here.likes
            # What explains an item was retrieved for the request.
            reasons = sum(len(item.explanation or []) for item in said.items)
            assert reasons > 0 or wanted.events == 0
