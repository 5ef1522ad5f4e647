"""The arms of the comparison, by name; nothing else of a ranker differs between them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.ctr.retrievers.draws import MAX_SEED

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class _Kind(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Chosen(_Kind):
    """k: how many events a request is shown."""

    k: Count = 100

    @property
    def gathered(self) -> int:
        """L, the longest list of events in a batch."""
        return self.k


class _Contexts(_Chosen):
    """contexts: names of features, the weightiest first; left out: all, as the data declare them.
    least: below this number of events the last named feature is given up, then the one before it.
    """

    contexts: tuple[str, ...] | None = None
    least: Count = 1


class _Searched(_Kind):
    """window: the newest events that are searched; k: how many of them each candidate attends to."""  # noqa: E501

    window: Annotated[int, Field(ge=1, le=10_000)] = 1000
    k: Count = 100

    @property
    def gathered(self) -> int:
        """L, the longest list of events in a batch."""
        return self.window


class Recent(_Chosen):
    """The newest k events."""

    kind: Literal["recent"] = "recent"


class Full(_Kind):
    """Target attention over all of the newest `window` events."""

    kind: Literal["full"] = "full"
    window: Annotated[int, Field(ge=1, le=10_000)] = 1000

    @property
    def gathered(self) -> int:
        """L, the longest list of events in a batch."""
        return self.window


class Random(_Chosen):
    """k events drawn from the whole history."""

    kind: Literal["random"] = "random"
    seed: Seed = 0


class Exact(_Contexts):
    """The newest k events in the request's very context."""

    kind: Literal["exact"] = "exact"


class Permuted(_Contexts):
    """A placebo of `exact`: events have contexts of other events of their user."""

    kind: Literal["permuted"] = "permuted"
    seed: Seed = 0


class SIMHard(_Searched):
    """The newest k events of the candidate's category, an item field by its source."""

    kind: Literal["sim-hard"] = "sim-hard"
    category: str = "category:0"


class SIMSoft(_Searched):
    """The k events of largest inner product; width: of the learned projections."""

    kind: Literal["sim-soft"] = "sim-soft"
    width: Count = 32


class ETA(_Searched):
    """The k events of smallest Hamming distance between hash signatures of `bits` bits."""

    kind: Literal["eta"] = "eta"
    bits: Annotated[int, Field(ge=1, le=1024)] = 64
    seed: Seed = 0


class SDIM(_Kind):
    """The sum of all events in the candidate's hash buckets; no attention and no k.

    hashes in groups of `group` bits: a bucket is one value of a group.
    """

    kind: Literal["sdim"] = "sdim"
    window: Annotated[int, Field(ge=1, le=10_000)] = 1000
    hashes: Count = 48
    group: Annotated[int, Field(ge=1, le=8)] = 3
    seed: Seed = 0

    @property
    def gathered(self) -> int:
        """L, the longest list of events in a batch."""
        return self.window

    @model_validator(mode="after")
    def _whole_groups(self) -> "SDIM":
        if self.hashes % self.group:
            raise ValueError(f"{self.hashes} hashes make no whole groups of {self.group}")
        return self


class TWIN(_Searched):
    """The k events of largest target attention on split features; width: of its projections."""

    kind: Literal["twin"] = "twin"
    width: Count = 32


RetrieverConfig = Annotated[
    Recent | Full | Random | Exact | Permuted | SIMHard | SIMSoft | ETA | SDIM | TWIN,
    Field(discriminator="kind"),
]
