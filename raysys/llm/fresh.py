"""A small causal language model of our own, random weights and a BPE of given texts: for tests,
ablations and machines without any packaged weights."""

from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.data.files import new_folder
from raysys.errors import ConfigError

END = "<|end|>"


class FreshModel(BaseModel):
    """Sizes of a Llama-style decoder. `vocab` is what the BPE may grow to on the texts.

    vLLM reads heads (width / heads) of 32, 64, 80, 96 or 128, on a CPU no smaller ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(default=2, ge=1)
    width: int = Field(default=96, ge=8)
    heads: int = Field(default=3, ge=1)
    vocab: int = Field(default=2048, ge=300)
    positions: int = Field(default=512, ge=16)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _divisible(self) -> "FreshModel":
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width={self.width} must be an even multiple of heads={self.heads}")
        return self


def write_fresh_model(folder: Path, options: FreshModel, texts: Iterable[str]) -> Path:
    """Write a plain Hugging Face folder that the spec `dir:FOLDER` opens.

    Equal options and texts give equal bytes. Input rows and LM head are tied, as in the small
    public models it stands for.

    Raises:
        ConfigError: no texts to learn the BPE from.
        DataError: `folder` exists.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    corpus = list(texts)
    if not corpus:
        raise ConfigError("no texts to learn a vocabulary from")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END,
        model_max_length=options.positions,
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=options.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = LlamaForCausalLM(config)
    with new_folder(folder) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return folder
