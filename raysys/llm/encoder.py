"""Texts to vectors by a transformers model in this process."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from raysys.errors import ConfigError
from raysys.llm.backbones import BackboneSpec, open_backbone
from raysys.llm.keys import VectorIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Pooling = Literal["mean", "cls", "last"]

# Wordings that models were trained with. A changed wording is a new version, never an edit:
# the name is part of every key.
TEMPLATES = {"plain@1": "{text}", "query@1": "query: {text}", "passage@1": "passage: {text}"}

# Padded tokens per forward pass: enough to keep the cores busy, small enough for their caches.
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 131_072}


class EncoderSpec(BaseModel):
    """What a text's vector depends on (`dtype`, the precision of the arithmetic, only faintly).

    max_tokens counts special tokens. dtype auto: float32 on a CPU, bfloat16 on a GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "wheel:minilm"
    pooling: Pooling = "mean"
    normalise: bool = True
    max_tokens: int = Field(default=256, ge=3)
    template: str = "plain@1"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @field_validator("backbone")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        return str(BackboneSpec.parse(value))

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str) -> str:
        if value not in TEMPLATES:
            raise ValueError(f"unknown template {value!r}; known are {', '.join(TEMPLATES)}")
        return value

    def identity(self) -> VectorIdentity:
        """The part of every key that does not depend on the text; reads no weights twice.

        Raises:
            ConfigError, ArtifactError: as `open_backbone`.
        """
        return VectorIdentity(
            weights=open_backbone(self.backbone).sha256,
            pooling=self.pooling,
            max_tokens=self.max_tokens,
            normalise=self.normalise,
            template=self.template,
        )


class TextEncoder:
    """Encodes lists of texts; a text's vector does not depend on the others in the list.

    `truncated` counts the texts that were cut to max_tokens, `texts` and `tokens` all encoded;
    `TextEncoder.encoded` those of all encoders of this process.

    Raises:
        ConfigError: max_tokens beyond the model's positions, or as `open_backbone`.
        ArtifactError: the backbone is damaged.
    """

    encoded: ClassVar[int] = 0

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        device: torch.device | str | None = None,
        tokens_per_batch: int | None = None,
    ) -> None:
        self.spec = spec
        self.backbone = open_backbone(spec.backbone)
        limit = self.backbone.max_positions
        if limit is not None and spec.max_tokens > limit:
            raise ConfigError(
                f"max_tokens={spec.max_tokens}, but {spec.backbone} has {limit} positions; "
                f"set max_tokens to {limit} or less"
            )
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(chosen)
        self.dtype = _dtype(spec, self.device)
        self.width = self.backbone.width
        self.tokens_per_batch = tokens_per_batch or _TOKENS_PER_BATCH.get(self.device.type, 4096)
        self.texts = self.tokens = self.truncated = 0

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """Loaded with the first text."""
        return self.backbone.tokenizer()

    @cached_property
    def model(self) -> "PreTrainedModel":
        """Loaded with the first text."""
        return self.backbone.model(self.device, self.dtype)

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors [N, D] float32 of N texts; zeros for a text without any token."""
        ids = self._tokens([TEMPLATES[self.spec.template].format(text=text) for text in texts])
        lengths = np.array([len(row) for row in ids], np.int64)
        out = np.zeros((len(texts), self.width), np.float32)
        for rows in length_batches(lengths, self.tokens_per_batch):
            out[rows] = self._forward([ids[row] for row in rows.tolist()])
        self.texts += len(texts)
        TextEncoder.encoded += len(texts)
        self.tokens += int(lengths.sum())
        return out

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        limit = self.spec.max_tokens
        ids: list[list[int]] = self.tokenizer(
            texts, truncation=True, max_length=limit, padding=False, return_attention_mask=False
        )["input_ids"]
        # Only a full row can have been cut, so only those are tokenised again to count.
        full = [texts[row] for row, tokens in enumerate(ids) if len(tokens) == limit]
        if full:
            whole = self.tokenizer(full, truncation=True, max_length=limit + 1, padding=False)
            self.truncated += sum(len(tokens) > limit for tokens in whole["input_ids"])
        return ids

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> npt.NDArray[np.float32]:
        """Vectors [n, D] of n token rows of at least one token each."""
        longest = max(map(len, ids))
        tokens = torch.full((len(ids), longest), self.tokenizer.pad_token_id, dtype=torch.long)
        lengths = torch.tensor([len(row) for row in ids])
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = torch.tensor(values)
        mask = torch.arange(longest) < lengths[:, None]
        # Without a mask attention takes its faster kernel; rows of one length need none.
        given = None if bool(mask.all()) else mask.long().to(self.device)
        hidden = self.model(tokens.to(self.device), attention_mask=given).last_hidden_state
        vectors = pool(hidden.float(), mask.to(self.device), self.spec.pooling)
        if self.spec.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Text vectors [B, D] from hidden [B, T, D] and mask [B, T], true for real tokens, which
    stand before the padding: their mean, the first one, or the last real one."""
    if pooling == "cls":
        return hidden[:, 0]
    lengths = mask.sum(1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return (hidden * mask[..., None]).sum(1) / lengths[:, None]


def length_batches(
    lengths: npt.NDArray[np.int64], tokens_per_batch: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Row indices batch by batch, longest first, at most `tokens_per_batch` padded tokens each
    (or one row); empty rows are left out.

    Rows of similar length share a batch, so little is padded; the longest come first, so that a
    batch too big for the memory fails at once and not at the end.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    begin = 0
    while begin < len(order):
        count = max(1, tokens_per_batch // int(lengths[order[begin]]))
        yield order[begin : begin + count]
        begin += count


def _dtype(spec: EncoderSpec, device: torch.device) -> torch.dtype:
    if spec.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if spec.dtype == "float32" else torch.bfloat16
