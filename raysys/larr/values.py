"""ID embeddings for vocabularies that hold more than training has met."""

import torch
from torch import Tensor, nn

from raysys.data.contexts import ContextCodec
from raysys.layers.embedding import FieldEmbedding


class TrainedValues(nn.Module):
    """Field embeddings of the values met in training, for codes of a longer vocabulary."""

    def __init__(self, inner: FieldEmbedding, trained: ContextCodec) -> None:
        super().__init__()
        self.inner = inner
        self.trained = trained
        self.width = inner.width
        self._columns: list[int] = []
        self.codes: Tensor
        self.register_buffer("codes", torch.zeros(0).long(), persistent=False)

    def adopt(self, codec: ContextCodec) -> None:
        """Codes are those of `codec` from now on."""
        tables = []
        self._columns = []
        for entry in self.trained.translator(codec).tables:
            column, table = entry if entry is not None else (0, [0])
            tables.append(torch.as_tensor(table).long())
            self._columns.append(int(column))
        longest = max((len(table) for table in tables), default=1)
        padded = [nn.functional.pad(table, (0, longest - len(table))) for table in tables]
        device = self.codes.device
        self.codes = (torch.stack(padded) if padded else torch.zeros(0, 1).long()).to(device)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [..., F'] of the adopted codec → [..., F·dim]."""
        own = [self.codes[f][codes[..., column]] for f, column in enumerate(self._columns)]
        known = torch.stack(own, -1) if own else codes[..., :0]
        vectors: Tensor = self.inner(known)
        return vectors
