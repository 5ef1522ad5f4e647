"""The arms of the comparison, by name; nothing else of a ranker differs between them."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from raysys.ctr.retrievers.alike import AlikeContexts
from raysys.ctr.retrievers.draws import MAX_SEED
from raysys.data.attributes import AttributeConfig
from raysys.data.manifest import known_behaviours

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class _Kind(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Drawn(_Kind):
    """seed: of what is drawn at random; left out, training fills in `train.seed`, and what is
    built without training draws with 0."""

    seed: Seed | None = None

    @property
    def draw(self) -> int:
        """The seed to draw with."""
        return self.seed or 0

    def seeded(self, seed: int) -> Self:
        """With this seed, where none is given."""
        return self if self.seed is not None else self.model_copy(update={"seed": seed})


class _Chosen(_Kind):
    """k: how many events a request is shown."""

    k: Count = 100

    @property
    def gathered(self) -> int:
        """L, the longest list of events in a batch."""
        return self.k


class _Contexts(_Chosen):
    """contexts: names of the features that make a context; left out: all, as the data declare
    them. drop: in which order they are given up where events are too few; left out: the last
    one first, until none is left. least: how many events are enough; left out: k. strict: nothing
    is given up.
    """

    contexts: tuple[str, ...] | None = None
    drop: tuple[str, ...] | None = None
    least: Count | None = None
    strict: bool = False

    @model_validator(mode="after")
    def _one_rule(self) -> "_Contexts":
        if self.strict and (self.least is not None or self.drop is not None):
            raise ValueError("strict gives nothing up; leave out least and drop")
        return self


class _Counted(_Contexts):
    """attributes: the item fields whose shares are compared. strength: of the prior on what is
    known without one more feature of drop, in events. share: of all pairs of contexts, the part
    that counts as alike. behaviours: the kinds of events that count; none named: all. fitted:
    filled in by training.
    """

    attributes: AttributeConfig
    behaviours: Annotated[tuple[str, ...], AfterValidator(known_behaviours)] = ()
    strength: Annotated[float, Field(ge=0)] = 20.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.3
    fitted: AlikeContexts | None = None


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


class Random(_Chosen, Drawn):
    """k events drawn from the whole history."""

    kind: Literal["random"] = "random"


class Exact(_Contexts):
    """k events in the request's very context."""

    kind: Literal["exact"] = "exact"


class Permuted(_Contexts, Drawn):
    """A placebo of `exact`: events have contexts of other events of their user."""

    kind: Literal["permuted"] = "permuted"


class CountedJS(_Counted):
    """k events in contexts in which the same was liked in training."""

    kind: Literal["counted-js"] = "counted-js"


class RandomContexts(_Counted, Drawn):
    """A placebo of `counted-js`: as many contexts alike to each, drawn at random."""

    kind: Literal["random-contexts"] = "random-contexts"


class SIMHard(_Searched):
    """The newest k events of the candidate's category, an item field by its source."""

    kind: Literal["sim-hard"] = "sim-hard"
    category: str = "category:0"


class SIMSoft(_Searched):
    """The k events of largest inner product; width: of the learned projections."""

    kind: Literal["sim-soft"] = "sim-soft"
    width: Count = 32


class ETA(_Searched, Drawn):
    """The k events of smallest Hamming distance between hash signatures of `bits` bits."""

    kind: Literal["eta"] = "eta"
    bits: Annotated[int, Field(ge=1, le=1024)] = 64


class SDIM(Drawn):
    """The sum of all events in the candidate's hash buckets; no attention and no k.

    hashes in groups of `group` bits: a bucket is one value of a group.
    """

    kind: Literal["sdim"] = "sdim"
    window: Annotated[int, Field(ge=1, le=10_000)] = 1000
    hashes: Count = 48
    group: Annotated[int, Field(ge=1, le=8)] = 3

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
    """The k events of largest target attention on split features; width: of its projections.

    stage_two: `own`, the same attention weighs the k events; `shared`, that of all other arms.
    """

    kind: Literal["twin"] = "twin"
    width: Count = 32
    stage_two: Literal["own", "shared"] = "own"


RetrieverConfig = Annotated[
    Recent
    | Full
    | Random
    | Exact
    | Permuted
    | CountedJS
    | RandomContexts
    | SIMHard
    | SIMSoft
    | ETA
    | SDIM
    | TWIN,
    Field(discriminator="kind"),
]
