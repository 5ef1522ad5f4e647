"""What retrievers learn from the training events before anything is trained."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.ctr.retrievers.alike import AlikeContexts
from raysys.ctr.retrievers.build import table_of
from raysys.ctr.retrievers.config import CountedJS, RandomContexts, RetrieverConfig
from raysys.data.attribute_counts import count_contexts, rows_before
from raysys.data.attributes import fit_attributes
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.features import training_ends, training_item_counts
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError

MAX_CONTEXTS = 4096  # every pair of them is compared


def fit_retriever(
    config: RetrieverConfig | None, data: Prepared, codec: ContextCodec
) -> RetrieverConfig | None:
    """The config with what has to be fitted, from the events before training requests.

    A config that needs nothing, or has it, comes back as it is. codec: the model's features.

    Raises:
        ConfigError: attributes or contexts that the data do not have, or that cannot tell
            contexts apart; fewer than two contexts with events, or too many to compare.
    """
    if not isinstance(config, CountedJS | RandomContexts) or config.fitted is not None:
        return config
    items = data.dataset.table("items")
    attributes = fit_attributes(items, training_item_counts(data)[FIRST:], config.attributes)
    stop = training_ends(data)
    plain = table_of(config, codec)
    table = ContextTable.fit(
        plain.codec, plain.codec.names, plain.drop, _codes(data, plain.codec, stop)
    )
    met = len(table.known)
    if not 2 <= met <= MAX_CONTEXTS:
        raise ConfigError(
            f"model.retriever: {config.kind} compares from 2 to {MAX_CONTEXTS} contexts; the "
            f"events before the training requests hold {met} combinations of "
            f"{', '.join(plain.codec.names) or 'no features'}; name other contexts"
        )
    counts = count_contexts(
        data.histories, table, attributes.encode(items), attributes.widths, stop
    )
    shares = counts.node_shares(table, config.strength)
    alike = AlikeContexts.nearest(table, shares, attributes.widths, config.share)
    if isinstance(config, RandomContexts):
        # No event has the parents as its context.
        events = np.append(counts.events[1:], np.zeros(len(shares) - met, np.int64))
        alike = alike.drawn(events, config.seed)
    return config.model_copy(update={"fitted": alike})


def _codes(
    data: Prepared, codec: ContextCodec, stop: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[Any]]:
    translate = codec.translator(data.histories.codec)
    for rows in rows_before(data.histories, stop):
        yield translate(data.histories.context[rows])
