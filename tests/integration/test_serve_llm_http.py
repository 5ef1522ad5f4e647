"""A language model served about users over HTTP, as a deployment of its own."""

from pathlib import Path

import hkfr_city
import pytest
from hkfr_city import City, at
from hkfr_language import planted_samples, write_samples
from own_cluster import free_port, ray_cluster, served

from raysys.hkfr.answering import Answerer
from raysys.hkfr.knowledge import NOTHING
from raysys.hkfr.lookup import KnowledgeLookup
from raysys.options import resolve
from raysys.recipes.registry import recipe_of, run
from serve_apps.client import Client, ServerError
from serve_apps.llm_schemas import AnswerRequest, ExplainRequest

OPTIONS = [
    "backbone={layers: 1, width: 32, heads: 1, vocab: 400, positions: 800}", "max_tokens=400",
    "row_tokens=400", "train.max_steps=3", "tuning.method=lora", "tuning.save=adapter",
]  # fmt: skip


@pytest.mark.slow
def test_users_are_explained_and_answered_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    samples = write_samples(tmp_path / "samples", planted_samples())
    config = resolve(recipe_of("llm/instruct"), None, OPTIONS, {"data": str(samples)})
    run(config, tmp_path / "run", show_progress=False)
    hkfr_city.build(City().write(tmp_path / "city"), tmp_path / "known", days=3)
    known = KnowledgeLookup(tmp_path / "known")
    answerer = Answerer(str(tmp_path / "run"), statements=3, statement_chars=60, max_new_tokens=80)
    models = dict(
        llm=dict(
            knowledge=str(tmp_path / "known"), model=str(tmp_path / "run"), samples=str(samples),
            interests=3, interest_chars=60, max_new_tokens=80, num_cpus=0.5, timeout_s=60,
        )
    )  # fmt: skip
    config = dict(models=models, http=dict(port=free_port()))
    with (
        ray_cluster(cpus=2) as cluster,
        served(cluster, tmp_path, config) as url,
        Client(url, timeout_s=60) as client,
    ):
        for user in ("u0", "u2", "stranger"):
            told = client.explain_user(ExplainRequest(request_id="r", user_id=user, ts=at(12, 9)))
            text = known.of(user, at(12, 9)).text
            assert (told.text, told.cold_user) == (text, user == "stranger")
            if told.cold_user:
                assert told.text == NOTHING and told.told is None
            else:
                assert told.told is not None and told.told.model_id == answerer.model_id
            asked = AnswerRequest(request_id="r", user_id=user, ts=at(12, 9), task="category")
            found = client.answer(asked)
            names = [item.name for item in found.items]
            wanted = answerer.log_p(text, found.instruction, names)
            assert [item.log_p for item in found.items] == pytest.approx(wanted, abs=1e-4)
            assert wanted == sorted(wanted, reverse=True)
        with pytest.raises(ServerError, match="no task is called") as refusal:
            client.answer(asked.model_copy(update={"task": "mood"}))
        assert refusal.value.status == 422
        assert client.models() == {}
