"""GradCache: vectors of any number of texts in the memory of one chunk's backward pass.

Forwards, chunks are encoded without a graph; backwards, each is encoded again, with the same
random numbers, and its gradient is handed on at once (Gao et al. 2021, arXiv 2101.06983). The
gradient is that of the plain computation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Encode = Callable[[Any], Tensor]


def encode_cached(encode: Encode, chunks: Sequence[Any], device: torch.device) -> Tensor:
    """Vectors [n, D] of all chunks; one chunk alone needs no second pass.

    Parameters of `encode` get their gradients while the result's goes backwards.
    """
    if len(chunks) == 1:
        return encode(chunks[0])
    return _Cached.apply(torch.zeros((), requires_grad=True), encode, chunks, device)


class _Cached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, handle: Tensor, encode: Encode, chunks: Sequence[Any], device: torch.device
    ) -> Tensor:
        kind = device.type
        ctx.encode, ctx.chunks, ctx.device = encode, chunks, device
        ctx.cast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        ctx.random, parts = [], []
        for chunk in chunks:
            ctx.random.append(_random(device))
            parts.append(encode(chunk))
        ctx.counts = [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        enabled, dtype = ctx.cast
        pieces = grads[0].split(ctx.counts)
        devices = [ctx.device] if ctx.device.type == "cuda" else []
        for chunk, random, grad in zip(ctx.chunks, ctx.random, pieces, strict=True):
            with (
                torch.random.fork_rng(devices=devices),
                torch.enable_grad(),
                torch.autocast(ctx.device.type, dtype=dtype, enabled=enabled),
            ):
                _set_random(random, ctx.device)
                vectors = ctx.encode(chunk)
            torch.autograd.backward(vectors, grad)
        return None, None, None, None


def _random(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_random(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
