"""Drawn histories for the cost test of CoFARS: only their sizes and contexts matter there."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.cofars.config import CofarsConfig, EncoderConfig, ListConfig
from raysys.cofars.fit import CofarsFit
from raysys.data.attributes import AttributeField, Attributes
from raysys.data.batch import Pointers
from raysys.data.catalogue import Catalogue
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import FIRST, ContextCodec, ContextFeature
from raysys.data.features import FeatureSpace, VocabularyField
from raysys.data.histories import Histories

Ints = npt.NDArray[np.int64]

# How often each value of a context feature occurs; combinations as in the planted city.
CONTEXTS = {
    "mealtime": (0.1, 0.4, 0.1, 0.3, 0.1),
    "place": (0.5, 0.4, 0.1),
    "weather": (0.5, 0.25, 0.15, 0.1),
    "day": (0.6, 0.3, 0.1),
}
DROP = ("weather", "day")
CATEGORIES = 30
_HABIT = 8.0  # how close a user's own frequencies are to all users'
_HOUR = 3_600_000_000
_NUMBERS = ("price", "attribute:quality", "attribute:minutes")


def codec() -> ContextCodec:
    """The context features."""
    return ContextCodec(
        features=tuple(
            ContextFeature(name=name, kind="categorical", values=tuple(map(str, range(len(p)))))
            for name, p in CONTEXTS.items()
        )
    )


@dataclass(frozen=True)
class Drawn:
    """Users with histories, the context [U, F] of each user's next request, and items."""

    histories: Histories
    coming: npt.NDArray[np.int32]
    items: int
    seed: int

    @classmethod
    def of(cls, lengths: Ints, items: int, seed: int) -> "Drawn":
        """Users with `lengths` [U] events each, an hour apart.

        A user has context frequencies of his own; his events are independent of each other,
        which gives the graph more distinct steps than real days would.
        """
        rng = np.random.default_rng(seed)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        start = np.concatenate([[0], np.cumsum(lengths)])
        # The last U rows are those of the requests.
        owner = np.concatenate([owner, np.arange(len(lengths))])
        context = np.empty((len(owner), len(CONTEXTS)), np.int32)
        for column, shares in enumerate(CONTEXTS.values()):
            own = rng.dirichlet(_HABIT * np.array(shares), len(lengths)).cumsum(1)[:, :-1]
            context[:, column] = FIRST + (rng.random(len(owner))[:, None] > own[owner]).sum(1)
        owner, size = owner[: start[-1]], int(start[-1])
        histories = Histories(
            users=pa.array(np.char.add("u", np.arange(len(lengths)).astype(str))),
            start=start,
            item=(FIRST + items * rng.random(len(owner)) ** 2).astype(np.int32),
            ts=(np.arange(len(owner)) - start[owner]) * _HOUR,
            behaviour=np.zeros(len(owner), np.int8),
            context=context[:size],
            codec=codec(),
        )
        return cls(histories, context[size:], items, seed)

    @cached_property
    def features(self) -> FeatureSpace:
        """Item and category, beside the context features."""
        items = tuple(map(str, range(self.items)))
        return FeatureSpace(
            items=(
                VocabularyField(source="item_id", values=items),
                VocabularyField(source="category:0", values=items[:CATEGORIES]),
            ),
            contexts=self.histories.codec,
        )

    @cached_property
    def catalogue(self) -> Catalogue:
        """Items by row; every category has about as many."""
        row = np.arange(self.items)
        codes = np.zeros((FIRST + self.items, 2), np.int32)
        codes[FIRST:] = FIRST + np.stack([row, row % CATEGORIES], 1)
        return Catalogue(item_ids=pa.array(map(str, row.tolist())), codes=codes)

    def fitted(self, events: int) -> CofarsFit:
        """What CoFARS has fitted before its weights; K = `events`.

        Fresh vectors are far apart, as trained ones are.
        """
        names, by_number = tuple(CONTEXTS), (0.2, 0.4, 0.6, 0.8)
        fields = (
            AttributeField(source="category:0"),
            *(AttributeField(source=name, edges=by_number) for name in _NUMBERS),
        )
        values = tuple(map(str, range(CATEGORIES)))
        attributes = Attributes(
            fields=fields,
            features=(
                ContextFeature(name="category:0", kind="categorical", values=values),
                *(ContextFeature(name=n, kind="numeric", edges=by_number) for n in _NUMBERS),
            ),
        )
        options = CofarsConfig.model_validate(
            {
                "contexts": {"features": names, "drop": DROP},
                "preferences": {"attributes": {"fields": fields}},
                "encoder": EncoderConfig(init_std=1.0),
                "lists": ListConfig(events=events),
            }
        )
        table = ContextTable.fit(self.histories.codec, names, DROP, [self.histories.context])
        users = len(self.histories.users)
        return CofarsFit(options=options, table=table, attributes=attributes, users=users)

    def pointers(self, users: Ints, candidates: int, end: Ints | None = None) -> Pointers:
        """Requests of `users` [B] behind the exclusive event rows `end` [B], by default behind
        all of their events; candidates are drawn."""
        rng = np.random.default_rng([self.seed, candidates, *users[:4].tolist()])
        histories = self.histories
        end = histories.start[users + 1] if end is None else end
        size = (len(users), candidates)
        return Pointers(
            start=histories.start[users],
            end=end,
            ts=histories.ts[end - 1] + _HOUR,
            context=self.coming[users],
            codec=histories.codec,
            candidates=rng.integers(FIRST, FIRST + self.items, size),
            clicks=(rng.random(size) < 0.1).astype(np.float32),
        )


def spread_lengths(users: int, mean: float, longest: int, seed: int) -> Ints:
    """Lognormal history lengths [users] with σ = 1, in 1..longest."""
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(mean) - 0.5, 1.0, users)
    return np.clip(drawn, 1, longest).astype(np.int64)
