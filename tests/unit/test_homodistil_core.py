"""Groups, smaller models, and what is refused."""

import copy
from pathlib import Path

import pytest
import torch
from distil_toys import LAYERS, MODELS, batch, make, names_in, some
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2Model

from raysys.errors import ConfigError
from raysys.homodistil.activations import Activations
from raysys.homodistil.begin import shallow_student
from raysys.homodistil.groups import Group, Member, groups_of
from raysys.homodistil.keep import everything, shrink, sliced
from raysys.homodistil.plan import Event, Shape, training_flops
from raysys.homodistil.scores import Scores, best, of_units
from raysys.homodistil.student import targets


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
def test_between_two_events_widths_and_heads_need_not_agree(kind: str) -> None:
    model = make(kind)
    heads = 6 if kind == "bert" else 3
    for residual, units in ((40, heads), (40, heads - 1), (32, heads - 1), (24, heads - 2)):
        groups = groups_of(model)
        left = {"residual": residual, "ffn": 64, "attn": units}
        found = Scores("magnitude", model, names_in(groups)).of_units(groups, model)
        shrink(model, groups, best(found, {g.name: left[g.kind] for g in groups}))
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


@pytest.mark.parametrize("kind", MODELS)
def test_counted_flops_are_those_of_torch(kind: str) -> None:
    model = make(kind)
    given = batch()
    rows, width = given["input_ids"].shape
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=given["input_ids"])
    told = Shape.of(model).forward(width) * rows * width
    assert told == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_a_training_costs_what_its_steps_cost() -> None:
    model = make("llama")
    whole, thin = Shape.of(model), {"residual": 24, "ffn": 32, "attn": 1}
    planned = [Event(4, thin, last=True)]
    narrow = whole.at(thin, 3)
    assert (narrow.width, narrow.neurons, narrow.queries, narrow.keys) == (24, 32, 16, 8)
    given = dict(units=3, row=10, step_tokens=100)
    found = training_flops(whole, whole, planned, 10, **given)

    def token(shape: Shape) -> float:
        own = 3 * (shape.forward(10) + (LAYERS + 1) * 2 * shape.width * 48)
        return own + whole.forward(10)

    assert found == pytest.approx(100 * (4 * token(whole) + 6 * token(narrow)))
    masked = training_flops(whole, whole, planned, 10, compact=False, **given)
    assert masked == pytest.approx(1000 * token(whole)) and masked > found
    alone = training_flops(whole, whole, [], 10, taught=False, **given)
    assert alone == pytest.approx(3000 * whole.forward(10))


def test_activations_tell_what_is_used() -> None:
    model = make("bert")
    groups = groups_of(model)
    with torch.no_grad():  # neuron 3 of layer 1 and head 2 of layer 0 give nothing
        model.bert.encoder.layer[1].intermediate.dense.weight[3] = 0
        model.bert.encoder.layer[1].intermediate.dense.bias[3] = 0
        for own in ("weight", "bias"):
            getattr(model.bert.encoder.layer[0].attention.self.value, own)[16:24] = 0
    with Activations(model, groups) as found, torch.no_grad():
        model(**batch())
    assert found.sums["ffn.1"].argmin() == 3 and found.sums["ffn.1"][3] == 0
    assert found.sums["attn.0"].argmin() == 2 and found.sums["attn.0"][2] == 0
    assert (found.sums["residual"] > 0).all()


@pytest.mark.parametrize("kind", MODELS)
def test_fewer_layers_are_a_stock_model(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    net, kept = shallow_student(model, {"residual": 48, "ffn": 64, "attn": 3})
    assert kept == [0, 1, 2]
    net, kept = shallow_student(model, targets(model, 2 / 3))
    assert kept[-1] == LAYERS - 1 and len(kept) < LAYERS
    with torch.no_grad():
        wanted = net(**batch()).logits
    net.save_pretrained(tmp_path / "flat")
    again = type(model).from_pretrained(tmp_path / "flat", attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch()).logits, wanted, atol=1e-6, rtol=1e-6)
    assert len(list(model.modules())) > len(list(net.modules()))  # the teacher stays as it is


def test_how_slices_are_made_comparable() -> None:
    group = Group("ffn", 0, 3, (Member("a", 0), Member("b", 1)))
    weights = {"a": torch.tensor([[1.0], [2.0], [9.0]]), "b": torch.tensor([[300.0, 100.0, 200.0]])}
    assert of_units(group, weights, "none").tolist() == [301, 102, 209]
    assert of_units(group, weights, "rank").tolist() == [2, 1, 3]
    assert of_units(group, weights).tolist() == pytest.approx([1 / 4 + 1.5, 2 / 4 + 0.5, 9 / 4 + 1])
