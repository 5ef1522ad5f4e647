"""The short-term half of LSTUR on frozen sentence vectors (An et al., ACL 2019)."""

import torch
from torch import Tensor, nn

from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.news.views import ViewConfig, ViewRanker


class LSTUR(ViewRanker):
    """u is the last state of a GRU over the clicks, oldest first.

    Without the embedding of the user's id that the paper starts the GRU with: a request is ranked
    by its history here, whoever sends it, so that users unknown in training are ranked as well.
    """

    def __init__(self, features: FeatureSpace, config: ViewConfig) -> None:
        super().__init__(features, config)
        self.gru = nn.GRU(config.width, config.width, batch_first=True)

    def user(self, batch: Batch) -> Tensor:
        """u [B, d]; zeros for an empty history."""
        mask = batch.history_mask
        count = mask.sum(1, keepdim=True)
        place = torch.arange(mask.shape[1], device=mask.device)
        # Newest first with padding behind becomes oldest first with padding behind.
        oldest_first = batch.history_items.gather(1, (count - 1 - place).clamp(min=0))
        states, _ = self.gru(self.dropout(self.items(oldest_first)))
        last = (count - 1).clamp(min=0).unsqueeze(-1).expand(-1, 1, states.shape[2])
        return states.gather(1, last).squeeze(1) * (count > 0)

    def event_weights(self, batch: Batch) -> Tensor:
        """Likeness of each click and candidate [B, C, L]; a GRU has no parts that add up to its
        score."""
        return self.likeness(batch) * batch.history_mask.unsqueeze(1)
