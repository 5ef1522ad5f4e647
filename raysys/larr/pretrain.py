"""Stage 1, continual pretraining: L = −Σ_t w_t log p(x_t | x_<t) on texts of places (§2.1)."""

import numpy as np
import torch
from torch import Tensor, nn

from raysys.larr.corpus import Documents
from raysys.llm.packing import Packed, pack, passes, token_losses
from raysys.training import World


class PretrainTask:
    """A causal language model, its loss, and the perplexity of held-out menus."""

    def __init__(
        self, model: nn.Module, held: Documents, width: int, pad: int, rows_per_pass: int
    ) -> None:
        """held: texts of unseen places, for validation; width: tokens of a row; rows_per_pass: in
        validation."""
        self.model = model
        self._held = held
        self._width, self._pad, self._step = width, pad, rows_per_pass

    def loss(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """(Σ w · −log p, Σ w) over the batch."""
        assert batch.weights is not None
        weights = batch.weights[:, 1:]
        return (token_losses(self.model, batch) * weights).sum(), weights.sum()

    def validate(self, world: World) -> dict[str, float]:
        """`perplexity` of the texts of validation."""
        return self.perplexity(self._held, world)

    @torch.no_grad()
    def perplexity(self, held: Documents, world: World) -> dict[str, float]:
        """`menu_perplexity`: exp of the mean −log p of the words of told fields, given what comes
        before them; `text_perplexity`: of all tokens but the first. Empty without held-out
        places."""
        self.model.to(world.device).eval()
        words, texts = self._nll(held, world)
        if not words[1]:
            return {}
        return {
            "menu_perplexity": float(np.exp(words[0] / words[1])),
            "text_perplexity": float(np.exp(texts[0] / texts[1])),
        }

    def _nll(self, held: Documents, world: World) -> tuple[np.ndarray, np.ndarray]:
        """(Σ −log p, tokens) of the words of told fields and of all tokens; on all workers."""
        told = [[float(w) for w in row] for row in held.word]
        every = held.weights("full")
        sums = np.zeros((1, 4))
        packed = pack([len(ids) for ids in held.ids], self._width)
        for rows in passes(packed, world.rank, world.size, self._step):
            batch = Packed.of(held.ids, rows, self._pad, told).to(world.device)
            whole = Packed.of(held.ids, rows, self._pad, every).to(world.device)
            losses = token_losses(self.model, batch)
            for column, weights in enumerate((batch.weights, whole.weights)):
                assert weights is not None
                sums[0, 2 * column] += float((losses * weights[:, 1:]).sum())
                sums[0, 2 * column + 1] += float(weights[:, 1:].sum())
        total = world.gather(sums).sum(0)
        return total[:2], total[2:]
