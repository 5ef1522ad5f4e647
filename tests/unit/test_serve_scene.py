"""The scene path of a served model: look-ups, misses that are filled, and the stats route."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cofars_runs import valid_requests
from larr_runs import small_city, tiny
from ray import serve
from starlette.testclient import TestClient

from raysys.artifacts.predictor import Predictor
from raysys.errors import ArtifactError
from raysys.larr import verbalise
from raysys.larr.fit import scene_keys
from raysys.larr.online import Sentence, learn_values
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.llm.parts import TableHeader
from raysys.llm.vectors import VectorTable
from raysys.llm.writer import TableWriter
from raysys.recipes.registry import run
from serve_apps.app import build
from serve_apps.config import Scene, ServeConfig, load_config
from serve_apps.gateway import Gateway
from serve_apps.scene import SceneTexts, SceneWatch
from serve_apps.schemas import RankAnswer, Stats
from serve_apps.server import check_runs

pytestmark = pytest.mark.slow
HEATED = "a sudden dust storm"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(root / "cache"))
        small_city(root / "city")
        for recipe in ("larr", "larr-cofars"):
            run(tiny(f"ctr/{recipe}", root / "city"), root / recipe, show_progress=False)
        yield root


def config(root: Path, recipe: str = "larr", **changes: Any) -> ServeConfig:
    models = dict(ctr=dict(run=root / recipe), **changes.pop("models", {}))
    # Time is not what is tested here, and the machine may be busy.
    http = dict(request_timeout_s=60)
    return ServeConfig.model_validate(dict(models=models, http=http, **changes))


class Local:
    """A handle of the encoder in this process."""

    def __init__(self, texts: SceneTexts) -> None:
        self.encode = type("Method", (), {"remote": staticmethod(texts.encode)})


def ask(http: TestClient, request: Any, **context: str | None) -> RankAnswer:
    body = request.model_dump(mode="json", exclude_none=True)
    body["context"] |= context
    response = http.post("/v1/ctr/rank", json=body)
    assert response.status_code == 200, response.text
    return RankAnswer.model_validate_json(response.content)


def stats(http: TestClient) -> Stats:
    return Stats.model_validate(http.get("/v1/stats").json()["stats"]["ctr"])


def watch(gateway: Gateway) -> SceneWatch:
    """That of the fused ranker."""
    found = gateway.backends["ctr"].rank.__self__.scene  # type: ignore[attr-defined]
    assert isinstance(found, SceneWatch)
    return found


def scores(answer: RankAnswer) -> dict[str, float]:
    return {item.item_id: item.score for item in answer.items}


@pytest.mark.parametrize("recipe", ["larr", "larr-cofars"])
def test_a_miss_is_ranked_by_default_and_known_a_moment_later(root: Path, recipe: str) -> None:
    filler = SceneTexts(Scene(table=root / f"filled-{recipe}"), root / recipe)
    models = {"scene": {"max_values": 10}}
    gateway = Gateway(config(root, recipe, fused=True, models=models), scene=Local(filler))
    predictor = Predictor.load(root / recipe)
    asked = valid_requests(root / "city", 10)
    encoded = TextEncoder.encoded
    with TestClient(gateway.__serve_build_asgi_app__()) as http:
        for request in asked:
            expected = predictor.score([request])
            wanted = {row["item_id"]: row["score"] for row in expected.to_pylist()}
            assert scores(ask(http, request)) == pytest.approx(wanted, abs=1e-6)
        first = stats(http)
        assert first.requests == 10 and first.fallbacks == 0
        assert first.scene is not None and first.scene.lookups == 40 and first.scene.misses == 0
        # No text is encoded in the process that ranks.
        assert TextEncoder.encoded == encoded
        unseen = ask(http, asked[0], weather=HEATED)
        default = predictor.score(
            [asked[0].model_copy(update={"context": {**asked[0].context, "weather": HEATED}})]
        )
        assert sorted(scores(unseen).values()) == pytest.approx(
            sorted(default["score"].to_pylist()), abs=1e-6
        )
        end = time.monotonic() + 60
        while stats(http).scene.filled < 1 and time.monotonic() < end:
            time.sleep(0.02)
        counted = stats(http).scene
        assert (counted.misses, counted.queued, counted.filled, counted.failed) == (1, 1, 1, 0)
        filled = ask(http, asked[0], weather=HEATED)
        assert scores(filled) != pytest.approx(scores(unseen), abs=1e-6)
        assert stats(http).scene.misses == 1
        # What was known is as it was.
        for request in asked[:3]:
            expected = predictor.score([request])["score"].to_pylist()
            assert sorted(scores(ask(http, request)).values()) == pytest.approx(
                sorted(expected), abs=1e-6
            )
    # The next server finds the value in the table.
    again = SceneTexts(Scene(table=root / f"filled-{recipe}"), root / recipe)
    sentence = Sentence("weather", "scene.weather@1", f"The weather is {HEATED}.", {})
    before = TextEncoder.encoded
    vector = again._encode([sentence])
    assert TextEncoder.encoded == before
    np.testing.assert_allclose(vector, TextEncoder(EncoderSpec())([sentence.text]), atol=1e-6)
    table = VectorTable(root / f"filled-{recipe}")
    keys = scene_keys(again.identity, [sentence.template], [sentence.text])
    assert (table.rows(keys) >= 0).all()


def test_without_an_encoder_misses_are_counted_only(root: Path) -> None:
    gateway = Gateway(config(root, fused=True))
    (request,) = valid_requests(root / "city", 1)
    with TestClient(gateway.__serve_build_asgi_app__()) as http:
        for _ in range(2):
            ask(http, request, weather=HEATED, mealtime=None)
        found = stats(http).scene
        assert (found.misses, found.missing, found.queued) == (2, 2, 0)


def test_an_encoder_that_fails_fails_no_request(root: Path) -> None:
    class Broken:
        class encode:  # noqa: N801 - the name of the method on a handle
            @staticmethod
            async def remote(sentences: list[Sentence]) -> None:
                raise RuntimeError("gone")

    gateway = Gateway(config(root, fused=True, models={"scene": {}}), scene=Broken)
    (request,) = valid_requests(root / "city", 1)
    with TestClient(gateway.__serve_build_asgi_app__()) as http:
        assert ask(http, request, weather=HEATED).fallback is None
        end = time.monotonic() + 20
        while stats(http).scene.failed < 1 and time.monotonic() < end:
            time.sleep(0.02)
        ask(http, request, weather=HEATED)  # too soon: it costs nobody anything
        found = stats(http).scene
        assert (found.queued, found.failed, found.dropped) == (1, 1, 0)
        (asked,) = watch(gateway)._asked.values()
        assert asked.failures == 1
        asked.not_before = 0.0  # a while later
        ask(http, request, weather=HEATED)
        while stats(http).scene.failed < 2 and time.monotonic() < end:
            time.sleep(0.02)
        assert stats(http).scene.queued == 2
        assert asked.not_before > time.monotonic() + 1.0  # and later each time


def test_a_request_that_does_not_fit_is_refused_before_its_scene_is_read(root: Path) -> None:
    gateway = Gateway(config(root, fused=True))
    (request,) = valid_requests(root / "city", 1)
    body = request.model_dump(mode="json", exclude_none=True)
    body["ts"] = 5  # no time in µs
    with TestClient(gateway.__serve_build_asgi_app__()) as http:
        assert http.post("/v1/ctr/rank", json=body).status_code == 422
        assert stats(http).scene.lookups == 0


def test_a_value_of_too_many_combinations_costs_no_other_value_its_vector(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(root / "larr")
    lookup = predictor.model.scene
    sizes = [feature.cardinality for feature in predictor.codec.features]
    names = list(predictor.codec.names)
    most = max(sizes)
    monkeypatch.setattr(verbalise, "MAX_COMBINATIONS", most)
    largest = names[sizes.index(most)]
    small = next(name for name, size in zip(names, sizes, strict=True) if size < most)
    told = [
        Sentence(name, f"scene.{name}@1", f"It is new {name}.", {name: f"new {name}"})
        for name in (largest, small)
    ]
    learned = learn_values(predictor, told, np.ones((2, lookup.width), np.float32))
    assert learned == [False, True]
    assert not lookup.known(largest, told[0].text) and lookup.known(small, told[1].text)
    (request,) = valid_requests(root / "city", 1)
    predictor.score([request])


def test_what_could_not_be_stored_is_stored_with_the_next(root: Path, tmp_path: Path) -> None:
    texts = SceneTexts(Scene(table=tmp_path / "t"), root / "larr")
    first, second = (Sentence("w", "scene.w@1", f"It is {w}.", {}) for w in ("dull", "bright"))
    with TableWriter(tmp_path / "t", TableHeader(width=384)):
        texts._encode([first])
    texts._encode([second])
    keys = scene_keys(texts.identity, ["scene.w@1"] * 2, [first.text, second.text])
    found = VectorTable(tmp_path / "t").get(keys)
    np.testing.assert_allclose(
        found, TextEncoder(EncoderSpec())([first.text, second.text]), atol=1e-6
    )


def test_the_graph_is_wired_with_its_encoder(root: Path) -> None:
    for fused in (False, True):
        chosen = config(root, fused=fused, models={"scene": {"num_cpus": 0.5}})
        assert chosen.cpus == pytest.approx(1.5)
        handle = serve.run(build(chosen), name=f"scene-{fused}", _local_testing_mode=True)
        cards = handle.describe.remote().result()
        assert cards["ctr"].recipe == "ctr/larr"
        assert handle.stats.remote().result()["ctr"].scene is not None


def test_what_cannot_be_filled_is_refused_before_anything_starts(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="only a ctr model has scenes"):
        ServeConfig.model_validate(dict(models=dict(news=dict(run="n"), scene={})))
    check_runs(config(root, models={"scene": {}}))
    placebo = tiny("ctr/larr", root / "city", "larr.placebo=random_vectors", "train.max_steps=1")
    run(placebo, tmp_path / "placebo", show_progress=False)
    with pytest.raises(ArtifactError, match="is the placebo random_vectors"):
        check_runs(config(tmp_path, "placebo", models={"scene": {}}))
    plain = config(root, models={"scene": {}})
    identity = EncoderSpec().identity().model_copy(update={"weights": "0" * 64})
    monkeypatch.setattr(EncoderSpec, "identity", lambda self: identity)
    with pytest.raises(ArtifactError, match="its files have changed"):
        check_runs(plain)


def test_folders_of_a_config_file_are_made_absolute(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(json.dumps(dict(models=dict(ctr=dict(run="r"), scene=dict(table="t")))))
    models = load_config(file).models
    assert models.ctr is not None and models.ctr.run.is_absolute()
    assert models.scene is not None and models.scene.table == Path.cwd() / "t"
