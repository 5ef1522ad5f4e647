"""`llm/homodistil`: thin students out of small teachers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_toys import TINY, distil, root, texts
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, BertTokenizerFast

from raysys.data.loaders import import_dataset
from raysys.errors import ArtifactError, ConfigError, DataError, RaysysError
from raysys.homodistil.rows import RowLoader, packed, sentences
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.options import resolve
from raysys.recipes.registry import recipe_of, run
from raysys.tracking.figures import LineFigure, read_figures

__all__ = ["root"]  # the fixture


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["bert", "llama"])
def test_a_student_is_thin_stock_and_near_its_teacher(
    root: Path, tmp_path: Path, teacher: str
) -> None:
    over = ["loss.attention=1.0"] if teacher == "bert" else []
    over += ["train.log_every_steps=10"]
    found = distil(root, tmp_path / "run", teacher, "ratio=0.5", "batch_rows=8", *over)
    metrics = found["metrics"]
    assert metrics["sizes"]["attn"] == 3 and metrics["sizes"]["residual"] == 24
    assert metrics["student"]["share"] < 0.6 < metrics["begin"]["share"] == 1
    assert metrics["begin"]["hidden"] == metrics["begin"]["kl"] == 0
    assert 0 < metrics["student"]["kl"] < 1
    config = json.loads((tmp_path / "run" / "hf" / "config.json").read_text())
    assert (config["hidden_size"], config["num_attention_heads"]) == (24, 3)
    told = json.loads((tmp_path / "run" / "hf" / "pruning.json").read_text())
    assert len(told["kept"]["residual"]) == 24 and len(told["kept"]["attn.1"]) == 3
    if teacher == "llama":
        net, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "run" / "hf", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert net(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    figures = read_figures(tmp_path / "run")
    assert {*figures} == {"speed", "loss-flops", "held-flops", "widths"}
    thinner = figures["widths"]
    assert isinstance(thinner, LineFigure)
    assert [series.y[-1] for series in thinner.series] == [0.5] * 3
    assert found["speed"]["student"]["mib"] < found["speed"]["teacher"]["mib"]
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    shares = [record["val/share"] for record in log if record["kind"] == "epoch"]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) > 1


def test_what_cannot_be_distilled_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"leaves 2\.4 heads; nearest is"):
        distil(root, tmp_path / "a", "bert", "ratio=0.4")
    with pytest.raises(ConfigError, match="row_tokens=64, but the teacher has 32 positions"):
        distil(root, tmp_path / "b", "bert", "row_tokens=64")
    (root / "bare").mkdir()
    (root / "bare" / "train.txt").write_text("\n".join(texts(3)))
    import_dataset("corpus", root / "bare", tmp_path / "bare")
    given = {"data": str(tmp_path / "bare"), "teacher": f"dir:{root / 'bert'}"}
    with pytest.raises(DataError, match="no documents of the valid part"):
        run(resolve(recipe_of("llm/homodistil"), None, TINY, given), tmp_path / "f")
    with pytest.raises(ConfigError, match="ratio"):
        distil(root, tmp_path / "c", "bert", "ratio=1.5")
    with pytest.raises(ConfigError, match="an earlier student is a bigger one"):
        distil(root, tmp_path / "d", "bert", "train.early_stopping={metric: loss}")
    given = {"data": str(root / "data"), "teacher": f"dir:{root / 'none'}"}
    with pytest.raises(RaysysError, match="none"):
        run(resolve(recipe_of("llm/homodistil"), None, TINY, given), tmp_path / "e")
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_rows_are_whole_and_batches_a_function_of_their_place(root: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(root / "bert")
    rows = packed(texts(20), tokenizer, 16)
    assert rows.shape[1] == 16
    ends = (rows == tokenizer.sep_token_id).sum()
    assert ends in (19, 20)
    with pytest.raises(DataError, match="less than one row of 16"):
        packed(["sea"], tokenizer, 16)
    loader = RowLoader(rows, 4, 0, tokenizer, masked=True)
    one = loader.batch(1, 2, 0, 1)
    halves = [loader.batch(1, 2, part, 2) for part in range(2)]
    assert one is not None
    joined = torch.cat([half.input_ids for half in halves])
    assert sorted(map(tuple, one.input_ids.tolist())) == sorted(map(tuple, joined.tolist()))
    assert ((one.labels != -100).sum(1) == 2).all()
    assert (one.input_ids == tokenizer.mask_token_id).any()
    again = loader.batch(1, 2, 0, 1)
    assert torch.equal(one.input_ids, again.input_ids)
    # Masks of two epochs have no more in common than chance.
    many = np.tile(rows[:1], (400, 8))[:, :128]
    wide = RowLoader(many, 4, 0, tokenizer, masked=True)
    masks = [wide.told(np.arange(400), epoch).labels != -100 for epoch in (0, 1, 5)]
    for other in masks[1:]:
        shared = float((masks[0] & other).sum()) / float(masks[0].sum())
        assert shared == pytest.approx(0.15, abs=0.02)


def test_rows_of_a_batch_are_about_equally_long_and_none_is_lost(root: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(root / "encoder")
    rng = np.random.default_rng(0)
    rows = [[7] * int(n) for n in rng.integers(3, 60, 403)]
    loader = RowLoader(rows, 8, 0, tokenizer, masked=False, together=4)
    batches = [loader.batch(1, step, 0, 1) for step in range(loader.steps_per_epoch)]
    lengths = [b.mask.sum(1).tolist() for b in batches if b is not None]
    assert sorted(n for some in lengths for n in some) == sorted(map(len, rows))
    assert [len(some) for some in lengths] == [8] * 50 + [3]
    padded = sum(len(some) * max(some) for some in lengths) / sum(map(len, rows))
    assert padded < 1.15  # in drawn order 1.6
    firsts = [some[0] for some in lengths]
    assert firsts != sorted(firsts)
    again, other = loader.batch(1, 3, 0, 1), loader.batch(2, 3, 0, 1)
    assert again is not None and other is not None and batches[3] is not None
    assert torch.equal(again.input_ids, batches[3].input_ids)
    assert not torch.equal(other.mask, again.mask)


def total(found: dict[str, Any]) -> float:
    return sum(found["metrics"]["flops"].values())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "hf" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["bert", "llama"])
def test_a_masked_student_learns_what_a_compact_one_does(
    root: Path, tmp_path: Path, teacher: str
) -> None:
    # Adam makes much of gradients that are rounding; with a larger ε they stay small.
    over = ["loss.attention=1.0", "train.eps=1e-4", "train.max_steps=24"]
    distil(root, tmp_path / "compact", teacher, *over)
    distil(root, tmp_path / "hard", teacher, *over, "mode=hard")
    small, wide = weights(tmp_path / "compact"), weights(tmp_path / "hard")
    assert small.keys() == wide.keys()
    for name, values in small.items():
        torch.testing.assert_close(wide[name], values, atol=2e-4, rtol=2e-3)
    kept = [
        json.loads((tmp_path / mode / "hf" / "pruning.json").read_text())["kept"]
        for mode in ("compact", "hard")
    ]
    assert kept[0] == kept[1]
    # Random ranking is of the teacher's units, whatever is left of them.
    found = [
        distil(root, tmp_path / f"drawn-{mode}", teacher, "score=random", f"mode={mode}", *over[1:])
        for mode in ("compact", "hard")
    ]
    kept = [
        json.loads((tmp_path / f"drawn-{mode}" / "hf" / "pruning.json").read_text())["kept"]
        for mode in ("compact", "hard")
    ]
    assert kept[0] == kept[1]
    shares = [told["metrics"]["student"]["share"] for told in found]
    assert shares[0] == shares[1] < 1


@pytest.mark.slow
def test_thinner_heads_are_resumed_and_masked_alike(root: Path, tmp_path: Path) -> None:
    over = ["attn=intra_head", "loss.attention=1.0", "train.eps=1e-4", "train.max_steps=24"]
    whole = distil(root, tmp_path / "whole", "bert", *over)
    assert whole["metrics"]["sizes"] == {"residual": 24, "ffn": 32, "attn": 4}
    distil(root, tmp_path / "cut", "bert", *over, stop_at=9)
    again = distil(root, tmp_path / "cut", "bert", *over)
    assert again["weights_sha256"] == whole["weights_sha256"]
    distil(root, tmp_path / "hard", "bert", *over, "mode=hard")
    for name, values in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "hard")[name], values, atol=2e-4, rtol=2e-3)
    config = json.loads((tmp_path / "whole" / "hf" / "config.json").read_text())
    assert (config["hidden_size"], config["num_attention_heads"]) == (24, 6)
    distil(
        root, tmp_path / "fresh", "bert", "attn=intra_head", "student=random", "train.max_steps=3"
    )
    shapes = [{n: v.shape for n, v in weights(tmp_path / r).items()} for r in ("fresh", "whole")]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_masked_students_are_resumed_with_the_same_bits(
    root: Path, tmp_path: Path, mode: str
) -> None:
    whole = distil(root, tmp_path / "whole", "llama", f"mode={mode}")
    for stop_at in (9, 12):  # at one event, and at the last
        distil(root, tmp_path / "cut", "llama", f"mode={mode}", stop_at=stop_at)
    again = distil(root, tmp_path / "cut", "llama", f"mode={mode}")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert all(
        torch.equal(values, weights(tmp_path / "cut")[name])
        for name, values in weights(tmp_path / "whole").items()
    )
    # What is zeroed may come back until the last event.
    assert (
        whole["metrics"]["sizes"]["residual"]
        == weights(tmp_path / "whole")["model.norm.weight"].numel()
    )


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "platon", "activation"])
def test_students_that_lose_all_before_the_first_step(
    root: Path, tmp_path: Path, score: str
) -> None:
    over = [f"score={score}", "calibration=3", "train.max_steps=12"]
    whole = distil(root, tmp_path / "whole", "llama", *over)
    distil(root, tmp_path / "cut", "llama", *over, stop_at=8)
    again = distil(root, tmp_path / "cut", "llama", *over)
    assert {**again, "speed": None} == {**whole, "speed": None}
    assert whole["metrics"]["student"]["share"] < 0.7
    gradually = distil(root, tmp_path / "steps", "llama", "train.max_steps=12")
    # A student that is thin from the start costs less.
    paid, other = (found["metrics"]["flops"] for found in (whole, gradually))
    assert paid["training"] < other["training"] and other["calibration"] == 0
    # Magnitudes ask no batch, activations no backward pass.
    assert (paid["calibration"] > 0) == (score != "magnitude")


@pytest.mark.slow
def test_an_uncut_encoder_is_scored_by_how_its_vectors_answer(root: Path, tmp_path: Path) -> None:
    """Its loss is 0, the gradient of that is rounding; by other batches the same units matter."""
    over = ["unit=sentences", "calibration=4", "train.max_steps=1", "ratio=0.5"]
    kept = []
    for seed in (0, 1):
        distil(root, tmp_path / str(seed), "encoder", *over, f"train.seed={seed}")
        told = json.loads((tmp_path / str(seed) / "hf" / "pruning.json").read_text())
        kept.append({*told["kept"]["ffn.0"]})
    assert len(kept[0] & kept[1]) > 0.65 * len(kept[0])  # by chance 0.5 ± 0.06
    alone = ["loss.kl=0", "loss.hidden=0", "loss.embedding=0", "loss.task=0"]
    with pytest.raises(ConfigError, match="the loss of an uncut student is 0"):
        distil(root, tmp_path / "no", "llama", "calibration=2", *alone)


@pytest.mark.slow
def test_other_students(root: Path, tmp_path: Path) -> None:
    over = ["train.max_steps=12"]
    fresh = distil(root, tmp_path / "fresh", "bert", *over, "student=random", "loss.attention=1")
    thin = distil(root, tmp_path / "thin", "bert", *over)
    shapes = [
        {n: v.shape for n, v in weights(tmp_path / name).items()} for name in ("fresh", "thin")
    ]
    assert shapes[0] == shapes[1] and fresh["metrics"]["begin"]["hidden"] > 0
    flat = distil(root, tmp_path / "flat", "bert", *over, "student=shallow", "ratio=0.5")
    config = json.loads((tmp_path / "flat" / "hf" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (1, 48)
    assert flat["metrics"]["student"]["share"] < 1 < total(flat)
    alone = ["loss.kl=0", "loss.hidden=0", "loss.embedding=0"]
    bare = distil(root, tmp_path / "bare", "bert", *over, *alone)
    assert total(bare) < total(thin)  # nobody asked the teacher


@pytest.mark.slow
def test_a_student_learns_on(root: Path, tmp_path: Path) -> None:
    first = distil(root, tmp_path / "first", "llama", "train.max_steps=12")
    here = f"student=dir:{tmp_path / 'first' / 'hf'}"
    again = distil(root, tmp_path / "again", "llama", here, "train.max_steps=12", "train.seed=1")
    # W begins anew, as the rows of the identity that are left: the task's loss is that of before.
    begun, ended = again["metrics"]["begin"], first["metrics"]["student"]
    assert begun["loss"] == pytest.approx(ended["loss"]) and begun["kl"] == pytest.approx(
        ended["kl"]
    )
    assert begun["share"] == again["metrics"]["student"]["share"] == ended["share"]
    assert again["metrics"]["student"]["loss"] < begun["loss"]
    kept = [(tmp_path / n / "hf" / "pruning.json").read_text() for n in ("first", "again")]
    assert kept[0] == kept[1]
    with pytest.raises(ConfigError, match=r"ratio=0\.333333, but .* left at 0\.5"):
        distil(root, tmp_path / "no", "llama", here, "ratio=0.33333333")
    write_fresh_model(root / "second", FreshModel(layers=2, width=48, heads=6, seed=1), texts())
    with pytest.raises(ArtifactError, match=r"pruning\.json names another teacher"):
        distil(root, tmp_path / "no", "second", here)
    distil(root, tmp_path / "flat", "llama", "student=shallow", "train.max_steps=2")
    with pytest.raises(ConfigError, match="began as shallow, and holds no units"):
        distil(root, tmp_path / "no", "llama", f"student=dir:{tmp_path / 'flat' / 'hf'}")
    with pytest.raises(ArtifactError, match="it is no student"):
        distil(root, tmp_path / "no", "second", f"student=dir:{root / 'llama'}")
    with pytest.raises(ConfigError, match="student=thick"):
        distil(root, tmp_path / "no", "second", "student=thick")


@pytest.mark.slow
def test_a_sentence_encoder_reads_sentences(root: Path, tmp_path: Path) -> None:
    over = ["unit=sentences", "loss.similarity=1.0", "loss.attention=1.0", "batch_rows=16"]
    over += ["together=8", "train.max_steps=20"]
    found = distil(root, tmp_path / "run", "encoder", *over)["metrics"]
    assert found["begin"]["similarity"] == found["begin"]["hidden"] == 0
    assert found["student"]["similarity"] > 0 and 0 < found["student"]["loss"] < 0.2
    net, told = AutoModel.from_pretrained(tmp_path / "run" / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert net.config.hidden_size == 24
    with pytest.raises(ConfigError, match="predicts tokens; use unit=packed"):
        distil(root, tmp_path / "no", "bert", "unit=sentences")


@pytest.mark.parametrize(
    ("over", "told"),
    [
        (["score=activation"], "is taken from calibration=N batches"),
        (["student=random", "mode=hard"], "loses nothing"),
        (["student=shallow", "calibration=2"], "loses nothing"),
        (["loss.similarity=1"], "set unit=sentences"),
    ],
)
def test_what_does_not_go_together_is_named(
    root: Path, tmp_path: Path, over: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        distil(root, tmp_path / "run", "llama", *over)


def test_workers_get_whole_groups_of_rows(root: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(root / "encoder")
    rows = sentences(texts(60), tokenizer, 12)
    assert max(map(len, rows)) == 12 and all(row[0] == tokenizer.cls_token_id for row in rows)
    loader = RowLoader(rows, 20, 0, tokenizer, masked=False, together=8)
    parts = [loader.batch(0, 1, part, 2) for part in range(2)]
    assert [len(part.input_ids) for part in parts] == [12, 8]  # 8 and the last 4; 8
    one = loader.batch(0, 1, 0, 1)
    width = one.input_ids.shape[1]
    both = torch.cat([
        torch.nn.functional.pad(part.input_ids, (0, width - part.input_ids.shape[1]))
        for part in parts
    ])  # fmt: skip
    order = [*range(8), *range(16, 20), *range(8, 16)]
    assert torch.equal(one.input_ids[order], both)
    with pytest.raises(DataError, match="no sentence of 3 words"):
        sentences(["sea. wind."], tokenizer, 8)
