"""A binary gate on a probability: Gumbel-softmax over {on, off}, hard or soft."""

import torch
from torch import Tensor, nn


def logit(p: Tensor, floor: float = 1e-6) -> Tensor:
    """log(p / (1 − p)) of p clamped to [floor, 1 − floor]."""
    p = p.clamp(floor, 1 - floor)
    return p.log() - torch.log1p(-p)


class Gate(nn.Module):
    """z ∈ {0, 1} of β ∈ [0, 1]: on with probability σ(a·(logit β − logit θ)).

    The difference of two Gumbel variables is logistic, so that the two-class Gumbel-softmax
    (Jang et al. 2017, eq. 2) is σ((logit + logistic noise)/τ). In training the forward value is
    hard and the gradient is that of the soft value (straight-through). In eval mode there is no
    noise: on iff the logit is positive.

    Args:
        temperature: τ.
        calibrated: a > 0 and θ are learned, and θ may be set by `calibrate`. Otherwise a = 1
            and θ = 0.5, which is the gate of CoFARS as printed (on with probability β).
        soft: give the soft value itself; in eval mode σ(logit/τ).
    """

    def __init__(
        self, *, temperature: float = 1.0, calibrated: bool = True, soft: bool = False
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.soft = soft
        self.log_scale: nn.Parameter | None = None
        self.threshold: nn.Parameter | None = None  # logit θ
        if calibrated:
            self.log_scale = nn.Parameter(torch.zeros(()))
            self.threshold = nn.Parameter(torch.zeros(()))

    def logits(self, beta: Tensor) -> Tensor:
        """a·(logit β − logit θ), any shape → the same shape."""
        value = logit(beta)
        if self.log_scale is None or self.threshold is None:
            return value
        return self.log_scale.exp() * (value - self.threshold)

    @property
    def theta(self) -> float:
        """θ: without noise the gate is on above it."""
        return 0.5 if self.threshold is None else float(torch.sigmoid(self.threshold))

    def on(self, beta: Tensor) -> Tensor:
        """Whether the gate is on without noise; any shape → bool of the same shape."""
        return self.logits(beta) > 0

    @torch.no_grad()
    def calibrate(self, beta: Tensor, percentile: float) -> None:
        """Set θ to a percentile (0..100) of observed β of any shape.

        A gate that is not `calibrated` has nothing to set.
        """
        if self.threshold is not None and beta.numel():
            # torch.quantile refuses large inputs.
            rank = round(percentile / 100 * (beta.numel() - 1)) + 1
            self.threshold.copy_(logit(beta.flatten().kthvalue(rank).values))

    def forward(self, beta: Tensor, drawn: Tensor | None = None) -> Tensor:
        """β of any shape → z of the same shape.

        drawn: uniform numbers for the noise, of this shape; by default those of torch's global
        generator.
        """
        value = self.logits(beta)
        if self.training:
            # Away from 0 and 1, where the logarithms end.
            value = value + logit(torch.rand_like(value) if drawn is None else drawn)
        gentle = torch.sigmoid(value / self.temperature)
        if self.soft:
            return gentle
        return (value > 0).to(gentle.dtype) + (gentle - gentle.detach())
