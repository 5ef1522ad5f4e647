"""From a config to the selector and the retriever it names; each has one of the two at most."""

from collections.abc import Callable

from raysys.ctr.retrievers.base import Retriever, Widths
from raysys.ctr.retrievers.config import (
    ETA,
    SDIM,
    TWIN,
    Exact,
    Permuted,
    Random,
    RetrieverConfig,
    SIMHard,
    SIMSoft,
)
from raysys.ctr.retrievers.contexts import chosen_features
from raysys.ctr.retrievers.hashing import BucketSums, HammingSearch
from raysys.ctr.retrievers.selectors import ByContext, RandomEvents
from raysys.ctr.retrievers.sim import HardSearch, SoftSearch
from raysys.ctr.retrievers.twin import SplitAttentionSearch
from raysys.data.batch import Selector
from raysys.data.features import FeatureSpace
from raysys.errors import ConfigError


def selector_of(
    config: RetrieverConfig | None, features: FeatureSpace
) -> Callable[[], Selector] | None:
    """Makes a selector, one for each place histories are gathered from; None: the newest events.

    Raises:
        ConfigError: see `chosen_features`.
    """
    match config:
        case Random(k=k, seed=seed):
            return lambda: RandomEvents(k, seed)
        case Exact(k=k, contexts=names, least=least):
            codec = chosen_features(features.contexts, names)
            return lambda: ByContext(codec, k, least=least)
        case Permuted(k=k, contexts=names, least=least, seed=seed):
            codec = chosen_features(features.contexts, names)
            return lambda: ByContext(codec, k, least=least, shuffle=seed)
        case _:
            return None


def retriever_of(
    config: RetrieverConfig | None, features: FeatureSpace, widths: Widths
) -> Retriever | None:
    """The part of a ranker that searches for each candidate; None: it attends to all it is shown.

    Raises:
        ConfigError: the category of hard search is no item field of the model.
    """
    match config:
        case SIMHard(k=k, category=category):
            sources = [field.source for field in features.items]
            if category not in sources:
                raise ConfigError(
                    f"model.retriever.category: the model has no item field {category}; "
                    f"it has {', '.join(sources) or 'none'}"
                )
            return HardSearch(k, sources.index(category))
        case SIMSoft(k=k, width=width):
            return SoftSearch(k, widths.item, width)
        case ETA(k=k, bits=bits, seed=seed):
            return HammingSearch(k, widths.item, bits, seed)
        case SDIM(hashes=hashes, group=group, seed=seed):
            return BucketSums(widths.item, hashes, group, seed)
        case TWIN(k=k, width=width):
            return SplitAttentionSearch(k, widths, width)
        case _:
            return None
