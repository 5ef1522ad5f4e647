"""`news/perconet` served over HTTP: contributions add up to the score, cards are heeded."""

from pathlib import Path

import newspaper as paper
import pytest
from own_cluster import free_port, ray_cluster, served

from raysys.data.dataset import Dataset
from raysys.data.requests import Request
from serve_apps.client import Client, ServerError


@pytest.mark.slow
def test_cards_are_heeded_and_survive_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    data = paper.write(tmp_path / "data")
    paper.train_run(data, tmp_path / "run", "train.epochs=2")
    rows = [r for r in Dataset(data).table("impressions").to_pylist() if r["split"] == "test"]
    asked = [
        Request(request_id=r["impression_id"], user_id=r["user_id"], ts=r["ts"],
                candidates=tuple(r["candidates"]))
        for r in rows[:40]
    ]  # fmt: skip
    models = dict(
        news=dict(run=str(tmp_path / "run"), num_cpus=0.5),
        personas=dict(store=str(tmp_path / "wishes.db")),
    )
    # Serve keeps the port that it was first started with.
    config = dict(models=models, http=dict(request_timeout_s=20, port=free_port()))
    reader = asked[0].user_id
    with ray_cluster(cpus=2) as cluster:
        with served(cluster, tmp_path, config) as url, Client(url, timeout_s=30) as client:
            for request in asked:
                answer = client.rank("news", request, explain=True)
                assert answer.fallback is None
                for item in answer.items:
                    assert item.persona is not None
                    told = sum(part.contribution for part in item.persona.entities)
                    told += item.persona.latent + item.persona.default
                    assert told == pytest.approx(item.score, abs=1e-5)
            before = client.rank("news", asked[0])
            top = client.persona(reader).card.entities[0].id
            assert client.hide(reader, [top]).hidden == (top,)
            edited = client.rank("news", asked[0])
            assert [i.score for i in edited.items] != [i.score for i in before.items]
            with pytest.raises(ServerError, match="is no entity of this model"):
                client.hide(reader, ["Q-none"])
        with served(cluster, tmp_path, config) as url, Client(url, timeout_s=30) as client:
            assert client.persona(reader).hidden == (top,)
            assert client.rank("news", asked[0]).items == edited.items
            gone = client.forget(reader)
            assert (gone.card.n_clicks, gone.hidden) == (0, ())
            stranger = asked[0].model_copy(update={"user_id": "nobody"})
            assert client.rank("news", asked[0]).items == client.rank("news", stranger).items
