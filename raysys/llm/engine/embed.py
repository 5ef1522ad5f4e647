"""Texts to vectors by either engine."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.llm.encoder import EncoderSpec, TextEncoder, open_encoder
from raysys.llm.engine.choice import Engine, Resources, choose
from raysys.llm.texts import fault_of

ROWS_PER_CHUNK = 1024


@dataclass(frozen=True)
class Vectors:
    """Answers to the next n texts of a job.

    values [n, D] float32, zeros where there is none; faults: row of the n -> why it has none;
    truncated: how many were cut to max_tokens.
    """

    values: npt.NDArray[np.float32]
    faults: dict[int, str] = field(default_factory=dict)
    truncated: int = 0


def embed(
    spec: EncoderSpec,
    texts: pa.Array,
    *,
    engine: Engine = "auto",
    resources: Resources | None = None,
) -> Iterator[Vectors]:
    """Vectors of the texts [N], in order, in chunks of any size that add up to N.

    Raises:
        ConfigError, ArtifactError: as `open_encoder` and `choose`, or max_tokens beyond the
            model's positions.
        RaysysError: the engine died again and again.
    """
    if not len(texts):
        return
    if choose(engine, open_encoder(spec), "embed", len(texts)) == "transformers":
        yield from _by_transformers(spec, texts)
        return
    # Only here, because Ray takes seconds to import.
    from raysys.llm.engine.vllm_embed import embed_by_vllm

    yield from embed_by_vllm(spec, texts, resources or Resources())


def _by_transformers(spec: EncoderSpec, texts: pa.Array) -> Iterator[Vectors]:
    encoder = TextEncoder(spec)
    for begin in range(0, len(texts), ROWS_PER_CHUNK):
        given = texts.slice(begin, ROWS_PER_CHUNK).to_pylist()
        faults = {row: fault for row, text in enumerate(given) if (fault := fault_of(text))}
        cut = encoder.truncated
        values = np.zeros((len(given), encoder.width), np.float32)
        good = [row for row in range(len(given)) if row not in faults]
        values[good], failed = _contained(encoder, [given[row] for row in good])
        faults |= {good[row]: fault for row, fault in failed.items()}
        yield Vectors(values, faults, encoder.truncated - cut)


def _contained(encoder: TextEncoder, texts: list[str]) -> tuple[Any, dict[int, str]]:
    """Vectors [n, D] of n texts; where the batch fails, each text on its own."""
    try:
        return encoder(texts), {}
    except RuntimeError as error:
        if len(texts) == 1:
            zeros = np.zeros((1, encoder.width), np.float32)
            return zeros, {0: f"{type(error).__name__}: {error}"}
    values, faults = np.zeros((len(texts), encoder.width), np.float32), {}
    for row, text in enumerate(texts):
        values[row : row + 1], failed = _contained(encoder, [text])
        if failed:
            faults[row] = failed[0]
    return values, faults
