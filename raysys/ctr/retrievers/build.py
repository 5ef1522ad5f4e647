"""From a config to the selector and the retriever it names; each has one of the two at most."""

from collections.abc import Callable

from raysys.ctr.retrievers.alike import AlikeContexts
from raysys.ctr.retrievers.base import Retriever, Widths
from raysys.ctr.retrievers.config import (
    ETA,
    SDIM,
    TWIN,
    CountedJS,
    Exact,
    Permuted,
    Random,
    RandomContexts,
    RetrieverConfig,
    SIMHard,
    SIMSoft,
)
from raysys.ctr.retrievers.hashing import BucketSums, HammingSearch
from raysys.ctr.retrievers.selectors import ByContext, RandomEvents
from raysys.ctr.retrievers.sim import HardSearch, SoftSearch
from raysys.ctr.retrievers.twin import SplitSearch
from raysys.data.batch import Selector
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import ContextCodec
from raysys.data.features import FeatureSpace
from raysys.errors import ConfigError

ContextArm = Exact | Permuted | CountedJS | RandomContexts


def selector_of(
    config: RetrieverConfig | None, features: FeatureSpace
) -> Callable[[], Selector] | None:
    """Makes a selector, one for each place histories are gathered from; None: the newest events.

    Raises:
        ConfigError: see `table_of`; a retriever that was to be fitted first.
    """
    match config:
        case Random(k=k, draw=seed):
            return lambda: RandomEvents(k, seed)
        case Exact():
            return _by_context(config, table_of(config, features.contexts))
        case Permuted(draw=seed):
            return _by_context(config, table_of(config, features.contexts), shuffle=seed)
        case CountedJS(fitted=fitted) | RandomContexts(fitted=fitted):
            if fitted is None:
                raise ConfigError(
                    f"model.retriever: {config.kind} is fitted on training events first, see "
                    "raysys.ctr.retrievers.fit"
                )
            return _by_context(config, fitted.table, fitted)
        case _:
            return None


def table_of(config: ContextArm, codec: ContextCodec) -> ContextTable:
    """The contexts of a config, of the model's features, none of them met yet.

    Raises:
        ConfigError: features that the model does not have, or with too many combinations.
    """
    names = codec.names if config.contexts is None else config.contexts
    drop = names[::-1] if config.drop is None else config.drop
    return ContextTable.fit(codec, names, drop, ())


def _by_context(
    config: ContextArm,
    table: ContextTable,
    alike: AlikeContexts | None = None,
    shuffle: int | None = None,
) -> Callable[[], Selector]:
    return lambda: ByContext(
        table,
        config.k,
        least=config.least,
        strict=config.strict,
        alike=alike,
        shuffle=shuffle,
    )


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
        case ETA(k=k, bits=bits, draw=seed):
            return HammingSearch(k, widths.item, bits, seed)
        case SDIM(hashes=hashes, group=group, draw=seed):
            return BucketSums(widths.item, hashes, group, seed)
        case TWIN(k=k, width=width, stage_two=stage_two):
            return SplitSearch(k, widths, width, own=stage_two == "own")
        case _:
            return None
