"""What retrievers learn from the training events before anything is trained."""

import numpy as np

from raysys.ctr.retrievers.alike import AlikeContexts
from raysys.ctr.retrievers.build import table_of
from raysys.ctr.retrievers.config import CountedJS, Drawn, RandomContexts, RetrieverConfig
from raysys.data.contexts import ContextCodec
from raysys.data.prepared import Prepared
from raysys.data.training_counts import TrainingCounts
from raysys.errors import ConfigError

MAX_CONTEXTS = 4096  # every pair of them is compared


def fit_retriever(
    config: RetrieverConfig | None, data: Prepared, codec: ContextCodec, seed: int
) -> RetrieverConfig | None:
    """The config with what follows from training: the seed of its draws, where none is given,
    and what is fitted on the events before the end of training, see `TrainingCounts`.

    A config that needs nothing, or has it, comes back as it is. codec: the model's features;
    seed: of the training.

    Raises:
        ConfigError: attributes or contexts that the data do not have, or that cannot tell
            contexts apart; fewer than two contexts with events, or too many to compare.
    """
    if isinstance(config, Drawn):
        config = config.seeded(seed)
    if not isinstance(config, CountedJS | RandomContexts) or config.fitted is not None:
        return config
    plain = table_of(config, codec)
    found = TrainingCounts.of(
        data, codec, plain.codec.names, plain.drop, config.attributes, config.behaviours
    )
    counts, table = found.counts, found.table
    met = len(table.known)
    if not 2 <= met <= MAX_CONTEXTS:
        raise ConfigError(
            f"model.retriever: {config.kind} compares from 2 to {MAX_CONTEXTS} contexts; the "
            f"events of the training time hold {met} combinations of "
            f"{', '.join(plain.codec.names) or 'no features'}; name other contexts"
        )
    shares = counts.node_shares(table, config.strength)
    alike = AlikeContexts.nearest(table, shares, counts.widths, config.share)
    if isinstance(config, RandomContexts):
        # No event has the parents as its context.
        events = np.append(counts.events[1:], np.zeros(len(shares) - met, np.int64))
        alike = alike.drawn(events, config.draw)
    return config.model_copy(update={"fitted": alike})
