"""NAML on frozen sentence vectors (Wu et al., IJCAI 2019): attention over views and over clicks."""

from torch import Tensor

from raysys.data.batch import Batch
from raysys.data.features import FeatureSpace
from raysys.layers.attention import AdditivePooling
from raysys.news.views import ViewConfig, ViewRanker


class NAML(ViewRanker):
    """u = Σ_l β_l r_l by additive attention over the clicks."""

    def __init__(self, features: FeatureSpace, config: ViewConfig) -> None:
        super().__init__(features, config)
        self.pool = AdditivePooling(config.width, config.query)

    def user(self, batch: Batch) -> Tensor:
        """u [B, d]; zeros for an empty history."""
        return self.pool(self.dropout(self.items(batch.history_items)), batch.history_mask)

    def event_weights(self, batch: Batch) -> Tensor:
        """Exact parts of the score [B, C, L]: β_l·(r_l·r_c)/√d."""
        beta = self.pool.weights(self.items(batch.history_items), batch.history_mask)
        return self.likeness(batch) * beta.unsqueeze(1)
