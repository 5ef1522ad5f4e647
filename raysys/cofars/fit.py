"""What is fitted before any weight: contexts, attributes, counts and users of the training time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from raysys.cofars.config import CofarsConfig
from raysys.cofars.selector import CofarsSelector
from raysys.data.attribute_counts import ContextCounts, Values, count_contexts, rows_before
from raysys.data.attributes import Attributes, fit_attributes
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.features import training_item_counts
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.prepared import Prepared
from raysys.data.schema import BEHAVIOURS
from raysys.data.split import stable_hash
from raysys.errors import ConfigError

Ints = npt.NDArray[np.int64]


class CofarsFit(BaseModel):
    """Stored with the options of a ranker, so that it loads without its data set.

    users: how many have vectors of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: CofarsConfig
    table: ContextTable
    attributes: Attributes
    users: int


@dataclass(frozen=True)
class TrainingLog:
    """What training needs beside a `CofarsFit`.

    user_hash [users] ascending; counts D(C); values [2 + items, F] of the attributes.
    """

    user_hash: Ints
    counts: ContextCounts
    values: Values

    def bind(self, selector: CofarsSelector, fitted: CofarsFit) -> npt.NDArray[np.float32]:
        """Give the selector the shares that L_MSE compares with.

        Returns the shares [1 + M, W] of all rows of the table.

        Raises:
            DataError: fewer than two contexts have enough events.
        """
        options, table = fitted.options.preferences, fitted.table
        shares = self.counts.shares(table, options.strength)
        rows = self.counts.supported(options.support)
        codes = table.codes(table.known_keys[rows - 1])
        selector.bind_shares(*(torch.from_numpy(x) for x in (codes, rows, shares[rows])))
        return shares


def fit_contexts(
    data: Prepared, options: CofarsConfig, codec: ContextCodec
) -> tuple[CofarsFit, TrainingLog]:
    """Fit on the events before the end of training.

    codec: the ranker's context features, fitted on the training split.

    Raises:
        ConfigError: a context feature that the ranker does not have; attributes that cannot tell
            contexts apart.
    """
    histories, items = data.histories, data.dataset.table("items")
    attributes = check_fields(data, options, codec)
    stop = training_stop(data)
    translate = codec.translator(histories.codec)
    met = (translate(histories.context[rows]) for rows in rows_before(histories, stop))
    table = ContextTable.fit(codec, options.contexts.features, options.contexts.drop, met)
    values = attributes.encode(items)
    kinds = [BEHAVIOURS.index(name) for name in options.preferences.behaviours]
    counts = count_contexts(histories, table, values, attributes.widths, stop, kinds)
    rows = data.impressions
    known = np.unique(rows.user[rows.of("train")]).astype(np.int64)
    user_hash = np.sort(hash_users(histories)[known])
    fitted = CofarsFit(options=options, table=table, attributes=attributes, users=len(known))
    return fitted, TrainingLog(user_hash, counts, values)


def check_fields(data: Prepared, options: CofarsConfig, codec: ContextCodec) -> Attributes:
    """The fitted attributes, if contexts and attributes are what these data have.

    Raises:
        ConfigError: see `fit_contexts`.
    """
    names = options.contexts.features
    missing = sorted(set(names) - set(codec.names))
    if missing:
        raise ConfigError(
            f"cofars.contexts.features: {', '.join(missing)} not among the context features of "
            f"the model; it has {', '.join(codec.names) or 'none'}"
        )
    ContextTable.fit(codec, names, options.contexts.drop, ())
    met_items = training_item_counts(data)[FIRST:]
    items = data.dataset.table("items")
    return fit_attributes(items, met_items, options.preferences.attributes)


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
    stop: Ints = histories.start[:-1].copy()
    np.maximum.at(stop, rows.user[train], rows.end[train])
    return stop


def hash_users(histories: Histories) -> Ints:
    """A 64-bit name [U] of each user, the same wherever his history comes from."""
    people = histories.users if histories.owners is None else histories.owners
    if not len(people):
        return np.zeros(0, np.int64)
    return stable_hash(people.to_numpy(zero_copy_only=False), 0).view(np.int64)
