"""Property 9 of HKFR, for vLLM: an adapter, merged or apart, is the same model to both engines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hkfr_language import FOODS, planted_samples, write_samples

from raysys.hkfr.answering import open_instructed
from raysys.hkfr.prompts import Prompts
from raysys.hkfr.scoring import Scorer
from raysys.llm.backbones import Backbone, open_backbone
from raysys.llm.tokens import TextTokens
from raysys.options import resolve
from raysys.recipes.registry import recipe_of, run

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
OPTIONS = [
    # Heads of 32, which vLLM reads on a CPU.
    "backbone={layers: 2, width: 64, heads: 2, vocab: 400}", "max_tokens=96", "row_tokens=96",
    "batch_rows=6", "train.lr=0.01", "train.max_steps=30", "tuning.method=lora",
    "tuning.lora={rank: 4, dropout: 0.0, targets: attention}",
]  # fmt: skip


def vllm_scores(model: str, adapter: str | None, asked: list[tuple[list[int], int]]) -> list[float]:
    """log p of the last tokens of each text, given the first so many, as vLLM has it.

    Each token by a request of its own: with adapters on a CPU it has none of a prompt's tokens.
    """
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora = dict(enable_lora=True, max_lora_rank=8) if adapter else {}
    engine = LLM(
        model, dtype="float32", enforce_eager=True, max_model_len=128, max_logprobs=-1, **lora
    )
    steps = [(n, ids, at) for n, (ids, begin) in enumerate(asked) for at in range(begin, len(ids))]
    answers = engine.generate(
        [{"prompt_token_ids": ids[:at]} for _, ids, at in steps],
        SamplingParams(max_tokens=1, temperature=0, logprobs=-1),
        lora_request=LoRARequest("tuned", 1, adapter) if adapter else None,
        use_tqdm=False,
    )
    total = [0.0] * len(asked)
    for (n, ids, at), answer in zip(steps, answers, strict=True):
        total[n] += answer.outputs[0].logprobs[0][ids[at]].logprob
    return total


def in_a_process(model: Path, adapter: Path | None, asked: Any, out: Path) -> np.ndarray:
    """`vllm_scores` in a process of its own, which an engine wants to have."""
    given = json.dumps([str(model), adapter and str(adapter), asked, str(out)])
    code = (
        "import json, pathlib, sys, test_hkfr_vllm as t\n"
        "*given, out = json.loads(sys.argv[1])\n"
        "pathlib.Path(out).write_text(json.dumps(t.vllm_scores(*given)))"
    )
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, str(Path(__file__).parent)])),
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, given], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.array(json.loads(out.read_text()))


def test_property_09_vllm_scores_the_adapter_merged_and_apart_as_we_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    data = write_samples(tmp_path / "samples")
    for name, save in (("merged", "merged"), ("apart", "adapter")):
        options = [*OPTIONS, f"tuning.save={save}"]
        config = resolve(recipe_of("llm/instruct"), None, options, {"data": str(data)})
        run(config, tmp_path / name, show_progress=False)
    backbone, longest = open_instructed(str(tmp_path / "merged"))
    tokens = TextTokens(backbone.tokenizer(), longest)
    prompts = Prompts(tokens)
    told = [
        prompts.prompt(row["knowledge"], row["instruction"], 20)
        for row in planted_samples(4)
        if row["task"] == "category"
    ]
    names = [prompts.name(food) for food in FOODS]

    def ours(model: Backbone) -> np.ndarray:
        loaded = model.causal_model(torch.device("cpu"), torch.float32)
        return Scorer(loaded, tokens.end, tokens.pad).score_all(told, names).numpy().ravel()

    apart = tmp_path / "apart"
    wanted = ours(backbone)
    assert np.abs(ours(open_backbone(f"dir:{apart / 'hf'}")) - wanted).max() > 0.1
    np.testing.assert_allclose(ours(open_instructed(str(apart))[0]), wanted, atol=1e-3)
    asked = [([*p, *name, tokens.end], len(p)) for p in told for name in names]
    for model, adapter in ((backbone.path, None), (apart / "hf", apart / "adapter")):
        found = in_a_process(model, adapter, asked, tmp_path / "scores.json")
        np.testing.assert_allclose(found, wanted, atol=2e-3)
