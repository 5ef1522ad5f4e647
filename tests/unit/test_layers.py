"""Layers against their formulas, with empty histories, padding and extreme numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raysys.layers.attention import AdditivePooling, SelfAttention, TargetAttention, masked_softmax
from raysys.layers.cross import CrossNetV2
from raysys.layers.embedding import FieldEmbedding, ItemEncoder
from raysys.layers.losses import esmm_bce, pointwise_bce, sampled_softmax
from raysys.layers.mlp import MLP, Activation, Dice, activation

SEEDS = st.integers(0, 10_000)


def close(got: torch.Tensor, expected: object, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(
        got.detach().numpy(), np.asarray(expected), rtol=tolerance, atol=tolerance
    )


@given(seed=SEEDS, act=st.sampled_from(["relu", "prelu", "sigmoid"]), rest=st.booleans())
@settings(max_examples=20)
def test_target_attention_is_the_unfactorised_activation_unit(
    seed: int, act: Activation, rest: bool
) -> None:
    torch.manual_seed(seed)
    layer = TargetAttention(6, (5, 4) if rest else (5,), act=act)
    query, keys = torch.randn(3, 2, 6), torch.randn(3, 4, 6)
    q = query[:, :, None].expand(3, 2, 4, 6)
    k = keys[:, None].expand(3, 2, 4, 6)
    expected = layer.rest(layer.act(layer.first(torch.cat([q, k, q - k, q * k], -1)))).squeeze(-1)
    close(layer.scores(query, keys), expected.detach())


def test_target_attention_pools_real_events_only() -> None:
    torch.manual_seed(0)
    query, keys = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    for softmax in (False, True):
        layer = TargetAttention(4, (8,), softmax=softmax)
        weights = layer.weights(query, keys, mask)
        pooled = layer(query, keys, mask)
        close(pooled[0], (weights[0, :, :2] @ keys[0, :2]).detach())
        assert not weights[~mask[:, None].expand_as(weights)].any()
        assert not pooled[1].any()
        if softmax:
            close(weights.sum(-1), [[1, 1, 1], [0, 0, 0]])


@given(
    values=st.lists(st.floats(-50, 50), min_size=1, max_size=6),
    keep=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_masked_softmax_by_hand(values: list[float], keep: list[bool]) -> None:
    real = keep[: len(values)]
    top = max((v for v, r in zip(values, real, strict=True) if r), default=0.0)
    mass = [math.exp(v - top) if r else 0.0 for v, r in zip(values, real, strict=True)]
    expected = [m / (sum(mass) or 1.0) for m in mass]
    close(masked_softmax(torch.tensor(values), torch.tensor(real)), expected)


@pytest.mark.parametrize("layer", [AdditivePooling(4, 3), SelfAttention(4, 2)])
def test_an_empty_history_gives_zeros_and_finite_gradients(layer: nn.Module) -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    y = layer(x, mask)
    assert not y[1].any()
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[1].any()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    scores = torch.zeros(2, 3, requires_grad=True)
    masked_softmax(scores, mask).sum().backward()
    assert torch.isfinite(scores.grad).all()


@given(seed=SEEDS, extra=st.integers(0, 4))
@settings(max_examples=20)
def test_attention_ignores_what_lies_in_padding(seed: int, extra: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 4)
    mask = torch.ones(2, 3, dtype=torch.bool)
    longer = torch.cat([x, 1e3 * torch.randn(2, extra, 4)], 1)
    wider = torch.cat([mask, torch.zeros(2, extra, dtype=torch.bool)], 1)
    for layer in (AdditivePooling(4, 3), SelfAttention(4, 2)):
        with torch.no_grad():
            plain, padded = layer(x, mask), layer(longer, wider)
        close(padded[:, :3] if padded.ndim == 3 else padded, plain)


def test_self_attention_by_hand() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(4, 2)
    x = torch.randn(1, 3, 4)
    q, k, v = layer.qkv(x)[0].chunk(3, -1)
    heads = []
    for part in (slice(0, 2), slice(2, 4)):
        weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(2), -1)
        heads.append(weights @ v[:, part])
    close(layer(x, torch.ones(1, 3, dtype=torch.bool))[0], torch.cat(heads, -1).detach())
    with pytest.raises(ValueError, match="not divisible by 3 heads"):
        SelfAttention(4, 3)


def test_dice_normalises_over_all_leading_axes() -> None:
    torch.manual_seed(0)
    layer = Dice(3)
    nn.init.constant_(layer.alpha, 0.25)
    x = torch.randn(4, 5, 3)
    flat = x.reshape(-1, 3).numpy()
    gate = 1 / (1 + np.exp(-(flat - flat.mean(0)) / flat.std(0)))
    close(layer(x).reshape(-1, 3), gate * flat + (1 - gate) * 0.25 * flat)


@pytest.mark.parametrize("act", ["relu", "prelu", "sigmoid", "dice"])
def test_activations_know_the_last_axis_only(act: Activation) -> None:
    torch.manual_seed(0)
    layer = activation(act, 3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(4, 3, 5, 3)
    close(layer(x).reshape(-1, 3), layer(x.reshape(-1, 3)).detach())


def test_cross_net_by_hand() -> None:
    net = CrossNetV2(2, 2)
    x = [1.0, -2.0]
    y = list(x)
    for index, layer in enumerate(net.layers):
        w, b = [[0.5, index + 1.0], [-1.0, 2.0]], [0.1, -0.3]
        layer.weight.data, layer.bias.data = torch.tensor(w), torch.tensor(b)
        y = [
            x[i] * (sum(w[i][j] * y[j] for j in range(2)) + b[i]) + y[i] for i in range(2)
        ]  # fmt: skip
    close(net(torch.tensor(x)), y)


def test_mlp_shapes_and_width() -> None:
    assert MLP(4, (3, 2)).width == 2
    assert MLP(4, (3,), out=1, dropout=0.5)(torch.randn(2, 5, 4)).shape == (2, 5, 1)
    assert MLP(4, ())(torch.ones(2, 4)).equal(torch.ones(2, 4))


def test_field_embedding_has_a_table_per_field_and_zeros_for_missing() -> None:
    layer = FieldEmbedding((3, 4), 2)
    table = layer.weight.detach().numpy()
    codes = torch.tensor([[[1, 3], [0, 2]], [[2, 0], [0, 0]]])
    expected = np.zeros((2, 2, 4))
    for at in np.ndindex(2, 2):
        for field, offset in enumerate((0, 3)):
            code = int(codes[at][field])
            if code:
                expected[at][2 * field : 2 * field + 2] = table[offset + code]
    close(layer(codes), expected)
    layer(codes).sum().backward()
    assert not layer.weight.grad[[0, 3]].any()  # the missing codes never learn
    assert FieldEmbedding((), 5)(torch.zeros(2, 7, 0, dtype=torch.int64)).shape == (2, 7, 0)


def bound(vectors: bool) -> ItemEncoder:
    torch.manual_seed(0)
    widths = {"title": 5, "text": 3} if vectors else {}
    encoder = ItemEncoder((6, 4), 2, widths, vector_dim=3)
    codes = torch.stack([torch.arange(6), torch.arange(6) % 4], 1)
    codes[0] = 0
    values = {name: torch.randn(6, width) for name, width in widths.items()}
    for each in values.values():
        each[:3] = 0  # padding, the unknown item, and one without a text
    encoder.bind(codes, values)
    return encoder


@pytest.mark.parametrize("vectors", [False, True])
def test_a_frozen_item_encoder_gives_the_same_rows_until_it_trains(vectors: bool) -> None:
    encoder = bound(vectors)
    rows = torch.tensor([[0, 1, 5], [5, 2, 3]])
    plain = encoder(rows)
    assert plain.shape == (2, 3, encoder.width)
    assert not plain[0, 0].any()  # padding, the bias of a projection included
    assert not plain[1, 1, 4:].any()  # an item without a text
    encoder.eval()
    encoder.freeze()
    close(encoder(rows), plain.detach(), 1e-6)
    encoder.train()
    with torch.no_grad():
        encoder.fields.weight.add_(1.0)
    assert not torch.allclose(encoder(rows)[0, 2], plain[0, 2])
    assert [name for name, _ in encoder.state_dict().items() if "codes" in name] == []


def test_gradients_reach_the_projections_of_every_mention() -> None:
    encoder = bound(True)
    rows = torch.tensor([3, 3, 4])
    encoder(rows).sum().backward()
    expected = 2 * encoder.vectors_title[3] + encoder.vectors_title[4]
    close(encoder.projections["title"].weight.grad, expected.expand(3, 5))


@given(seed=SEEDS)
@settings(max_examples=20)
def test_esmm_is_cross_entropy_of_click_and_of_both(seed: int) -> None:
    rng = np.random.default_rng(seed)
    click, order = rng.normal(0, 3, (2, 2, 4))
    clicks = rng.integers(0, 2, (2, 4))
    orders = clicks * rng.integers(0, 2, (2, 4))
    mask = rng.random((2, 4)) < 0.7
    p = 1 / (1 + np.exp(-click))
    both = p / (1 + np.exp(-order))
    losses = -(clicks * np.log(p) + (1 - clicks) * np.log(1 - p))
    losses -= orders * np.log(both) + (1 - orders) * np.log(1 - both)
    loss, weight = esmm_bce(
        *map(torch.from_numpy, (click, order, clicks * 1.0, orders * 1.0, mask))
    )
    close(loss, losses[mask].sum())
    assert weight == mask.sum()


def test_losses_survive_extreme_logits() -> None:
    logits = torch.tensor([[-90.0, 90.0, 0.0]], requires_grad=True)
    ones, mask = torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)
    for labels in (ones, 1 - ones):
        loss = esmm_bce(logits, logits, labels, labels, mask)[0]
        loss = loss + pointwise_bce(logits, labels, mask)[0]
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 2] != 0


def test_sampled_softmax_by_hand_and_without_padding() -> None:
    scores = torch.tensor([[1.0, 2.0, 7.0], [0.5, -1.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    expected = math.log(1 + math.e) + math.log(1 + math.exp(-1.5) + math.exp(-0.5))
    loss, weight = sampled_softmax(scores, mask)
    close(loss, expected)
    assert weight == 2
