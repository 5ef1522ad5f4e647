"""`llm/homodistil`: a thin student out of a small teacher, resumed across its events."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, BertTokenizerFast

from raysys.data.loaders import import_dataset
from raysys.errors import ConfigError, DataError, RaysysError
from raysys.homodistil.rows import RowLoader, packed
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.options import resolve
from raysys.recipes.registry import recipe_of, run
from raysys.training import InProcessReporter
from raysys.training.reporter import InterruptedRunError

WORDS = (
    "the", "sea", "wind", "boat", "sail", "harbour", "storm", "calm", "captain", "crew", "night",
    "light", "wave", "salt", "rope",
)  # fmt: skip
TINY = ["row_tokens=16", "batch_rows=4", "every=4", "held_rows=8", "train.lr=0.003",
        "train.max_steps=40", "train.epochs=9", "train.checkpoint_every_steps=7"]  # fmt: skip


def texts(count: int = 160) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 12)) + f" {n % 7}" for n in range(count)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("distil")
    (folder / "src").mkdir()
    for part, some in (("train", texts()[:140]), ("valid", texts()[140:])):
        (folder / "src" / f"{part}.txt").write_text("\n\n".join(some))
    import_dataset("corpus", folder / "src", folder / "data", {"unit": "paragraph"})
    write_fresh_model(folder / "llama", FreshModel(layers=2, width=48, heads=6), texts())
    write_bert(folder / "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(folder / "cache"))
        yield folder


def write_bert(folder: Path) -> None:
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    BertForMaskedLM(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=48, num_hidden_layers=2,
            num_attention_heads=6, intermediate_size=64, max_position_embeddings=32,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)


class Stopping(InProcessReporter):
    """Asks training to stop after some steps."""

    def __init__(self, steps: int | None) -> None:
        super().__init__(show=False)
        self.left = steps

    def stop_requested(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


def distil(root: Path, out: Path, teacher: str, *over: str, stop_at: int | None = None) -> Any:
    given = {"data": str(root / "data"), "teacher": f"dir:{root / teacher}"}
    config = resolve(recipe_of("llm/homodistil"), None, [*TINY, *over], given)
    try:
        return run(config, out, show_progress=False, reporter=Stopping(stop_at)).result
    except InterruptedRunError:
        assert stop_at is not None
        return {}


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["bert", "llama"])
def test_a_student_is_thin_stock_and_near_its_teacher(
    root: Path, tmp_path: Path, teacher: str
) -> None:
    over = ["loss.attention=1.0"] if teacher == "bert" else []
    found = distil(root, tmp_path / "run", teacher, "ratio=0.5", "batch_rows=8", *over)
    metrics = found["metrics"]
    assert metrics["sizes"]["attn"] == 3 and metrics["sizes"]["residual"] == 24
    assert metrics["student"]["share"] < 0.6 < metrics["teacher"]["share"] == 1
    assert metrics["teacher"]["kl"] == metrics["teacher"]["hidden"] == 0
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
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    shares = [record["val/share"] for record in log if record["kind"] == "epoch"]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [9, 18])
@pytest.mark.parametrize("teacher", ["bert", "llama"])
def test_property_09_resumed_across_an_event_is_undisturbed(
    root: Path, tmp_path: Path, teacher: str, stop_at: int
) -> None:
    whole = distil(root, tmp_path / "whole", teacher)
    distil(root, tmp_path / "cut", teacher, stop_at=stop_at)
    again = distil(root, tmp_path / "cut", teacher)
    assert again["weights_sha256"] == whole["weights_sha256"]
    kept = [
        json.loads((tmp_path / name / "hf" / "pruning.json").read_text())["kept"]
        for name in ("whole", "cut")
    ]
    assert kept[0] == kept[1]


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
    masks = [wide.told(many, epoch, np.arange(400)).labels != -100 for epoch in (0, 1, 5)]
    for other in masks[1:]:
        shared = float((masks[0] & other).sum()) / float(masks[0].sum())
        assert shared == pytest.approx(0.15, abs=0.02)
