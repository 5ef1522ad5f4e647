"""InfoNCE with masked negatives (LARR §2.2)."""

import torch
from torch import Tensor

from raysys.errors import MetricError


def info_nce(similarity: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Loss [N] of each of N anchors against the M keys of the global batch.

        L_i = −log( exp(s_ip/τ) / (exp(s_ip/τ) + Σ_{j: negative_ij} exp(s_ij/τ)) )

    Args:
        similarity: s [N, M], cosine of anchors and keys.
        positive: p [N], column of each anchor's positive.
        negative: [N, M] bool, whether a key counts as a negative of an anchor; what it says of
            the positive column does not matter. A key that does not count gets no gradient.
        temperature: τ.

    Raises:
        MetricError: fewer than two keys in the global batch: there is nothing to tell apart.
    """
    if similarity.shape[1] < 2:
        raise MetricError(
            f"InfoNCE over {similarity.shape[1]} pair: it needs two pairs in the global batch"
        )
    logits = similarity / temperature
    own = torch.zeros_like(negative)
    own[torch.arange(len(positive), device=own.device), positive] = True
    told = logits.gather(1, positive[:, None])[:, 0]
    return logits.masked_fill(~(negative | own), -torch.inf).logsumexp(1) - told
