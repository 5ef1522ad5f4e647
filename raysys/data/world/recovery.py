"""Do counted preferences give the hidden prototypes back?"""

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score

from raysys.data.world.scene import CONTEXT_COUNT

SUPPORT = 30  # clicks that make a context's counts usable


def counted_js(counts: list[np.ndarray]) -> np.ndarray:
    """[C, C] Jensen-Shannon divergence (base 2) of contexts, mean over fields.

    Args:
        counts: per field [C, values] how often each value was clicked in each context.
    """
    total = np.zeros((len(counts[0]), len(counts[0])))
    for field in counts:
        law = field / field.sum(axis=1, keepdims=True)
        middle = 0.5 * (law[:, None] + law[None, :])

        def entropy(p: np.ndarray) -> np.ndarray:
            bits: np.ndarray = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=-1)
            return bits

        total += entropy(middle) - 0.5 * (entropy(law)[:, None] + entropy(law)[None, :])
    divergence: np.ndarray = total / len(counts)
    return divergence


@dataclass(frozen=True)
class Recovery:
    """How well counted preferences give the hidden prototypes back."""

    contexts: int
    auc: float  # same prototype or not, by −JS over pairs of contexts
    nmi: float  # clusters of JS (average linkage, true number) with the map


def recovery(
    contexts: np.ndarray, items: np.ndarray, fields: list[np.ndarray], prototype: np.ndarray
) -> Recovery:
    """Compare contexts by counted JS of the clicked items' fields.

    Args:
        contexts, items: [N] context code and item row of each click.
        fields: per field [items] value code.
        prototype: [180] the hidden map.
    """
    support = np.bincount(contexts, minlength=CONTEXT_COUNT)
    kept = np.flatnonzero(support >= SUPPORT)
    counts = []
    for field in fields:
        width = int(field.max()) + 1
        table = np.bincount(contexts * width + field[items], minlength=CONTEXT_COUNT * width)
        counts.append(table.reshape(CONTEXT_COUNT, width)[kept])
    truth = prototype[kept]
    if len(np.unique(truth)) < 2:
        return Recovery(len(kept), float("nan"), float("nan"))
    divergence = counted_js(counts)
    upper = np.triu_indices(len(kept), 1)
    same = truth[upper[0]] == truth[upper[1]]
    clusters = AgglomerativeClustering(
        n_clusters=len(np.unique(truth)), metric="precomputed", linkage="average"
    ).fit_predict(divergence)
    return Recovery(
        contexts=len(kept),
        auc=float(roc_auc_score(same, -divergence[upper])),
        nmi=float(normalized_mutual_info_score(truth, clusters)),
    )
