"""Combinations of context values as numbers, and which of them are alike."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.data.contexts import ContextCodec
from raysys.errors import ConfigError

Ints = npt.NDArray[np.int64]


def chosen_features(codec: ContextCodec, names: tuple[str, ...] | None) -> ContextCodec:
    """The named features of a model's codec, in that order; None: all.

    Raises:
        ConfigError: a name the model has no feature of, or so many values that their
            combinations have no number in 63 bits.
    """
    have = {feature.name: feature for feature in codec.features}
    wanted = tuple(have) if names is None else names
    unknown = [name for name in wanted if name not in have]
    if unknown:
        raise ConfigError(
            f"model.retriever.contexts: the model has no context feature {', '.join(unknown)}; "
            f"it has {', '.join(have) or 'none'}"
        )
    chosen = ContextCodec(features=tuple(have[name] for name in wanted))
    size = 1
    for feature in chosen.features:
        size *= feature.cardinality
    if size >= 2**63:
        raise ConfigError(
            f"model.retriever.contexts: {', '.join(wanted)} have too many combinations to number; "
            "name fewer"
        )
    return chosen


def context_keys(codes: npt.NDArray[Any], codec: ContextCodec) -> Ints:
    """One number [N] for each combination of codes [N, F], in the order of the combinations."""
    keys = np.zeros(len(codes), np.int64)
    for index, feature in enumerate(codec.features):
        keys = keys * feature.cardinality + codes[:, index]
    return keys


@dataclass(frozen=True)
class Assignment:
    """Which contexts count as alike: the events of context j are shown to a request in context i
    where similar[i, j].

    codec: the features the contexts are made of; contexts [P, F] distinct codes of it;
    similar [P, P] bool.
    """

    codec: ContextCodec
    contexts: npt.NDArray[np.int32]
    similar: npt.NDArray[np.bool_]

    @classmethod
    def nearest(
        cls,
        codec: ContextCodec,
        contexts: npt.NDArray[np.int32],
        similarity: npt.NDArray[np.floating[Any]],
        count: int,
    ) -> "Assignment":
        """Each context with the `count` that are most similar to it; of equals the first.

        similarity [P, P], higher is nearer, for instance 1 − JS; NaN is never chosen.
        """
        scores = np.where(np.isnan(similarity), -np.inf, similarity)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        similar = np.zeros(scores.shape, bool)
        np.put_along_axis(similar, best, np.take_along_axis(scores, best, 1) > -np.inf, 1)
        return cls(codec, contexts, similar)

    def shuffled(self, seed: int) -> "Assignment":
        """A placebo: as many contexts for each, drawn at random.

        A context that was similar to itself stays so, because a request is always shown the
        events of its own context.
        """
        own = np.diag(self.similar)
        keys = np.random.default_rng(seed).random(self.similar.shape)
        # The own context comes before all others, or behind them.
        np.fill_diagonal(keys, np.where(own, -1.0, 2.0))
        rank = np.argsort(np.argsort(keys, axis=1), axis=1)
        return Assignment(self.codec, self.contexts, rank < self.similar.sum(1, keepdims=True))

    def places(self, codes: npt.NDArray[Any]) -> Ints:
        """Where among `contexts` the codes [N, F] are [N]; −1 where they are not."""
        if len(self.contexts) == 0:
            return np.full(len(codes), -1)
        known = context_keys(self.contexts, self.codec)
        order = np.argsort(known)
        keys = context_keys(codes, self.codec)
        found = order[np.minimum(np.searchsorted(known[order], keys), len(known) - 1)]
        return np.where(known[found] == keys, found, -1)
