from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from raysys.errors import ConfigError
from serve_apps.app import build, render
from serve_apps.config import Model, ServeConfig, load_config

PACKAGED = sorted((Path(__file__).parents[2] / "serve_apps" / "configs").glob("*.yaml"))


def write(folder: Path, value: object) -> Path:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"modles": {}}, "unknown key modles; did you mean models?"),
        (
            {"models": {"ctr": {"run": "r", "replica": 2}}},
            "did you mean models.ctr.replicas?",
        ),
        (
            {"models": {"ctr": {"run": "r"}}, "http": {"prot": 1}},
            "did you mean http.port?",
        ),
        ({"models": {}}, "name a run folder"),
        ({"models": {"llm": {"knowlege": "k"}}}, "did you mean models.llm.knowledge?"),
        ({"models": {"llm": {"knowledge": "k", "samples": "i"}}}, "samples: only a model is asked"),
        ({"models": {"ctr": {"run": "r", "batch": 40}}}, "at least 2 × batch = 80"),
        ({"models": {"ctr": {"run": "r"}}, "http": {"port": 99999}}, "http.port: "),
        (["models"], "expected"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, value))
    assert message in str(caught.value)
    assert "serve.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, {"models": {"ctr": {"run": "/r"}}})
    changes = ["http.port=81", "models.news.run=/n", "models.ctr.run=/other", "fused=true"]
    config = load_config(path, changes)
    assert config.http.port == 81
    assert config.models.news == Model(run=Path("/n"))
    assert config.models.ctr == Model(run=Path("/other"))
    assert config.fused
    with pytest.raises(ConfigError, match=r"did you mean http\.port"):
        load_config(path, ["http.prot=81"])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")


@given(batch=st.integers(1, 50), max_ongoing=st.integers(1, 100))
def test_batches_must_fit_twice(batch: int, max_ongoing: int) -> None:
    if max_ongoing >= 2 * batch:
        assert Model(run=Path("r"), batch=batch, max_ongoing=max_ongoing).batch == batch
    else:
        with pytest.raises(ValidationError, match="2 × batch"):
            Model(run=Path("r"), batch=batch, max_ongoing=max_ongoing)


def test_relative_runs_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(write(tmp_path, {"models": {"news": {"run": "runs/n"}}}))
    assert config.models.news is not None
    assert config.models.news.run == tmp_path / "runs/n"


@pytest.mark.parametrize(
    ("model", "absolute"),
    [
        ("runs/instruct", "{here}/runs/instruct"),
        ("dir:models/a", "dir:{here}/models/a"),
        ("dir:/models/a", "dir:/models/a"),
        ("wheel:smollm2", "wheel:smollm2"),
        ("hub:org/name@v1", "hub:org/name@v1"),
    ],
)
def test_folders_of_the_llm_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, absolute: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {"knowledge": "k", "model": model, "samples": "i"}
    llm = load_config(write(tmp_path, {"models": {"llm": told}})).models.llm
    assert llm is not None
    assert (llm.knowledge, llm.samples) == (tmp_path / "k", tmp_path / "i")
    assert llm.model == absolute.format(here=tmp_path)


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.name)
@pytest.mark.parametrize("fused", [False, True])
def test_packaged_configs_render_what_serve_accepts(path: Path, fused: bool) -> None:
    config = load_config(path).model_copy(update={"fused": fused})
    document = yaml.safe_load(render(config))
    parsed = ServeDeploySchema.model_validate(document)
    assert parsed.http_options.host == "127.0.0.1"
    # Serve passes over keys it does not know; none of ours may be among them.
    assert set(document) <= set(ServeDeploySchema.model_fields)
    (app,) = parsed.applications
    assert ServeConfig.model_validate(app.args) == config
    build(config)


def test_cpus_count_every_replica() -> None:
    models = {"ctr": {"run": "r", "replicas": 3, "num_cpus": 2}, "news": {"run": "n"}}
    config = ServeConfig.model_validate(
        {"models": models, "gateway": {"replicas": 2, "num_cpus": 0.5}}
    )
    assert config.cpus == 3 * 2 + 1 + 2 * 0.5
    assert config.model_copy(update={"fused": True}).cpus == 2 * (0.5 + 2 + 1)
