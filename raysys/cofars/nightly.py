"""What the graph makes of whole histories: with it a request behind them needs no graph (§4.2).

Online there remain the short-term state and the gates of the prototypes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from raysys.cofars.requests import Requests
from raysys.cofars.selector import CofarsSelector
from raysys.data.columns import ColumnFolder
from raysys.data.context_index import ContextIndex, UserContexts
from raysys.data.context_keys import ContextTable

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_CHUNK = 64  # users whose graphs are held at once


@dataclass(frozen=True)
class Nightly:
    """Aggregated prototypes and contexts of U users of a context index.

    end [U]: how many events of each user the graph has seen; prototypes [U, P·D]: õ;
    similarity [pairs, P] of each c̃ with the õ of its user.
    """

    COLUMNS: ClassVar = ("nightly_end", "nightly_prototypes", "nightly_similarity")

    end: Ints
    prototypes: Floats
    similarity: Floats

    @classmethod
    @torch.no_grad()
    def build(
        cls, selector: CofarsSelector, table: ContextTable, index: ContextIndex, users: Ints
    ) -> "Nightly":
        """Over all events of the index; users [U] are rows of the encoder."""
        training = selector.training
        selector.eval()
        device = selector.encoder.prototypes.device
        end = np.diff(index.entry_begin[index.pair_begin])
        count, dim = selector.encoder.prototypes.shape
        prototypes = np.zeros((index.users, count * dim), np.float32)
        similarity = np.zeros((len(index.key), count), np.float32)
        for low in range(0, index.users, _CHUNK):
            part = np.arange(low, min(low + _CHUNK, index.users))
            seen = index.contexts(part, end[part])
            requests = _graphs(table, index, seen, users[part]).to(device)
            upper, sim = selector.aggregated(requests)
            prototypes[part] = upper.flatten(1).cpu().numpy()
            similarity[seen.pair] = sim.cpu().numpy()
        selector.train(training)
        return cls(end, prototypes, similarity)

    def covers(self, contexts: UserContexts) -> Bools:
        """Which of R requests lie just behind the events that the graph has seen [R]."""
        users = np.maximum(contexts.user, 0)
        return (contexts.user >= 0) & (self.end[users] == contexts.end)

    def of(self, users: Ints, pairs: Ints) -> "Nightly":
        """Of the given users with the given pairs only, see `ContextIndex.of`."""
        someone = users >= 0
        prototypes = np.zeros((len(users), self.prototypes.shape[1]), np.float32)
        prototypes[someone] = self.prototypes[users[someone]]
        end = np.where(someone, self.end[users], 0) if len(self.end) else np.zeros_like(users)
        return Nightly(end, prototypes, self.similarity[pairs])

    def moved(self, pairs: int, where: Ints) -> "Nightly":
        """For an index of `pairs` pairs in which the old ones have the numbers `where`."""
        similarity = np.zeros((pairs, self.similarity.shape[1]), np.float32)
        similarity[where] = self.similarity
        return replace(self, similarity=similarity)

    def save(self, folder: Path) -> None:
        """Write the arrays as Arrow IPC columns into `folder`."""
        columns = ColumnFolder(folder)
        for name, values in zip(
            self.COLUMNS, (self.end, self.prototypes, self.similarity), strict=True
        ):
            columns.write(name, values)

    @classmethod
    def load(cls, folder: Path) -> "Nightly":
        """Memory-mapped."""
        columns = ColumnFolder(folder)
        return cls(*(columns.read(name) for name in cls.COLUMNS))


def _graphs(table: ContextTable, index: ContextIndex, seen: UserContexts, users: Ints) -> Requests:
    """Requests [R] of nothing but their graphs."""
    nobody = torch.full((len(users),), -1)
    nothing = torch.zeros(len(users), 0, dtype=torch.int64)
    return Requests(
        user=torch.from_numpy(np.where(seen.end > 0, users, -1)),
        node_request=torch.from_numpy(seen.request),
        node_codes=torch.from_numpy(table.codes(seen.key)),
        node_row=torch.from_numpy(table.rows(seen.key)),
        steps=torch.from_numpy(np.stack(index.steps(seen))),
        target=nobody,
        target_codes=nothing,
        target_row=nobody,
        recent=nothing,
        recent_mask=nothing.bool(),
    )
