"""Generation by vLLM."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from raysys.llm.engine.choice import Resources
from raysys.llm.engine.generate import Answer, Answers, GenerateSpec
from raysys.llm.engine.prompts import PromptTokens, checked, draw_seed
from raysys.llm.engine.ray_vllm import ERROR, Row, vllm_rows
from raysys.llm.texts import fault_of


def generate_by_vllm(
    spec: GenerateSpec, prompts: Sequence[object], first_row: int, resources: Resources
) -> Iterator[Answers]:
    """See `raysys.llm.engine.generate`."""
    backbone = spec.open()
    ends = PromptTokens(spec, backbone).ends  # refuses what no worker should be started for
    faults = [fault_of(prompt) for prompt in prompts]
    texts = [
        None if fault else prompt if isinstance(prompt, str) else bytes(prompt).decode()  # type: ignore[call-overload]
        for prompt, fault in zip(prompts, faults, strict=True)
    ]
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "fault": pa.array(faults, pa.string()),
            "seed": pa.array([draw_seed(spec, first_row + i) for i in range(len(texts))]),
        }
    )
    sampling: dict[str, Any] = {
        "temperature": spec.temperature,
        "max_tokens": spec.max_new_tokens,
    }
    if spec.json_schema is not None:
        sampling["structured_outputs"] = {"json": json.dumps(spec.json_schema)}
    blocks = vllm_rows(
        table,
        partial(_Tokenise, spec),
        partial(_request, sampling),
        _answer,
        task="generate",
        model=str(backbone.path),
        dtype=spec.dtype,
        engine_kwargs={
            "max_model_len": spec.max_prompt_tokens + spec.max_new_tokens,
            "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        },
        resources=resources,
    )
    for rows in blocks:
        yield [_checked(spec, row, ends) for row in rows]


class _Tokenise:
    """Adds token ids and whether the prompt was cut."""

    def __init__(self, spec: GenerateSpec) -> None:
        self._tokens = PromptTokens(spec, spec.open())

    def __call__(self, block: pa.Table) -> pa.Table:
        # vLLM takes no row without tokens; the answer to one that is refused is dropped.
        filler = [min(self._tokens.ends)]
        prompts = self._tokens(block["text"].to_pylist())
        ids = [prompt.ids or filler for prompt in prompts]
        block = block.drop_columns(["text"])
        block = block.append_column("ids", pa.array(ids, pa.list_(pa.int32())))
        return block.append_column("cut", pa.array([prompt.truncated for prompt in prompts]))


def _request(sampling: Mapping[str, Any], row: Row) -> Row:
    own: dict[str, Any] = dict(sampling)
    if own["temperature"] > 0:
        own["seed"] = row["seed"]
    if row["fault"]:
        own["max_tokens"] = 1
    return {"tokenized_prompt": row["ids"], "sampling_params": own}


def _answer(row: Row) -> Row:
    tokens = row["generated_tokens"]
    return {
        "fault": row["fault"],
        "cut": row["cut"],
        "text": row["generated_text"],
        "prompt_tokens": row["num_input_tokens"],
        "new_tokens": len(tokens),
        "last": int(tokens[-1]) if len(tokens) else -1,
    }


def _checked(spec: GenerateSpec, row: Row, ends: set[int]) -> Answer:
    fault = row.get("fault") or row.get(ERROR)
    if fault:
        return Answer(None, fault)
    return checked(
        spec,
        row["text"],
        prompt_tokens=row["prompt_tokens"],
        new_tokens=row["new_tokens"],
        truncated=row["cut"],
        finished=row["last"] in ends,
    )
