"""Contexts as integers: a combination of context features is one key.

A key is the code row read as a number in mixed radix, so that it can be taken apart again and
does not depend on which combinations have been met.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from raysys.data.contexts import MISSING, ContextCodec
from raysys.errors import ConfigError

Ints = npt.NDArray[np.int64]
UNSEEN = 0


class ContextTable(BaseModel):
    """The features that make a context, and the combinations met in training.

    Attributes:
        codec: the features, in order.
        drop: names in the order in which back-off gives them up.
        known: ascending keys of the M training combinations. Combination i has row 1 + i; row 0
            stands for every other one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codec: ContextCodec
    drop: tuple[str, ...] = ()
    known: tuple[int, ...] = ()

    @classmethod
    def fit(
        cls,
        codec: ContextCodec,
        names: tuple[str, ...],
        drop: tuple[str, ...],
        codes: Iterable[npt.NDArray[Any]],
    ) -> "ContextTable":
        """The table of the features `names` and of the code rows [N, F] of `codec` in `codes`.

        Raises:
            ConfigError: an unknown name, a dropped feature that is not among `names`, or more
                combinations than 63 bits hold.
        """
        by_name = {feature.name: feature for feature in codec.features}
        unknown = sorted((set(names) | set(drop)) - set(by_name))
        stray = sorted(set(drop) - set(names))
        if unknown or stray:
            raise ConfigError(
                f"unknown context features {', '.join(unknown)}; known: {', '.join(by_name)}"
                if unknown
                else f"back-off drops {', '.join(stray)}, which the contexts do not hold"
            )
        chosen = ContextCodec(features=tuple(by_name[name] for name in names))
        table = cls(codec=chosen, drop=drop)
        if np.prod([float(f.cardinality) for f in chosen.features]) >= 2.0**62:
            raise ConfigError(
                f"the context features {', '.join(names)} have too many combinations; use fewer"
            )
        seen = np.zeros(0, np.int64)
        columns = [codec.names.index(name) for name in names]
        for part in codes:
            seen = np.union1d(seen, table.keys(part[..., columns]))
        return table.model_copy(update={"known": tuple(seen.tolist())})

    def __eq__(self, other: object) -> bool:
        # Pydantic would compare what is cached too, and arrays are neither equal nor not.
        return isinstance(other, ContextTable) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @property
    def _values(self) -> tuple[ContextCodec, tuple[str, ...], tuple[int, ...]]:
        return self.codec, self.drop, self.known

    @property
    def size(self) -> int:
        """Number of rows, 1 + M."""
        return 1 + len(self.known)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each feature."""
        return tuple(feature.cardinality for feature in self.codec.features)

    @cached_property
    def _place(self) -> Ints:
        sizes = np.array([*self.cardinalities, 1], np.int64)
        return np.cumprod(sizes[::-1])[::-1][1:].copy()

    @cached_property
    def known_keys(self) -> Ints:
        """Keys [M] of the rows 1.."""
        return np.array(self.known, np.int64)

    def keys(self, codes: npt.NDArray[Any]) -> Ints:
        """Code rows [..., F] of this codec → keys [...]."""
        return (codes.astype(np.int64) * self._place).sum(-1)

    def codes(self, keys: Ints) -> Ints:
        """Keys [...] → code rows [..., F]."""
        return keys[..., None] // self._place % np.array(self.cardinalities, np.int64)

    def words(self, keys: Ints) -> list[dict[str, str]]:
        """What contexts [n] are: feature → value, in words."""
        labels = [feature.labels for feature in self.codec.features]
        return [
            {
                name: words[code]
                for name, words, code in zip(self.codec.names, labels, row, strict=True)
            }
            for row in self.codes(keys).tolist()
        ]

    def rows(self, keys: Ints) -> Ints:
        """Keys [...] → rows [...] of the table, 0 for a combination not met in training."""
        known = self.known_keys
        if len(known) == 0:
            return np.full(keys.shape, UNSEEN, np.int64)
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, place + 1, UNSEEN)

    def coarser(self, keys: Ints, level: int) -> Ints:
        """Keys [...] with the first `level` features of `drop` made missing."""
        lost = [self.codec.names.index(name) for name in self.drop[:level]]
        codes = self.codes(keys)
        codes[..., lost] = MISSING
        return self.keys(codes)

    @cached_property
    def levels(self) -> tuple[Ints, ...]:
        """Ascending keys [M_l] of the known contexts without the first l features of `drop`."""
        every = range(len(self.drop) + 1)
        return tuple(np.unique(self.coarser(self.known_keys, level)) for level in every)

    def nodes(self, keys: Ints) -> Ints:
        """The nearest that training knows of each context, keys [...] → numbers [...].

        The context itself, or else the first of `levels` that holds it; numbers run through the
        keys of all levels, the last one stands for all contexts together.
        """
        sizes = [len(level) for level in self.levels]
        node = np.full(keys.shape, sum(sizes), np.int64)
        for level in range(len(sizes) - 1, -1, -1):
            known, wanted = self.levels[level], self.coarser(keys, level)
            if len(known):
                place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
                found = known[place] == wanted
                node = np.where(found, sum(sizes[:level]) + place, node)
        return node

    def tiers(
        self,
        keys: Ints,
        targets: Ints,
        alike: npt.NDArray[np.bool_] | None = None,
        *,
        strict: bool = False,
    ) -> Ints:
        """How much has to be dropped until contexts equal their targets.

        keys, targets [S] → [S]: 0 equal or `alike` [S], l equal without the first l features of
        `drop`, len(drop) + 1 not even then. `strict`: −1 instead of all but 0.
        """
        differ = self.codes(keys) != self.codes(targets)
        tier = np.full(keys.shape, -1 if strict else len(self.drop) + 1, np.int64)
        for level in range(0 if strict else len(self.drop), -1, -1):
            lost = self.drop[:level]
            kept = [index for index, name in enumerate(self.codec.names) if name not in lost]
            tier[~differ[..., kept].any(-1)] = level
        if alike is not None:
            tier[alike] = 0
        return tier
