"""The ten properties of HomoDistil (homodistil specification, section 6), by number."""

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from distil_toys import LAYERS, MODELS, batch, distil, make, names_in, root, some
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from raysys.errors import ConfigError
from raysys.homodistil.begin import random_student
from raysys.homodistil.groups import Attn, Group, Member, groups_of
from raysys.homodistil.keep import shrink, sliced
from raysys.homodistil.losses import LossWeights, Projections, distances
from raysys.homodistil.masks import Masks
from raysys.homodistil.plan import events
from raysys.homodistil.schedule import Schedule, units_left
from raysys.homodistil.scores import BETA_1, BETA_2, Scores, best, drawn, of_units
from raysys.homodistil.student import Student, targets

__all__ = ["root"]  # the fixture
THINNER = ("bert", "intra_head")


@pytest.mark.parametrize("kind", MODELS)
def test_property_01_a_student_that_is_its_teacher_has_no_distance(kind: str) -> None:
    teacher, student = make(kind), make(kind)
    given = batch()
    more = dict(output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        a, b = student(**given, **more), teacher(**given, **more)
    assert torch.equal(a.logits, b.logits)
    found = distances(a, b, Projections(LAYERS, 48, 48), given["attention_mask"].bool())
    assert [v.item() for v in vars(found).values()] == [0.0] * 5


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


@pytest.mark.parametrize(("kind", "attn"), [*((kind, "heads") for kind in MODELS), THINNER])
def test_property_03_masked_is_compacted_to_the_next_adam_step(kind: str, attn: Attn) -> None:
    hard, small, given = make(kind), make(kind), batch()
    groups = groups_of(small, attn)
    keep = some(groups)
    masks = Masks(hard, groups)
    masks.bind(keep)
    kept = shrink(small, groups, keep)
    # The gradient of the keys' bias is rounding, which Adam with a tiny ε would make large.
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2, eps=1e-6) for m in (hard, small)]
    for _ in range(2):
        outs = []
        for model, optimizer in zip((hard, small), optimizers, strict=True):
            masks.apply()
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


def test_property_04_scores_by_hand() -> None:
    model = nn.Linear(3, 2, bias=False)
    group = Group("ffn", 0, 2, (Member("weight", 0),))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.5, 1.0]]))
    gradients = ([[2.0, 1.0, 5.0], [0.0, -2.0, 1.0]], [[1.0, 0.0, 1.0], [1.0, 1.0, -1.0]])
    scores = Scores("platon", model, ["weight"])
    mean, spread = torch.zeros(2, 3), torch.zeros(2, 3)
    # Windows of one step; a window of two enters as its mean, early if it is asked for.
    wide = {n: Scores("sensitivity_ema", model, ["weight"], window=n) for n in (2, 3)}
    nows = []
    for gradient in gradients:
        model.weight.grad = torch.tensor(gradient)
        now = (model.weight.detach() * model.weight.grad).abs()
        mean = BETA_1 * mean + (1 - BETA_1) * now
        spread = BETA_2 * spread + (1 - BETA_2) * (now - mean).abs()
        nows.append(now)
        scores.update(model)
        for other in wide.values():
            other.update(model)
    for other in wide.values():
        expected = (1 - BETA_1) * (nows[0] + nows[1]) / 2
        torch.testing.assert_close(other.of_weights(model)["weight"], expected)
    found = scores.of_weights(model)["weight"]
    torch.testing.assert_close(found, mean * spread)
    rows = (mean * spread).sum(1)
    torch.testing.assert_close(of_units(group, {"weight": found}), rows / rows.mean())
    plain = Scores("sensitivity", model, ["weight"])
    plain.update(model)
    expected = (model.weight.detach() * torch.tensor(gradients[1])).abs()
    assert torch.equal(plain.of_weights(model)["weight"], expected)
    # PLATON's own code reads the weights behind the step.
    late = Scores("sensitivity", model, ["weight"], at="post_step")
    late.update(model, 0.5)
    with torch.no_grad():
        model.weight -= model.weight.grad
    model.weight.grad = None
    late.settle(model)
    expected = (0.5 * model.weight.detach() * torch.tensor(gradients[1])).abs()
    assert torch.equal(late.of_weights(model)["weight"], expected)


@pytest.mark.parametrize("kind", MODELS)
def test_property_05_a_dead_unit_goes_first_and_order_does_not_matter(kind: str) -> None:
    model = make(kind)
    groups = groups_of(model)
    weights = {name: p.detach().abs() for name, p in model.named_parameters()}
    left = {group.name: group.size - 1 for group in groups}
    dead = next(group for group in groups if group.name == "ffn.1")
    for member in dead.members:
        weights[member.parameter].movedim(member.dim, 0)[7] = 0
    keep = best({g.name: of_units(g, weights) for g in groups}, left)
    assert sorted(set(range(64)) - set(keep["ffn.1"].tolist())) == [7]
    # Neurons in another order: the same ones go.
    fewer = {**left, "ffn.1": 40}
    ones = best({g.name: of_units(g, weights) for g in groups}, fewer)["ffn.1"].tolist()
    turn = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for member in dead.members:
        weights[member.parameter] = weights[member.parameter].index_select(member.dim, turn)
    again = best({g.name: of_units(g, weights) for g in groups}, fewer)["ffn.1"]
    assert sorted(turn[again].tolist()) == ones
    half = {name: count // 2 for name, count in left.items()}
    draws = [best(drawn(groups, seed), half) for seed in (4, 4, 5)]
    same = [torch.equal(draws[0]["residual"], other["residual"]) for other in draws[1:]]
    assert same == [True, False]


@pytest.mark.parametrize("kind", MODELS)
def test_property_06_07_a_student_is_a_stock_model(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    groups = groups_of(model)
    heads = 4 if kind == "bert" else 2
    width = heads * 8 if kind == "bert" else 24
    left = {"residual": width, "ffn": 40, "attn": heads}
    scores = Scores("magnitude", model, names_in(groups))
    keep = best(scores.of_units(groups, model), {g.name: left[g.kind] for g in groups})
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


def test_property_06_07_thinner_heads_are_stock_ones_once_queries_are_scaled(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="llama turns pairs of dimensions of a head"):
        groups_of(make("llama"), "intra_head")
    with pytest.raises(ConfigError, match=r"0\.4 .*3\.2 dimensions of a head; nearest is 0\.375"):
        targets(make("bert"), 0.4, "intra_head")
    net = make("bert")
    goal = targets(net, 0.5, "intra_head")
    assert goal == {"residual": 24, "ffn": 32, "attn": 4}
    student, given = Student(net, 48, "random", attn="intra_head"), batch()
    student.prune({"residual": 40, "ffn": 48, "attn": 6}, last=False)
    student.prune(goal, last=True)
    with torch.no_grad():
        before = student.net(**given).logits
        student.finish()
        stock, told = AutoModelForMaskedLM.from_pretrained(
            _saved(student.net, tmp_path), output_loading_info=True, attn_implementation="eager"
        )
        after = stock.eval()(**given).logits
    assert not told["missing_keys"] and not told["unexpected_keys"]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert (stock.config.num_attention_heads, stock.config.hidden_size) == (6, 24)
    # Queries and keys lost the same dimensions, values and outputs theirs, of the teacher's heads.
    assert {student.kept[f"attn.1.qk.{head}"].numel() for head in range(6)} == {4}
    layer, whole = student.net.bert.encoder.layer[1], make("bert").bert.encoder.layer[1]
    for head in range(6):
        rows = student.kept[f"attn.1.qk.{head}"] + 8 * head
        sides = (layer.attention.self.key.weight, whole.attention.self.key.weight)
        kept = sides[1][rows][:, student.kept["residual"]]
        assert torch.equal(sides[0][4 * head : 4 * head + 4], kept)


def _saved(net: nn.Module, folder: Path) -> Path:
    net.save_pretrained(folder / "hf")
    return folder / "hf"


@pytest.mark.parametrize("kind", MODELS)
def test_property_08_padding_changes_no_distance(kind: str) -> None:
    teacher = make(kind)
    thin = Student(make(kind), 48, "magnitude")
    heads_left = 4 if kind == "bert" else 2
    assert thin.prune({"residual": 29, "ffn": 38, "attn": heads_left}, last=True)
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
    for (name, a), b in zip(vars(found[0]).items(), vars(found[1]).values(), strict=True):
        assert float(a.detach()) > 0 or name == "similarity"
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    weights = LossWeights(kl=2.0, attention=3.0)
    kl, hidden, attention, embedding = (
        getattr(found[0], name).item() for name in ("kl", "hidden", "attention", "embedding")
    )
    total = found[0].total(weights)
    assert total.item() == pytest.approx(2 * kl + hidden + 3 * attention + embedding, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [9, 18])
@pytest.mark.parametrize("teacher", ["bert", "llama"])
def test_property_09_resumed_across_an_event_is_undisturbed(
    root: Path, tmp_path: Path, teacher: str, stop_at: int
) -> None:
    teacher_and = (teacher, "train.keep_checkpoints=50")
    whole = distil(root, tmp_path / "whole", *teacher_and)
    distil(root, tmp_path / "cut", *teacher_and, stop_at=stop_at)
    stopped = time.time()
    again = distil(root, tmp_path / "cut", *teacher_and)
    # What lay there was gone on from, and not begun anew.
    early = tmp_path / "cut" / "checkpoints" / "step-00000007" / "state.json"
    assert early.stat().st_mtime < stopped
    assert again["weights_sha256"] == whole["weights_sha256"]
    kept = [
        json.loads((tmp_path / name / "hf" / "pruning.json").read_text())["kept"]
        for name in ("whole", "cut")
    ]
    assert kept[0] == kept[1]


def test_property_10_ways_of_choosing_end_in_the_same_shapes() -> None:
    shapes, counts = set(), set()
    for score in ("magnitude", "random", "platon"):
        for shape in ("cubic", "oneshot", "stairs", "linear"):
            student = Student(make("llama"), 48, score)
            goal = targets(student.net, 1 / 3)
            student.net(**batch()).loss.backward()
            student.scores.update(student.net)
            planned = events(student.whole, Schedule(ratio=1 / 3, shape=shape), goal, 1, 40)
            assert len(planned) == 1 if shape == "oneshot" else len(planned) > 2
            assert [event.last for event in planned] == [False] * (len(planned) - 1) + [True]
            for event in planned:
                assert student.prune(event.sizes, last=event.last)
            shapes.add(tuple((n, tuple(p.shape)) for n, p in student.net.named_parameters()))
            counts.add(sum(p.numel() for p in student.net.parameters()))
    fresh = random_student(make("llama"), goal, 0)
    shapes.add(tuple((n, tuple(p.shape)) for n, p in fresh.named_parameters()))
    assert len(shapes) == len(counts) == 1


@pytest.mark.parametrize("attn", ["heads", "intra_head"])
@pytest.mark.parametrize("every", [1, 7])
def test_property_10_a_rounded_ratio_ends_at_whole_units(attn: Attn, every: int) -> None:
    # 2 of 6 heads, and 5 of 8 dimensions of a head.
    ratio = 0.33337 if attn == "heads" else 0.6251
    student = Student(make("bert"), 48, "random", attn=attn)
    goal = targets(student.net, ratio, attn)
    planned = events(student.whole, Schedule(ratio=ratio), goal, every, 40)
    assert planned[-1].last and planned[-1].sizes == goal and not any(e.last for e in planned[:-1])
    for event in planned:
        student.prune(event.sizes, last=event.last)
    assert student.sizes() == goal
    fresh = random_student(make("bert"), goal, 0, attn)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in student.net.parameters()]
    assert student.count() == sum(p.numel() for p in fresh.parameters())
