"""A language of numbers for the tests of HKFR: tiny causal models, random prompts and names."""

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 41
END, PAD = 0, 0


def tiny_model(seed: int = 0, attention: str = "sdpa") -> LlamaForCausalLM:
    """Two layers with grouped keys, logits far enough apart to tell candidates."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
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
