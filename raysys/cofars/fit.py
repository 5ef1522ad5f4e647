"""What is fitted before any weight: contexts, attributes, counts and users of the training time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from raysys.cofars.config import CofarsConfig
from raysys.cofars.selector import CofarsSelector
from raysys.data.attribute_counts import ContextCounts, Values
from raysys.data.attributes import Attributes, fit_attributes
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.features import training_item_counts
from raysys.data.histories import Histories
from raysys.data.prepared import Prepared
from raysys.data.split import stable_hash
from raysys.data.training_counts import TrainingCounts
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
    """Fit on the events before the end of training, see `training_stop`.

    codec: the ranker's context features, fitted on the training split.

    Raises:
        ConfigError: a context feature that the ranker does not have; attributes that cannot tell
            contexts apart.
    """
    contexts, preferences = options.contexts, options.preferences
    _check_names(contexts.features, codec)
    found = TrainingCounts.of(
        data,
        codec,
        contexts.features,
        contexts.drop,
        preferences.attributes,
        preferences.behaviours,
    )
    rows = data.impressions
    known = np.unique(rows.user[rows.of("train")]).astype(np.int64)
    user_hash = np.sort(hash_users(data.histories)[known])
    fitted = CofarsFit(
        options=options, table=found.table, attributes=found.attributes, users=len(known)
    )
    return fitted, TrainingLog(user_hash, found.counts, found.values)


def check_fields(data: Prepared, options: CofarsConfig, codec: ContextCodec) -> None:
    """Check that contexts and attributes are what these data have.

    Raises:
        ConfigError: see `fit_contexts`.
    """
    contexts = options.contexts
    _check_names(contexts.features, codec)
    ContextTable.fit(codec, contexts.features, contexts.drop, ())
    met_items = training_item_counts(data)[FIRST:]
    fit_attributes(data.dataset.table("items"), met_items, options.preferences.attributes)


def _check_names(names: tuple[str, ...], codec: ContextCodec) -> None:
    missing = sorted(set(names) - set(codec.names))
    if missing:
        raise ConfigError(
            f"cofars.contexts.features: {', '.join(missing)} not among the context features of "
            f"the model; it has {', '.join(codec.names) or 'none'}"
        )


def hash_users(histories: Histories) -> Ints:
    """A 64-bit name [U] of each user, the same wherever his history comes from."""
    people = histories.users if histories.owners is None else histories.owners
    if not len(people):
        return np.zeros(0, np.int64)
    return stable_hash(people.to_numpy(zero_copy_only=False), 0).view(np.int64)
