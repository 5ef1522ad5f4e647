"""The language model learns with the ranker: the upper reference of §5 f, not the method."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raysys.llm.encoder import EncoderSpec, TextEncoder, pool


class LearnedSentences(nn.Module):
    """Vectors of V texts by a language model whose weights are learned.

    All V are encoded in every call, so they have to be few and the model small.

    Raises:
        ConfigError, ArtifactError: as `TextEncoder`.
    """

    def __init__(self, spec: EncoderSpec, texts: Sequence[str]) -> None:
        super().__init__()
        encoder = TextEncoder(spec, device="cpu")
        ids, _ = encoder.tokens_of(texts)
        longest = max(map(len, ids), default=0)
        pad = encoder.tokens_of.tokenizer.pad_token_id
        tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
        lengths = torch.tensor([len(row) for row in ids])
        self.spec = spec
        self.model = encoder.model
        self.head = encoder.head
        self.tokens: Tensor
        self.mask: Tensor
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("mask", torch.arange(longest) < lengths[:, None], persistent=False)
        self.requires_grad_(True)

    def forward(self) -> Tensor:
        """[V, D]."""
        hidden = self.model(self.tokens, attention_mask=self.mask.long()).last_hidden_state
        vectors = pool(hidden.float(), self.mask, self.spec.pooling)
        vectors = vectors if self.head is None else self.head(vectors)
        return nn.functional.normalize(vectors, dim=-1) if self.spec.normalise else vectors
