"""Prompts to token ids, as both engines get them, and tokens to checked answers."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysys.errors import ConfigError
from raysys.llm.backbones import Backbone
from raysys.llm.engine.generate import Answer, GenerateSpec
from raysys.llm.engine.schema import fault_of_json
from raysys.llm.texts import fault_of, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt, whether it was cut, and why it cannot be answered."""

    ids: list[int]
    truncated: bool = False
    fault: str | None = None


class PromptTokens:
    """Prompts to `Prompt`s.

    Raises:
        ConfigError: a model that does not generate, more tokens than it has positions, or no room
            for a prompt beside the chat template.
    """

    def __init__(self, spec: GenerateSpec, backbone: Backbone) -> None:
        limit = backbone.max_positions
        wanted = spec.max_prompt_tokens + spec.max_new_tokens
        if not backbone.causal:
            raise ConfigError(f"{spec.backbone} is an encoder and generates no text")
        if limit is not None and wanted > limit:
            raise ConfigError(
                f"max_prompt_tokens + max_new_tokens = {wanted}, but {spec.backbone} has {limit} "
                "positions; lower one of them"
            )
        self.spec = spec
        self.tokenizer: Tokenizer = backbone.tokenizer()
        self._chat = spec.chat and bool(self.tokenizer.chat_template)
        self.ends = backbone.end_tokens | {int(self.tokenizer.eos_token_id)}
        if len(self._ids("a")) > spec.max_prompt_tokens:
            raise ConfigError(
                f"max_prompt_tokens={spec.max_prompt_tokens} leaves no room beside the chat "
                "template and the system message; raise it"
            )

    def __call__(self, prompts: Sequence[object]) -> list[Prompt]:
        """Prompts, one of each of N."""
        return [self._prompt(prompt) for prompt in prompts]

    def _prompt(self, given: object) -> Prompt:
        fault = fault_of(given)
        if fault:
            return Prompt([], fault=fault)
        text = printable(given.decode() if isinstance(given, bytes) else str(given))
        limit, ids = self.spec.max_prompt_tokens, self._ids(text)
        if len(ids) <= limit:
            return Prompt(ids)
        # The text is cut, not the template, whose end asks for the answer. What is left of the
        # text may be split into more tokens than it was cut to: take off what is still too much.
        body = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        keep = len(body)
        while len(ids) > limit and keep > 0:
            keep -= len(ids) - limit
            ids = self._ids(self.tokenizer.decode(body[: max(keep, 0)]))
        return Prompt(ids, truncated=True)

    def _ids(self, text: str) -> list[int]:
        tokenizer = self.tokenizer
        if not self._chat:
            return list(tokenizer(text)["input_ids"])
        system = [{"role": "system", "content": self.spec.system}] if self.spec.system else []
        messages = [*system, {"role": "user", "content": text}]
        worded = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(worded, add_special_tokens=False)["input_ids"])


def checked(
    spec: GenerateSpec,
    text: str,
    *,
    prompt_tokens: int,
    new_tokens: int,
    truncated: bool,
    finished: bool,
) -> Answer:
    """The answer `text`; an error if it had to be JSON and is not."""
    fault = None
    if spec.json_schema is not None:
        fault = fault_of_json(text, spec.json_schema, finished)
    kept = None if fault else text
    return Answer(kept, fault, prompt_tokens, new_tokens, truncated, finished)


def draw_seed(spec: GenerateSpec, row: int) -> int:
    """The seed of a row's draws, of 32 bits: generators on a CPU look at no more."""
    return zlib.crc32(f"{spec.seed} {row}".encode())
