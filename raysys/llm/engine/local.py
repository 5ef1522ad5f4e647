"""Generation by a transformers model in this process."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raysys.llm.encoder import compute_dtype, length_batches
from raysys.llm.engine.generate import Answer, Answers, GenerateSpec
from raysys.llm.engine.prompts import Prompt, PromptTokens, checked, draw_seed
from raysys.llm.engine.schema import grammar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS_PER_CHUNK = 64
# Padded tokens of a batch, the answers' included.
_TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 131_072}


def generate_by_transformers(
    spec: GenerateSpec, prompts: Sequence[object], first_row: int
) -> Iterator[Answers]:
    """See `raysys.llm.engine.generate`."""
    writer = Writer(spec)
    for begin in range(0, len(prompts), _ROWS_PER_CHUNK):
        yield writer(prompts[begin : begin + _ROWS_PER_CHUNK], first_row + begin)


class Writer:
    """A model that answers prompts, kept from call to call.

    Raises:
        ConfigError, ArtifactError: as `GenerateSpec.open`; see `PromptTokens`.
    """

    def __init__(self, spec: GenerateSpec) -> None:
        self.spec = spec
        self.backbone = spec.open()
        self.prompts = PromptTokens(spec, self.backbone)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = self.prompts.tokenizer
        dtype = compute_dtype(spec.dtype, self.device)
        self.model: PreTrainedModel = self.backbone.causal_model(self.device, dtype)
        self.ends = self.prompts.ends

    def __call__(self, texts: Sequence[object], first_row: int = 0) -> Answers:
        """Answers to the prompts [N]; first_row: number of the first, for its draw."""
        prompts = self.prompts(texts)
        answers = [Answer(None, prompt.fault) for prompt in prompts]
        lengths = np.array(
            [
                0 if prompt.fault else len(prompt.ids) + self.spec.max_new_tokens
                for prompt in prompts
            ],
            np.int64,
        )
        for rows in length_batches(lengths, _TOKENS_PER_BATCH[self.device.type]):
            batch = [prompts[row] for row in rows.tolist()]
            numbers = [first_row + row for row in rows.tolist()]
            for row, answer in zip(rows.tolist(), self._contained(batch, numbers), strict=True):
                answers[row] = answer
        return answers

    def _contained(self, prompts: list[Prompt], numbers: list[int]) -> Answers:
        """Answers to a batch; where it fails, to each prompt on its own."""
        try:
            return self._answers(prompts, numbers)
        except RuntimeError as error:
            if len(prompts) == 1:
                return [Answer(None, f"{type(error).__name__}: {error}", len(prompts[0].ids))]
        return [
            self._contained([prompt], [number])[0]
            for prompt, number in zip(prompts, numbers, strict=True)
        ]

    @torch.inference_mode()
    def _answers(self, prompts: list[Prompt], numbers: list[int]) -> Answers:
        longest = max(len(prompt.ids) for prompt in prompts)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(prompts), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, longest - len(prompt.ids) :] = 1
        out = self.model.generate(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=self.spec.max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=sorted(self.ends),
            logits_processor=self._processors(numbers),
        )
        new = out[:, longest:].tolist()
        return [self._answer(p, tokens) for p, tokens in zip(prompts, new, strict=True)]

    def _answer(self, prompt: Prompt, tokens: list[int]) -> Answer:
        end = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        # The token that ends an answer counts as one, as vLLM counts it.
        count = len(tokens) if end is None else end + 1
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return checked(
            self.spec,
            text,
            prompt_tokens=len(prompt.ids),
            new_tokens=count,
            truncated=prompt.truncated,
            finished=end is not None,
        )

    def _processors(self, numbers: list[int]) -> list[Any]:
        found: list[Any] = []
        if self.spec.temperature > 0:
            found.append(
                _Draw(self.spec.temperature, [draw_seed(self.spec, row) for row in numbers])
            )
        if self.spec.json_schema is not None:
            found.append(_Grammar(self.spec.json_schema, self.tokenizer, len(numbers)))
        return found


class _Draw:
    """Gumbel noise on the logits, whose maximum is then a draw from the softmax; each row has a
    generator of its own, so that the other rows of a batch do not matter."""

    def __init__(self, temperature: float, seeds: list[int]) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty(scores.shape)
        for row, generator in enumerate(self.generators):
            noise[row].exponential_(generator=generator)
        return scores / self.temperature - noise.to(scores.device).log()


class _Grammar:
    """Leaves each row only the tokens that its schema allows next."""

    def __init__(self, schema: dict[str, Any], tokenizer: Any, rows: int) -> None:
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        self.vocabulary = len(tokenizer)
        self.end = int(tokenizer.eos_token_id)
        given = from_tokenizer(tokenizer, self.vocabulary)
        rule = grammar(schema)
        self.matchers = [LLMatcher(given, rule) for _ in range(rows)]
        self.seen: int | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        from llguidance.torch import (
            allocate_token_bitmask,
            apply_token_bitmask_inplace,
            fill_next_token_bitmask,
        )

        if self.seen is not None:
            for matcher, token in zip(self.matchers, ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        self.seen = ids.shape[1]
        allowed = allocate_token_bitmask(len(ids), self.vocabulary)
        for row, matcher in enumerate(self.matchers):
            if matcher.is_stopped():
                # The JSON is complete: nothing but the end may follow.
                allowed[row] = 0
                allowed[row, self.end // 32] = 1 << self.end % 32
            else:
                fill_next_token_bitmask(matcher, allowed, row)
        scores = scores.clone()
        # Rows of the model beyond the tokenizer's are padding of the matrix and no tokens.
        scores[:, self.vocabulary :] = -torch.inf
        apply_token_bitmask_inplace(scores[:, : self.vocabulary], allowed.to(scores.device))
        return scores
