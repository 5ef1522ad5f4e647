"""For the tests of HKFR: tiny causal models, random prompts and names, a folder of samples."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 41
END, PAD = 0, 0


def tiny_model(
    seed: int = 0, attention: str = "sdpa", vocabulary: int = VOCABULARY
) -> LlamaForCausalLM:
    """Two layers with grouped keys, logits far enough apart to tell candidates."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def uniform_model() -> LlamaForCausalLM:
    """Every token is as likely as any other."""
    model = tiny_model()
    nn.init.zeros_(model.lm_head.weight)
    return model


def random_texts(count: int, longest: int, seed: int, *, shared: int = 0) -> list[list[int]]:
    """Token ids without the end; shared: of so many different tokens, so that they begin alike."""
    rng = np.random.default_rng(seed)
    high = 1 + (shared or VOCABULARY - 1)
    return [rng.integers(1, high, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


@torch.no_grad()
def plain_score(model: nn.Module, prompt: list[int], name: list[int]) -> float:
    """Token after token, each by a pass of its own over all that comes before it."""
    seen, total = list(prompt), 0.0
    for token in [*name, END]:
        logits = model(input_ids=torch.tensor([seen])).logits[0, -1].double()
        total += float(logits[token] - logits.exp().sum().log())
        seen.append(token)
    return total


FOODS = {
    "thai": ["green curry", "papaya salad"],
    "pizza": ["calzone", "margherita"],
    "sushi": ["tuna maki", "eel rice"],
    "kebab": ["lamb skewer", "falafel plate"],
}


def planted_samples(users: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of samples.parquet: people order again what they have ordered most of."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        liked = list(FOODS)[user % 4]
        facts = [f"{day} March: ordered {rng.choice(FOODS[liked])}." for day in range(1, 5)]
        seen = rng.choice([food for foods in FOODS.values() for food in foods])
        facts[rng.integers(4)] = f"2 March: viewed {seen}."
        knowledge = "\n".join([f"Profile of user {user}.", *facts])
        asked = {
            "category": ("Which category will the user order next?", liked),
            "repeat": ("Will the user order something new?", ["no", "yes"][user % 2]),
        }
        for task, (instruction, answer) in asked.items():
            rows.append(
                dict(
                    sample_id=f"{user}-{task}", user_id=f"u{user:03d}", ts=None, task=task,
                    knowledge=knowledge, instruction=instruction, answer=answer,
                    split="train" if user % 5 < 3 else "valid" if user % 5 == 3 else "test",
                )
            )  # fmt: skip
    return rows


def write_samples(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """The folder that the tuning stage reads."""
    folder.mkdir()
    kinds = {name: pa.string() for name in planted_samples(1)[0]} | {"ts": pa.timestamp("us")}
    table = pa.Table.from_pylist(rows or planted_samples(), schema=pa.schema(list(kinds.items())))
    pq.write_table(table, folder / "samples.parquet")
    (folder / "vocabulary.json").write_text(json.dumps({"category": list(FOODS)}))
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write the manifest of what lies there."""
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("samples.parquet", "vocabulary.json")
    }
    manifest = {"data_card_id": "0123456789ab", "sha256": sums}
    (folder / "manifest.json").write_text(json.dumps(manifest))
