"""D(C) of the training time: what everything that compares contexts by preference is fitted on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.data.attribute_counts import ContextCounts, Values, count_contexts, rows_before
from raysys.data.attributes import AttributeConfig, Attributes, fit_attributes
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.features import training_ends, training_item_counts
from raysys.data.histories import UNKNOWN_TS
from raysys.data.prepared import Prepared
from raysys.data.schema import BEHAVIOURS

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainingCounts:
    """What is known of contexts before validation and test begin.

    table: the contexts that any event of that time had; attributes: fitted fields; values
    [2 + items, F] of these, see `Attributes.encode`; counts: by row of the table.
    """

    table: ContextTable
    attributes: Attributes
    values: Values
    counts: ContextCounts

    @classmethod
    def of(
        cls,
        data: Prepared,
        codec: ContextCodec,
        names: tuple[str, ...],
        drop: tuple[str, ...],
        attributes: AttributeConfig,
        behaviours: Sequence[str] = (),
    ) -> "TrainingCounts":
        """Count the events before `training_stop`.

        Args:
            data: events, items and splits.
            codec: the model's context features, fitted on the training split.
            names: of the features that make a context.
            drop: in which order back-off gives them up.
            attributes: fields whose values are counted.
            behaviours: kinds of events that count; none named: all. The table holds the contexts
                of all kinds.

        Raises:
            ConfigError: see `ContextTable.fit` and `fit_attributes`.
        """
        items, stop = data.dataset.table("items"), training_stop(data)
        fitted = fit_attributes(items, training_item_counts(data)[FIRST:], attributes)
        table = ContextTable.fit(codec, names, drop, _met(data, codec, stop))
        values = fitted.encode(items)
        kinds = [BEHAVIOURS.index(name) for name in behaviours]
        counts = count_contexts(data.histories, table, values, fitted.widths, stop, kinds)
        return cls(table, fitted, values, counts)


def training_stop(data: Prepared) -> Ints:
    """Exclusive event row [U] of each user: where the events of the training time end.

    Before the first request of validation and test where these lie after all of training; else
    before the user's last training request.
    """
    rows, histories = data.impressions, data.histories
    train = rows.of("train")
    later = np.setdiff1d(np.arange(len(rows.split)), train, assume_unique=True)
    if len(later) and not (rows.ts == UNKNOWN_TS).any():
        cut = rows.ts[later].min()
        if rows.ts[train].max() < cut:
            users = np.arange(len(histories.users))
            return histories.end_before(users, np.full(len(users), cut))
    return training_ends(data)


def _met(data: Prepared, codec: ContextCodec, stop: Ints) -> Iterator[npt.NDArray[Any]]:
    translate = codec.translator(data.histories.codec)
    for rows in rows_before(data.histories, stop):
        yield translate(data.histories.context[rows])
