"""Dated features as inputs of a model, fitted on what training requests may read."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from raysys.data.feature_table import DAYS, DatedFeature
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError

_REQUESTS = 100_000  # that a feature is fitted on, at most


class DatedField(BaseModel):
    """A dated feature of users of width W, and what standardises it: mean, deviation [W]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def fit_dated(feature: DatedFeature, data: Prepared) -> DatedField:
    """Mean and deviation over the training requests that find a value.

    Raises:
        ConfigError: none does.
    """
    train = data.impressions.of("train")
    train = train[:: max(1, -(-len(train) // _REQUESTS))]
    found = feature.at(data.users_of(train), data.impressions.days(train)).astype(np.float64)
    found = found[~np.isnan(found).any(1)]
    if not len(found):
        raise ConfigError(
            f"features.tables: no training request finds a value of {feature.name}; its dates, "
            f"{_iso(feature.day.min())} to {_iso(feature.day.max())}, must lie 1 to {DAYS} days "
            "before the requests, and its users be theirs"
        )
    deviation = found.std(0)
    # A number that is the same for all says nothing: it becomes 0.
    deviation[deviation < 1e-6] = 1.0
    mean = tuple(found.mean(0).tolist())
    return DatedField(name=feature.name, mean=mean, deviation=tuple(deviation.tolist()))


def _iso(day: int) -> str:
    return str(np.datetime64(int(day), "D"))
