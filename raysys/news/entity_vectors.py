"""Entity vectors: those shipped with the data, else one per type beside a hashed one."""

import torch
from torch import Tensor, nn

from raysys.news.entities import EntityFit, EntityOptions, EntityTable


class EntityVectors(nn.Module):
    """Entity rows [...] → e [..., d_e]; zeros for row 0.

    The shipped table learns too if `tuned`, but not in its first `frozen_steps` calls of the loss.
    """

    def __init__(self, options: EntityOptions, fitted: EntityFit) -> None:
        super().__init__()
        self.types, self.count = fitted.types, options.buckets
        self.frozen_steps = fitted.frozen_steps
        width = fitted.entity_width
        # An embedding, so that no weight decay reaches rows that are not read.
        self.tuned = options.tuned and options.vectors == "shipped"
        none = torch.zeros(1 + fitted.entities, width)
        self.shipped = nn.Embedding.from_pretrained(none, freeze=not self.tuned)
        self.by_type = nn.Embedding(1 + len(fitted.types), width)
        self.hashed = nn.Embedding(options.buckets, width)
        for table in (self.by_type, self.hashed):
            nn.init.normal_(table.weight, std=0.1)
        # Counts with the weights, so that a resumed run opens the table at the same step.
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.type_of: Tensor
        self.bucket_of: Tensor
        self.has: Tensor
        self.table: Tensor | None
        self.register_buffer("type_of", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("bucket_of", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("has", torch.zeros(0, dtype=torch.bool), persistent=False)
        self.register_buffer("table", None, persistent=False)

    def bind(self, table: EntityTable) -> None:
        """Take codes and shipped vectors; a tuned table that was loaded keeps what it learned."""
        device = self.by_type.weight.device
        self.table = None
        self.type_of = torch.from_numpy(table.type_codes(self.types)).to(device)
        self.bucket_of = torch.from_numpy(table.buckets(self.count)).to(device)
        shipped = torch.tensor(table.vectors).to(device)
        self.has = (shipped != 0).any(1)
        if not self.tuned or not self.shipped.weight.detach().any():
            with torch.no_grad():
                self.shipped.weight.copy_(shipped)

    def freeze(self) -> None:
        """Compute all rows once."""
        with torch.no_grad():
            everything = torch.arange(len(self.type_of), device=self.type_of.device)
            self.table = self._encode(everything)

    def train(self, mode: bool = True) -> "EntityVectors":
        """Training makes a frozen table stale."""
        if mode:
            self.table = None
        super().train(mode)
        return self

    def step(self, training: bool) -> None:
        """Count a call of the loss."""
        if training:
            self.steps += 1

    def forward(self, entities: Tensor) -> Tensor:
        """Entity rows [...] int64 → [..., d_e]."""
        if self.table is not None:
            return nn.functional.embedding(entities, self.table)
        return self._encode(entities)

    def _encode(self, entities: Tensor) -> Tensor:
        shipped = self.shipped(entities)
        if int(self.steps) < self.frozen_steps:
            shipped = shipped.detach()
        own = self.by_type(self.type_of[entities]) + self.hashed(self.bucket_of[entities])
        found = torch.where(self.has[entities].unsqueeze(-1), shipped, own)
        return found * (entities != 0).unsqueeze(-1).to(found.dtype)
