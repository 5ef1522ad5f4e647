"""Small models and corpora to make thin."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted import Stopping
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raysys.data.loaders import import_dataset
from raysys.homodistil.groups import Group
from raysys.homodistil.keep import Keep
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.options import resolve
from raysys.recipes.registry import recipe_of, run
from raysys.training.reporter import InterruptedRunError

MODELS = ("bert", "llama", "qwen2")
TOKENS, LAYERS = 60, 3
WORDS = (
    "the", "sea", "wind", "boat", "sail", "harbour", "storm", "calm", "captain", "crew", "night",
    "light", "wave", "salt", "rope",
)  # fmt: skip
TINY = ["row_tokens=16", "batch_rows=4", "every=4", "held_rows=8", "train.lr=0.003",
        "train.max_steps=40", "train.epochs=9", "train.checkpoint_every_steps=7"]  # fmt: skip


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
    write_bert(folder / "encoder", bare=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(folder / "cache"))
        yield folder


def write_bert(folder: Path, *, bare: bool = False) -> None:
    """A masked language model, or bare a sentence encoder."""
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=48, num_hidden_layers=2,
        num_attention_heads=6, intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    (BertModel(config) if bare else BertForMaskedLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def distil(root: Path, out: Path, teacher: str, *over: str, stop_at: int | None = None) -> Any:
    """teacher: a folder in `root`, or a backbone's spec."""
    spec = teacher if ":" in teacher else f"dir:{root / teacher}"
    given = {"data": str(root / "data"), "teacher": spec}
    config = resolve(recipe_of("llm/homodistil"), None, [*TINY, *over], given)
    try:
        return run(config, out, show_progress=False, reporter=Stopping(stop_at)).result
    except InterruptedRunError:
        assert stop_at is not None
        return {}
