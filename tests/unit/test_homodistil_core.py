"""The core of HomoDistil: groups, scores, schedule, masks, smaller models, distances."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raysys.errors import ConfigError
from raysys.homodistil.groups import Group, Member, groups_of
from raysys.homodistil.keep import Keep, everything, shrink, sliced
from raysys.homodistil.losses import LossWeights, Projections, distances
from raysys.homodistil.masks import mask
from raysys.homodistil.schedule import Schedule, units_left
from raysys.homodistil.scores import BETA_1, BETA_2, Scores, best, of_units
from raysys.homodistil.student import Student, targets

MODELS = ("bert", "llama", "qwen2")
TOKENS, LAYERS = 60, 3


def make(kind: str, seed: int = 0) -> Any:
    """A small model with random weights, biases and gains too."""
    torch.manual_seed(seed)
    if kind == "bert":
        config = BertConfig(
            vocab_size=TOKENS, hidden_size=48, num_hidden_layers=LAYERS, num_attention_heads=6,
            intermediate_size=64, max_position_embeddings=40, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, attn_implementation="eager",
        )  # fmt: skip
        model: Any = BertForMaskedLM(config)
    else:
        given = dict(
            vocab_size=TOKENS, hidden_size=48, num_hidden_layers=LAYERS, num_attention_heads=6,
            num_key_value_heads=3, intermediate_size=64, max_position_embeddings=40,
            attn_implementation="eager",
        )  # fmt: skip
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**given, tie_word_embeddings=True))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**given, tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(size: int = 4, length: int = 12, pad: int = 0) -> dict[str, torch.Tensor]:
    """Token ids, some of which are padding, and labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, TOKENS, (size, length), generator=generator)
    real = torch.arange(length) < torch.tensor([length, length - 3, 5, length])[:size, None]
    ids = torch.where(real, ids, 0)
    labels = torch.where(real, ids, -100)
    ids = nn.functional.pad(ids, (0, pad))
    return {
        "input_ids": ids,
        "attention_mask": nn.functional.pad(real, (0, pad)).long(),
        "labels": nn.functional.pad(labels, (0, pad), value=-100),
    }


def names_in(groups: list[Group]) -> list[str]:
    """Parameters of the groups."""
    return [member.parameter for group in groups for member in group.members]


def some(groups: list[Group], seed: int = 3, share: float = 0.6) -> Keep:
    """Random units, equally many in each layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randperm(group.size, generator=generator)[
            : max(1, round(share * group.size))
        ].sort().values
        for group in groups
    }  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_every_weight_is_in_the_groups_it_must_be_in(kind: str) -> None:
    model = make(kind)
    groups = groups_of(model)
    assert [group.name for group in groups] == [
        "residual", *(f"{name}.{n}" for n in range(LAYERS) for name in ("attn", "ffn"))
    ]  # fmt: skip
    sizes = {group.kind: group.size for group in groups}
    assert sizes == {"residual": 48, "ffn": 64, "attn": 6 if kind == "bert" else 3}
    named = {member.parameter for group in groups for member in group.members}
    left = {name for name, _ in model.named_parameters()} - named
    assert left <= {"cls.predictions.bias"}
    for group in groups:
        for member in group.members:
            shape = dict(model.named_parameters())[member.parameter].shape
            assert shape[member.dim] == group.size * member.width


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(ConfigError, match=r"GPT2Model \(model type gpt2\) cannot be thinned"):
        groups_of(GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)))
    model = make("llama")
    model.model.layers[1].mlp.extra = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"no group knows the parameter .*mlp\.extra\.weight"):
        groups_of(model)


@pytest.mark.parametrize("kind", MODELS)
def test_property_01_a_student_that_is_its_teacher_has_no_distance(kind: str) -> None:
    teacher, student = make(kind), make(kind)
    given = batch()
    more = dict(output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        a, b = student(**given, **more), teacher(**given, **more)
    assert torch.equal(a.logits, b.logits)
    found = distances(a, b, Projections(LAYERS, 48), given["attention_mask"].bool())
    assert [v.item() for v in vars(found).values()] == [0.0] * 4


def test_property_02_the_schedule() -> None:
    cubic = Schedule(ratio=1 / 3, warm_up=False)
    assert cubic.remaining(100, 1000) == pytest.approx(0.753, abs=5e-4)
    for shape in ("cubic", "linear", "exponential", "stairs", "oneshot"):
        one = Schedule(ratio=0.4, shape=shape, start=0.1, end=0.6)
        found = [one.remaining(step, 500) for step in range(501)]
        assert found[0] == found[49] == 1
        assert found[300] == found[500] == pytest.approx(0.4)
        assert all(a >= b for a, b in pairwise(found))
    quiet = Schedule(ratio=0.5)
    assert quiet.remaining(19, 1000) == 1 > quiet.remaining(20, 1000)
    with pytest.raises(ValueError, match="must lie before"):
        Schedule(ratio=0.5, start=0.8)
    neurons, heads = Group("ffn", 0, 100, ()), Group("attn", 0, 12, ())
    assert units_left(neurons, 0.5, 30) == 56 and units_left(neurons, 0.0, 30) == 30
    assert units_left(heads, 0.34, 4) == 5 and units_left(heads, 1.0, 4) == 12


@pytest.mark.parametrize("kind", MODELS)
def test_property_03_masked_is_compacted_to_the_next_adam_step(kind: str) -> None:
    hard, small, given = make(kind), make(kind), batch()
    groups = groups_of(small)
    keep = some(groups)
    mask(hard, groups, keep)
    kept = shrink(small, groups, keep)
    # The gradient of the keys' bias is rounding, which Adam with a tiny ε would make large.
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2, eps=1e-6) for m in (hard, small)]
    for _ in range(2):
        outs = []
        for model, optimizer in zip((hard, small), optimizers, strict=True):
            optimizer.zero_grad()
            out = model(**given)
            out.loss.backward()
            outs.append(out)
        torch.testing.assert_close(outs[0].logits, outs[1].logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(outs[0].loss, outs[1].loss, atol=1e-5, rtol=1e-5)
        others = dict(small.named_parameters())
        for name, parameter in hard.named_parameters():
            gathered = sliced(parameter.grad, kept.get(name, {}))
            torch.testing.assert_close(gathered, others[name].grad, atol=1e-5, rtol=1e-4)
        for optimizer in optimizers:
            optimizer.step()
        for name, parameter in hard.named_parameters():
            gathered = sliced(parameter.detach(), kept.get(name, {}))
            torch.testing.assert_close(gathered, others[name].detach(), atol=1e-4, rtol=1e-3)


def test_property_04_scores_by_hand() -> None:
    model = nn.Linear(3, 2, bias=False)
    group = Group("ffn", 0, 2, (Member("weight", 0),))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.5, 1.0]]))
    gradients = ([[2.0, 1.0, 5.0], [0.0, -2.0, 1.0]], [[1.0, 0.0, 1.0], [1.0, 1.0, -1.0]])
    scores = Scores("platon", model, ["weight"])
    mean, spread = torch.zeros(2, 3), torch.zeros(2, 3)
    for gradient in gradients:
        model.weight.grad = torch.tensor(gradient)
        now = (model.weight.detach() * model.weight.grad).abs()
        mean = BETA_1 * mean + (1 - BETA_1) * now
        spread = BETA_2 * spread + (1 - BETA_2) * (now - mean).abs()
        scores.update(model)
    found = scores.of_weights(model)["weight"]
    torch.testing.assert_close(found, mean * spread)
    rows = (mean * spread).sum(1)
    torch.testing.assert_close(of_units(group, {"weight": found}), rows / rows.mean())
    plain = Scores("sensitivity", model, ["weight"])
    plain.update(model)
    expected = (model.weight.detach() * torch.tensor(gradients[1])).abs()
    assert torch.equal(plain.of_weights(model)["weight"], expected)


def test_property_04_micro_batches_add_their_gradients() -> None:
    given = batch()
    found = []
    for parts in (1, 2):
        model = make("bert")
        for part in range(parts):
            rows = slice(part * 4 // parts, (part + 1) * 4 // parts)
            out = model(**{name: values[rows] for name, values in given.items()})
            count = (given["labels"][rows] != -100).sum()
            (out.loss * count).backward()
        scores = Scores("sensitivity", model, [n for n, _ in model.named_parameters()])
        scores.update(model)
        found.append(scores.of_weights(model))
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_property_05_a_dead_unit_goes_first_and_order_does_not_matter(kind: str) -> None:
    model = make(kind)
    groups = groups_of(model)
    weights = {name: p.detach().abs() for name, p in model.named_parameters()}
    left = {group.name: group.size - 1 for group in groups}
    dead = next(group for group in groups if group.name == "ffn.1")
    for member in dead.members:
        weights[member.parameter].movedim(member.dim, 0)[7] = 0
    keep = best(groups, weights, left)
    assert sorted(set(range(64)) - set(keep["ffn.1"].tolist())) == [7]
    # Neurons in another order: the same ones go.
    ones = best(groups, weights, {**left, "ffn.1": 40})["ffn.1"].tolist()
    turn = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for member in dead.members:
        weights[member.parameter] = weights[member.parameter].index_select(member.dim, turn)
    again = best(groups, weights, {**left, "ffn.1": 40})["ffn.1"]
    assert sorted(turn[again].tolist()) == ones
    draws = [
        best(
            groups,
            Scores("random", model, weights, seed).of_weights(model),
            {name: count // 2 for name, count in left.items()},
        )
        for seed in (4, 4, 5)
    ]
    same = [torch.equal(draws[0]["residual"], other["residual"]) for other in draws[1:]]
    assert same == [True, False]


@pytest.mark.parametrize("kind", MODELS)
def test_property_06_07_a_student_is_a_stock_model(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    groups = groups_of(model)
    heads = 4 if kind == "bert" else 2
    width = heads * 8 if kind == "bert" else 24
    left = {"residual": width, "ffn": 40, "attn": heads}
    keep = best(
        groups,
        Scores("magnitude", model, [m.parameter for g in groups for m in g.members]).of_weights(
            model
        ),
        {group.name: left[group.kind] for group in groups},
    )
    before = sum(p.numel() for p in model.parameters())
    shrink(model, groups, keep)
    assert sum(p.numel() for p in model.parameters()) < before
    config = model.config
    if kind != "bert":
        assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (
            4,
            2,
            8,
        )
    given = batch()
    with torch.no_grad():
        wanted = model(**given).logits
    model.save_pretrained(tmp_path / "student")
    cls = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    loaded, told = cls.from_pretrained(
        tmp_path / "student", output_loading_info=True, attn_implementation="eager"
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(**given).logits, wanted, atol=1e-6, rtol=1e-6)
    assert AutoModel.from_pretrained(tmp_path / "student").config.hidden_size == width


@pytest.mark.parametrize("kind", MODELS)
def test_property_08_padding_changes_no_distance(kind: str) -> None:
    teacher = make(kind)
    thin = Student(teacher, "magnitude")
    assert thin.prune({g.name: max(1, round(0.6 * g.size)) for g in thin.groups})
    student, projections, heads = thin.net, thin.projections, thin.heads()
    assert len(heads[0]) == student.config.num_attention_heads
    found = []
    for pad in (0, 5):
        given = batch(pad=pad)
        more = dict(output_hidden_states=True, output_attentions=True)
        with torch.no_grad():
            out, other = student(**given, **more), teacher(**given, **more)
        real = given["attention_mask"].bool()
        found.append(distances(out, other, projections, real, heads=heads, temperature=2.0))
    for a, b in zip(vars(found[0]).values(), vars(found[1]).values(), strict=True):
        assert float(a) > 0
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    weights = LossWeights(kl=2.0, attention=3.0)
    total = found[0].total(weights)
    assert float(total) == pytest.approx(
        2 * float(found[0].kl) + float(found[0].hidden) + 3 * float(found[0].attention)
        + float(found[0].embedding), rel=1e-5,
    )  # fmt: skip


def test_property_10_ways_of_choosing_end_in_the_same_shapes() -> None:
    shapes = set()
    steps = 40
    for score in ("magnitude", "random", "platon"):
        for shape in ("cubic", "oneshot", "stairs", "linear"):
            student = Student(make("llama"), score)
            goal = targets(student.net, 1 / 3)
            student.net(**batch()).loss.backward()
            student.scores.update(student.net)
            plan = Schedule(ratio=1 / 3, shape=shape)
            events = [
                student.prune(student.sizes(plan.remaining(step, steps), goal)) is not None
                for step in range(1, steps + 1)
            ]
            assert sum(events) == 1 if shape == "oneshot" else sum(events) > 2
            shapes.add(tuple((n, tuple(p.shape)) for n, p in student.net.named_parameters()))
    assert len(shapes) == 1


@pytest.mark.parametrize("kind", MODELS)
def test_between_two_events_widths_and_heads_need_not_agree(kind: str) -> None:
    model = make(kind)
    heads = 6 if kind == "bert" else 3
    for residual, units in ((40, heads), (40, heads - 1), (32, heads - 1), (24, heads - 2)):
        groups = groups_of(model)
        left = {"residual": residual, "ffn": 64, "attn": units}
        found = Scores("magnitude", model, names_in(groups)).of_weights(model)
        shrink(model, groups, best(groups, found, {g.name: left[g.kind] for g in groups}))
        assert model(**batch()).loss.isfinite()
        assert {g.kind: g.size for g in groups_of(model)} == left


def test_scores_follow_a_smaller_model() -> None:
    model = make("llama")
    groups = groups_of(model)
    scores = Scores("platon", model, names_in(groups))
    model(**batch()).loss.backward()
    scores.update(model)
    before = copy.deepcopy(scores.of_weights(model))
    kept = shrink(model, groups, some(groups))
    scores.slice(kept)
    for name, values in scores.of_weights(model).items():
        assert torch.equal(values, sliced(before[name], kept[name]))
        assert values.shape == dict(model.named_parameters())[name].shape


def test_layers_must_keep_equally_many() -> None:
    model = make("bert")
    groups = groups_of(model)
    keep = everything(groups)
    keep["ffn.1"] = keep["ffn.1"][:10]
    with pytest.raises(ConfigError, match=r"ffn: layers keep \[10, 64\] units"):
        shrink(model, groups, keep)


def test_targets_are_what_heads_can_reach() -> None:
    assert targets(make("bert"), 0.5) == {"residual": 24, "ffn": 32, "attn": 3}
    assert targets(make("llama"), 2 / 3) == {"residual": 32, "ffn": 48, "attn": 2}
    with pytest.raises(
        ConfigError, match=r"leaves 2.4 heads; nearest is 0.333333 \(2 of 6 heads\)"
    ):
        targets(make("bert"), 0.4)
    assert targets(make("bert"), 0.333333) == targets(make("bert"), 1 / 3)
