"""Blocks change nothing: values and gradients are those of the plain formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raysys.layers import blocked
from raysys.layers.mlp import Dice

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 5)


def alike(ours: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    """Same value, and same gradients of a random weighting of it."""
    torch.testing.assert_close(ours, plain)
    weight = torch.randn_like(plain)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(plain, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def numbers(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@given(seed=SEEDS, b=SIZES, c=SIZES, length=SIZES, d=SIZES, h=SIZES, block=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_pair_linear(seed: int, b: int, c: int, length: int, d: int, h: int, block: int) -> None:
    torch.manual_seed(seed)
    inputs = numbers((b, length, d), (b, c, h), (b, c, d), (h, d), (h, d))
    keys, offset, query, linear, cross = inputs
    matrix = linear + query.unsqueeze(2) * cross
    plain = torch.einsum("bld,bchd->blch", keys, matrix) + offset.unsqueeze(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "_BLOCK", block)
        alike(blocked.pair_linear(*inputs), plain, inputs)


@given(seed=SEEDS, n=st.integers(2, 20), h=SIZES, block=st.integers(1, 30), training=st.booleans())
@settings(max_examples=50, deadline=None)
def test_dice_is_batch_norm_and_a_gate(
    seed: int, n: int, h: int, block: int, training: bool
) -> None:
    torch.manual_seed(seed)
    inputs = numbers((n, h))
    layer, norm = Dice(h).double(), Dice(h).double().norm
    torch.nn.init.normal_(layer.alpha)
    layer.train(training)
    norm.train(training)
    inputs.append(layer.alpha)
    for _ in range(2):  # the running statistics of the first are those of the second, or unused
        gate = torch.sigmoid(norm(inputs[0]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocked, "_BLOCK", block)
            ours = layer(inputs[0])
        alike(ours, gate * inputs[0] + (1 - gate) * layer.alpha * inputs[0], inputs)
    torch.testing.assert_close(dict(layer.norm.named_buffers()), dict(norm.named_buffers()))


def test_compilers_are_given_the_plain_operations() -> None:
    keys, *rest = numbers((2, 3, 4), (2, 5, 6), (2, 5, 4), (6, 4), (6, 4))

    class Pairs(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return blocked.pair_linear(*inputs)

    program = torch.export.export(Pairs(), (keys, *rest))
    torch.testing.assert_close(program.module()(keys, *rest), blocked.pair_linear(keys, *rest))
