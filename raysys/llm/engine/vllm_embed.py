"""Embedding by vLLM."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raysys.llm.encoder import EncoderSpec, TextTokens, open_encoder, open_head
from raysys.llm.engine.choice import Resources
from raysys.llm.engine.embed import Vectors
from raysys.llm.engine.ray_vllm import ERROR, Row, vllm_rows
from raysys.llm.heads import project
from raysys.llm.texts import fault_of

# Tokens of one step. Rows are packed without padding, so this only has to keep the cores busy.
_TOKENS_PER_STEP = 4096


def embed_by_vllm(spec: EncoderSpec, texts: pa.Array, resources: Resources) -> Iterator[Vectors]:
    """See `raysys.llm.engine.embed`."""
    backbone = open_encoder(spec)
    TextTokens(spec, backbone)  # refuses what no worker should be started for
    head = open_head(spec)
    layers = head.load() if head else None
    blocks = vllm_rows(
        pa.table({"text": texts}),
        partial(_Tokenise, spec),
        _request,
        _answer,
        task="embed",
        # vLLM would apply a head that the folder names; here both engines' vectors go through the
        # same one.
        model=str(head.without() if head and not spec.adapter else backbone.path),
        dtype=spec.dtype,
        engine_kwargs={
            "max_model_len": spec.max_tokens,
            "max_num_batched_tokens": max(_TOKENS_PER_STEP, spec.max_tokens),
            "skip_tokenizer_init": True,
            # Normalised here, so that both engines do it alike.
            "pooler_config": {"pooling_type": spec.pooling.upper(), "use_activation": False},
        },
        resources=resources,
    )
    for rows in blocks:
        pooled, faults, cut = _pooled(rows, backbone.width)
        values = project(layers, torch.from_numpy(pooled), spec.normalise).numpy()
        values[list(faults)] = 0
        yield Vectors(values, faults, cut)


class _Tokenise:
    """Adds token ids, whether the text was cut, and why there are none."""

    def __init__(self, spec: EncoderSpec) -> None:
        self._tokens = TextTokens(spec, open_encoder(spec))

    def __call__(self, block: pa.Table) -> pa.Table:
        texts = block["text"].to_pylist()
        faults = [fault_of(text) for text in texts]
        given = ["" if fault else text for text, fault in zip(texts, faults, strict=True)]
        ids, cut = self._tokens(given)
        for row, tokens in enumerate(ids):
            if not tokens:
                faults[row] = faults[row] or "no token of the model's in this text"
        # vLLM takes no row without tokens; the answer to this one is dropped.
        filler = [[self._tokens.tokenizer.pad_token_id]]
        some = [
            tokens if not fault else filler[0] for tokens, fault in zip(ids, faults, strict=True)
        ]
        return pa.table(
            {
                "ids": pa.array(some, pa.list_(pa.int32())),
                "cut": pa.array(cut),
                "fault": pa.array(faults, pa.string()),
            }
        )


def _request(row: Row) -> Row:
    return {"tokenized_prompt": row["ids"]}


def _answer(row: Row) -> Row:
    # Bytes, because Arrow would make float64 lists of the numbers.
    vector = np.asarray(row["embeddings"], np.float32).tobytes()
    return {"vector": vector, "cut": row["cut"], "fault": row["fault"]}


def _pooled(rows: list[Row], width: int) -> tuple[npt.NDArray[np.float32], dict[int, str], int]:
    """(pooled vectors [n, D] of n rows, zeros where there is none; why there is none; how many
    texts were cut)."""
    values = np.zeros((len(rows), width), np.float32)
    faults: dict[int, str] = {}
    cut = 0
    for place, row in enumerate(rows):
        fault = row.get("fault") or row.get(ERROR)
        if fault:
            faults[place] = fault
        else:
            values[place] = np.frombuffer(row["vector"], np.float32)
            cut += bool(row["cut"])
    return values, faults, cut
