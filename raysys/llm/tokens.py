"""Texts to token ids, each ended by the same token: "last" is always the same symbol (§2.2)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raysys.errors import ConfigError
from raysys.llm.special_tokens import special_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


class TextTokens:
    """Token ids of texts: cut to T − 1, then the end token (the tokenizer's own `eos`)."""

    def __init__(self, tokenizer: "Tokenizer", longest: int) -> None:
        """longest: T, tokens of a text with its end token.

        Raises:
            ConfigError: the tokenizer has no end token, or is none of the fast ones.
        """
        if tokenizer.eos_token_id is None or not tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer in {tokenizer.name_or_path} has no end token or no tokenizer.json; "
                "choose a backbone that has both"
            )
        self.tokenizer = tokenizer
        self.longest = longest
        self.end = int(tokenizer.eos_token_id)
        self.pad = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.cut = 0

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, 1 to T of them; `cut` counts the texts that lost something."""
        if not texts:
            return []
        found = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        self.cut += sum(len(ids) >= self.longest for ids in found)
        return [[*ids[: self.longest - 1], self.end] for ids in found]

    def marks(self, tokens: Sequence[str]) -> set[int]:
        """Ids of special tokens."""
        return set(special_token_ids(self.tokenizer, list(tokens)))


def append_end_token(tokenizer: "Tokenizer") -> None:
    """Make the tokenizer end every text as `TextTokens` does, for whoever loads its folder.

    A chat template goes: sentence-transformers would send every text through it.
    """
    from tokenizers.processors import TemplateProcessing

    end = (tokenizer.eos_token, int(tokenizer.eos_token_id))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end[0]}", pair=f"$A {end[0]} $B {end[0]}", special_tokens=[end]
    )
    tokenizer.chat_template = None
