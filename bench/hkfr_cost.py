"""What HKFR's language model costs: exact scores of many candidates, and tuning on packed rows.

Prompts, names and samples are drawn token ids; weights are untrained. Times only.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raysys.hkfr.prompts import Encoded
from raysys.hkfr.scoring import Scorer, in_full
from raysys.hkfr.trie import Trie
from raysys.hkfr.tuning import weighted
from raysys.llm.backbones import open_backbone
from raysys.llm.packing import Packed, PackedLoader
from raysys.options import load_yaml

AIMS = {"ratio_score_all": "at least 5", "ratio_packed": "at least 1.5"}
CONFIG = "raysys/configs/llm/instruct-small.yaml"
Figures = dict[str, Any]


def run(
    backbone: str = "own",
    candidates: int = 200,
    prompt_tokens: int = 300,
    prompts: int = 2,
    samples: int = 96,
    row_tokens: int = 512,
    batch_rows: int = 4,
    rounds: int = 5,
    threads: int = 1,
    seed: int = 0,
) -> Figures:
    """Medians over alternating rounds.

    backbone: own is the model of instruct-small.yaml. Scoring is of `prompts` prompts by all of
    `candidates` names of 1 to 5 tokens, which begin alike as names of places do: behind a cached
    prompt; by full passes over prompt and name, 32 at once; and one at a time, which is timed for
    every eighth candidate. Training is an epoch of AdamW over `samples` samples: packed,
    `batch_rows` rows of `row_tokens` in a step; and in as many steps of samples as they come,
    padded to the longest. Lengths are log-normal around a third of a row.
    """
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    model = _model(backbone, seed)
    vocabulary = int(model.config.vocab_size)
    scorer = Scorer(model, 0, 0)
    asked = [_drawn(rng, vocabulary, prompt_tokens) for _ in range(prompts)]
    names = _names(rng, vocabulary, candidates)
    encoded = _samples(rng, vocabulary, samples, row_tokens)
    scored = {
        "score_all": lambda: scorer.score_all(asked, names),
        "full": lambda: _full(scorer, asked, names),
        "full_one_by_one": lambda: [in_full(scorer, p, n) for p in asked for n in names[::8]],
    }
    ms = {name: 1000 * value / prompts for name, value in _seconds(scored, rounds).items()}
    ms["full_one_by_one"] *= candidates / len(names[::8])
    loader = PackedLoader(encoded.ids, encoded.weights, row_tokens, batch_rows, 0, seed)
    steps = range(loader.steps_per_epoch)
    packed = [loader.batch(0, step, 0, 1) for step in steps]
    parts = np.array_split(np.arange(samples), len(steps))
    padded = [Packed.of(encoded.ids, [[i] for i in p], 0, encoded.weights) for p in parts]
    epochs = {
        "packed": lambda: _train(model, packed),
        "padded": lambda: _train(model, padded),
    }
    speed = {name: loader.tokens / value for name, value in _seconds(epochs, rounds).items()}
    return {
        "bench": "hkfr-cost",
        "aims": AIMS,
        "backbone": backbone,
        "weights": sum(p.numel() for p in model.parameters()),
        "threads": threads,
        "candidates": candidates,
        "trie_nodes": len(Trie.of(names)),
        "name_tokens": sum(map(len, names)),
        "prompt_tokens": prompt_tokens,
        "ms_per_prompt": ms,
        "ratio_score_all": ms["full"] / ms["score_all"],
        "ratio_score_all_one_by_one": ms["full_one_by_one"] / ms["score_all"],
        "real_tokens_per_s": speed,
        "ratio_packed": speed["packed"] / speed["padded"],
        "row_fill": {
            name: round(loader.tokens / sum(batch.ids.numel() for batch in batches), 4)
            for name, batches in (("packed", packed), ("padded", padded))
        },
    }


def _model(backbone: str, seed: int) -> nn.Module:
    if backbone != "own":
        return open_backbone(backbone).causal_model(torch.device("cpu"), torch.float32)
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = load_yaml(Path(CONFIG))["backbone"]
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes["vocab"],
            hidden_size=sizes["width"],
            intermediate_size=4 * sizes["width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["heads"],
            max_position_embeddings=sizes["positions"],
            tie_word_embeddings=True,
        )
    ).eval()


def _drawn(rng: np.random.Generator, vocabulary: int, count: int) -> list[int]:
    return rng.integers(1, vocabulary, count).tolist()


def _names(rng: np.random.Generator, vocabulary: int, count: int) -> list[list[int]]:
    """Distinct names whose first tokens are spread as Zipf's law has it."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        first = int(min(rng.zipf(1.3), vocabulary - 1))
        found[first, *_drawn(rng, vocabulary, int(rng.integers(0, 5)))] = None
    return [list(name) for name in found]


def _samples(rng: np.random.Generator, vocabulary: int, count: int, width: int) -> Encoded:
    lengths = np.clip(rng.lognormal(np.log(width / 3), 0.6, count), 16, width).astype(int)
    ids = [rng.integers(1, vocabulary, length).astype(np.int32) for length in lengths]
    return Encoded(ids, lengths - 4)


def _train(model: nn.Module, batches: list[Packed]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model.train()
    for batch in batches:
        loss, weight = weighted(model, batch)
        optimizer.zero_grad()
        (loss / weight).backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def _full(scorer: Scorer, prompts: list[list[int]], names: list[list[int]], size: int = 32) -> None:
    """The scores without a cache: prompt, name and end in every row, right-padded."""
    order = sorted(range(len(names)), key=lambda i: len(names[i]))
    for prompt in prompts:
        for begin in range(0, len(order), size):
            texts = [[*prompt, *names[i], scorer.end] for i in order[begin : begin + size]]
            rows = Packed.of(texts, [[i] for i in range(len(texts))], scorer.pad)
            keep = rows.ids.shape[1] - len(prompt) + 1
            answer = scorer.model(input_ids=rows.ids, use_cache=False, logits_to_keep=keep)
            told = answer.logits[:, :-1].float().log_softmax(-1)
            told.gather(2, rows.ids[:, len(prompt) :, None])


def _seconds(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median time of each arm; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, work in arms.items():
            begin = time.perf_counter()
            work()
            if turn:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}
