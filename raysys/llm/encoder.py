"""Texts to vectors by a transformers model in this process."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from torch import Tensor

from raysys.errors import ConfigError
from raysys.llm.adapters import adapter_sha256, merged_backbone
from raysys.llm.backbones import Backbone, BackboneSpec, open_backbone
from raysys.llm.heads import Head, project
from raysys.llm.keys import VectorIdentity
from raysys.llm.texts import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Pooling = Literal["mean", "cls", "last"]
Dtype = Literal["auto", "float32", "bfloat16"]

# Wordings that models were trained with. A changed wording is a new version, never an edit:
# the name is part of every key.
TEMPLATES = {"plain@1": "{text}", "query@1": "query: {text}", "passage@1": "passage: {text}"}

# Padded tokens per forward pass: enough to keep the cores busy, small enough for their caches.
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 131_072}


class EncoderSpec(BaseModel):
    """What a text's vector depends on (`dtype`, the precision of the arithmetic, only faintly).

    adapter: folder of a LoRA adapter for the backbone. head: whether the dense layers that a
    backbone's folder may have beside it (see `raysys.llm.heads`) are applied. max_tokens counts
    special tokens. dtype auto: float32 on a CPU, bfloat16 on a GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "wheel:minilm"
    adapter: str | None = None
    pooling: Pooling = "mean"
    head: bool = True
    normalise: bool = True
    max_tokens: int = Field(default=256, ge=3)
    template: str = "plain@1"
    dtype: Dtype = "auto"

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

    @model_serializer(mode="wrap")
    def _serialise(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if info.context and info.context.get("identity"):
            # Where a folder lies does not change what is learned from its vectors; its bytes do.
            if BackboneSpec.parse(self.backbone).scheme == "dir":
                fields["backbone"] = open_backbone(self.backbone).sha256
            if self.adapter is not None:
                fields["adapter"] = adapter_sha256(self.adapter)
        return fields

    def identity(self) -> VectorIdentity:
        """The part of every key that does not depend on the text; reads no weights twice.

        Raises:
            ConfigError, ArtifactError: as `open_backbone`.
        """
        backbone = open_backbone(self.backbone)
        head = open_head(self)
        return VectorIdentity(
            weights=backbone.sha256,
            adapter=adapter_sha256(self.adapter) if self.adapter else None,
            pooling=self.pooling,
            head=head.identity if head else None,
            max_tokens=self.max_tokens,
            normalise=self.normalise,
            template=self.template,
        )


def open_encoder(spec: EncoderSpec) -> Backbone:
    """The folder a spec's texts are encoded with: its backbone, its adapter merged into it.

    Raises:
        ConfigError, ArtifactError: as `open_backbone` and `merged_backbone`.
    """
    backbone = open_backbone(spec.backbone)
    return merged_backbone(backbone, spec.adapter) if spec.adapter else backbone


def open_head(spec: EncoderSpec) -> Head | None:
    """The dense layers that a spec's pooled vectors go through, if any."""
    return Head.of(open_backbone(spec.backbone).path) if spec.head else None


class TextTokens:
    """Texts to token ids, as every engine gets them.

    Raises:
        ConfigError: max_tokens beyond the model's positions.
    """

    def __init__(self, spec: EncoderSpec, backbone: Backbone) -> None:
        limit = backbone.max_positions
        if limit is not None and spec.max_tokens > limit:
            raise ConfigError(
                f"max_tokens={spec.max_tokens}, but {spec.backbone} has {limit} positions; "
                f"set max_tokens to {limit} or less"
            )
        self.spec = spec
        self.backbone = backbone

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """Loaded with the first text."""
        return self.backbone.tokenizer()

    def __call__(self, texts: Sequence[str]) -> tuple[list[list[int]], npt.NDArray[np.bool_]]:
        """(ids of N texts, at most max_tokens each; which [N] of them were cut to that)."""
        cut = np.zeros(len(texts), bool)
        if not len(texts):
            return [], cut
        template = TEMPLATES[self.spec.template]
        worded = [template.format(text=printable(text)) for text in texts]
        limit = self.spec.max_tokens
        ids: list[list[int]] = self.tokenizer(
            worded, truncation=True, max_length=limit, padding=False, return_attention_mask=False
        )["input_ids"]
        # Only a full row can have been cut, so only those are tokenised again to count.
        full = [row for row, tokens in enumerate(ids) if len(tokens) == limit]
        if full:
            again = [worded[row] for row in full]
            whole = self.tokenizer(again, truncation=True, max_length=limit + 1, padding=False)
            cut[full] = [len(tokens) > limit for tokens in whole["input_ids"]]
        return ids, cut


class TextEncoder:
    """Encodes lists of texts; a text's vector does not depend on the others in the list.

    `truncated` counts the texts that were cut to max_tokens, `texts` and `tokens` all encoded;
    `TextEncoder.encoded` those of all encoders of this process.

    Raises:
        ConfigError: max_tokens beyond the model's positions, or as `open_encoder`.
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
        self.backbone = open_encoder(spec)
        self.tokens_of = TextTokens(spec, self.backbone)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(chosen)
        self.dtype = compute_dtype(spec.dtype, self.device)
        self._head = open_head(spec)
        self.width = self._head.width if self._head else self.backbone.width
        self.tokens_per_batch = tokens_per_batch or _TOKENS_PER_BATCH.get(self.device.type, 4096)
        self.texts = self.tokens = self.truncated = 0

    @cached_property
    def model(self) -> "PreTrainedModel":
        """Loaded with the first text."""
        return self.backbone.model(self.device, self.dtype)

    @cached_property
    def head(self) -> "torch.nn.Sequential | None":
        """Loaded with the first text."""
        return self._head.load().to(self.device) if self._head else None

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors [N, D] float32 of N texts; zeros for a text without any token."""
        ids, cut = self.tokens_of(texts)
        lengths = np.array([len(row) for row in ids], np.int64)
        out = np.zeros((len(texts), self.width), np.float32)
        for rows in length_batches(lengths, self.tokens_per_batch):
            out[rows] = self._forward([ids[row] for row in rows.tolist()])
        self.texts += len(texts)
        TextEncoder.encoded += len(texts)
        self.tokens += int(lengths.sum())
        self.truncated += int(cut.sum())
        return out

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> npt.NDArray[np.float32]:
        """Vectors [n, D] of n token rows of at least one token each."""
        longest = max(map(len, ids))
        pad = self.tokens_of.tokenizer.pad_token_id
        tokens = torch.full((len(ids), longest), pad, dtype=torch.long)
        lengths = torch.tensor([len(row) for row in ids])
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = torch.tensor(values)
        mask = torch.arange(longest) < lengths[:, None]
        # Without a mask attention takes its faster kernel; rows of one length need none.
        given = None if bool(mask.all()) else mask.long().to(self.device)
        hidden = self.model(tokens.to(self.device), attention_mask=given).last_hidden_state
        vectors = pool(hidden.float(), mask.to(self.device), self.spec.pooling)
        return project(self.head, vectors, self.spec.normalise).cpu().numpy()


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


def compute_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if dtype == "float32" else torch.bfloat16
