"""Embeddings of multi-field codes and frozen vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FieldEmbedding(nn.Module):
    """One table for F fields: code c of field f is row offset_f + c. Code 0 gives zeros.

    Args:
        cardinalities: number of codes of each field, code 0 (missing) included.
        dim: width of one field.
        sparse: gradients hold the looked-up rows only.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        init_std: float = 0.1,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.fields = len(cardinalities)
        sizes = torch.tensor(cardinalities, dtype=torch.int64)
        self.offsets: Tensor
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        self.table = nn.Embedding(int(sizes.sum()), dim, sparse=sparse)
        nn.init.normal_(self.table.weight, std=init_std)

    @property
    def weight(self) -> Tensor:
        """Rows of all fields [Σ cardinalities, dim]."""
        return self.table.weight

    @property
    def width(self) -> int:
        """Width of the concatenated output, F·dim."""
        return self.fields * self.dim

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [..., F] int64 → [..., F·dim]."""
        if self.fields == 0:
            return codes.new_zeros((*codes.shape[:-1], 0), dtype=self.weight.dtype)
        rows = self.table(codes + self.offsets)
        # In place: the lookup has no use for its output any more.
        return rows.masked_fill_((codes == 0).unsqueeze(-1), 0.0).flatten(-2)


class ItemEncoder(nn.Module):
    """Items by catalogue row → [..., width]: embedded fields beside projected frozen vectors.

    `bind` gives it the codes and vectors of a catalogue, which are not part of the weights:
    new items need new codes, not new training. `freeze` computes all rows once, so that scoring
    only gathers; it is undone by `train()`.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        vector_widths: dict[str, int] | None = None,
        vector_dim: int = 32,
        *,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.fields = FieldEmbedding(cardinalities, dim, sparse=sparse)
        self.projections = nn.ModuleDict(
            {name: nn.Linear(width, vector_dim) for name, width in (vector_widths or {}).items()}
        )
        self.width = self.fields.width + vector_dim * len(self.projections)
        self.codes: Tensor
        self.table: Tensor | None
        self.register_buffer("codes", torch.zeros(0, len(cardinalities)), persistent=False)
        self.register_buffer("table", None, persistent=False)
        for name in self.projections:
            self.register_buffer(f"vectors_{name}", torch.zeros(0), persistent=False)

    def bind(self, codes: Tensor, vectors: dict[str, Tensor]) -> None:
        """Codes [2 + N, F] int64 and vectors {field: [2 + N, D]} of a catalogue."""
        device = self.fields.weight.device
        self.codes = codes.to(device)
        self.table = None
        for name in self.projections:
            setattr(self, f"vectors_{name}", vectors[name].to(device))

    def freeze(self) -> None:
        """Compute the table of all rows; `forward` then gathers from it."""
        with torch.no_grad():
            everything = torch.arange(len(self.codes), device=self.codes.device)
            self.table = self._encode(everything)

    def train(self, mode: bool = True) -> "ItemEncoder":
        """Training makes a frozen table stale."""
        if mode:
            self.table = None
        super().train(mode)
        return self

    def forward(self, rows: Tensor) -> Tensor:
        """Catalogue rows [...] int64 → [..., width]; row 0 gives zeros in every field."""
        if self.table is not None:
            return nn.functional.embedding(rows, self.table)
        if len(self.codes) <= rows.numel():
            everything = torch.arange(len(self.codes), device=rows.device)
            return nn.functional.embedding(rows, self._encode(everything))
        if not self.projections:
            return self._encode(rows)
        # A batch names the same items over and over; projecting 384 numbers per mention is
        # most of the cost of a step.
        unique, inverse = torch.unique(rows, return_inverse=True)
        return nn.functional.embedding(inverse, self._encode(unique))

    def _encode(self, rows: Tensor) -> Tensor:
        parts = [self.fields(self.codes[rows])]
        for name, projection in self.projections.items():
            vectors = getattr(self, f"vectors_{name}")[rows]
            present = (vectors != 0).any(-1, keepdim=True)
            parts.append(projection(vectors) * present.to(vectors.dtype))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]
