"""What all news rankers share: one click against sampled non-clicks, scores without probability."""

from abc import abstractmethod

from torch import Tensor

from raysys.artifacts.ranker import Ranker, Scores
from raysys.data.batch import Batch
from raysys.data.prepared import Prepared
from raysys.layers.losses import sampled_softmax


class NewsRanker(Ranker):
    """A ranker that gives scores [B, C]."""

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """Scores of all candidates [B, C]."""

    def renew(self, data: Prepared) -> None:
        """Take from another data set what the model reads of news beside features and vectors;
        its catalogue is bound already. Nothing by default.

        Raises:
            ConfigError: the model cannot.
        """

    def forward(self, batch: Batch) -> Scores:
        """Scores without probabilities: a softmax over sampled slates is not calibrated."""
        return Scores(self.scores(batch), None, None)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Softmax cross-entropy of the click in column 0 against the sampled non-clicks."""
        return sampled_softmax(self.scores(batch), batch.candidate_mask)
