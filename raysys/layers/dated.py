"""Dated features of a user as an input: standardised, or a learned default where there are none."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DatedInputs(nn.Module):
    """T features of W numbers in all; each is there as a whole or not at all.

    Args:
        means, deviations: of each feature, of its numbers.
    """

    def __init__(
        self, means: Sequence[Sequence[float]], deviations: Sequence[Sequence[float]]
    ) -> None:
        super().__init__()
        self.widths = [len(mean) for mean in means]
        # Not among the weights: they are what was fitted before training, kept with the features.
        self.mean: Tensor
        self.deviation: Tensor
        for name, parts in (("mean", means), ("deviation", deviations)):
            flat = torch.tensor([number for part in parts for number in part])
            self.register_buffer(name, flat, persistent=False)
        self.default = nn.Parameter(torch.zeros(sum(self.widths)))

    @property
    def width(self) -> int:
        """W + T."""
        return sum(self.widths) + len(self.widths)

    def forward(self, values: Tensor) -> Tensor:
        """values [B, W], NaN where missing → [B, W + T]: the numbers, then which are known."""
        missing = values.isnan()
        known = (values - self.mean) / self.deviation
        # `where` alone would pass the gradient of NaN on.
        filled = torch.where(missing, self.default, known.nan_to_num(0.0))
        firsts = [sum(self.widths[:place]) for place in range(len(self.widths))]
        return torch.cat([filled, (~missing[:, firsts]).to(filled.dtype)], -1)
