"""What the selector reads of R requests: their contexts, the steps between them, newest events."""

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysys.data.batch import Pointers
from raysys.data.context_index import ContextIndex, UserContexts, locate
from raysys.data.context_keys import ContextTable
from raysys.data.histories import Histories

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Requests:
    """R requests with S context nodes in all.

    user [R] rows of the encoder, −1 where unknown or without any event yet; node_request [S];
    node_codes [S, F] and node_row [S] of the context table; steps [2, T] numbers of nodes, from
    and to; target [R] node of the request's own context, −1 if it is in no graph;
    target_codes [R, F], target_row [R]; recent [R, r] item rows, newest first, 0 where masked;
    recent_mask [R, r] bool; node_shares [S', W] logged shares of the first S' nodes, where those
    of users are compared; draw [R] int64, what the noise of training is drawn with, None: torch's
    global generator.
    """

    user: Tensor
    node_request: Tensor
    node_codes: Tensor
    node_row: Tensor
    steps: Tensor
    target: Tensor
    target_codes: Tensor
    target_row: Tensor
    recent: Tensor
    recent_mask: Tensor
    node_shares: Tensor | None = None
    draw: Tensor | None = None

    def __len__(self) -> int:
        """R."""
        return len(self.user)

    def to(self, device: torch.device | str) -> "Requests":
        """The requests on another device."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self,
            **{name: x.to(device, non_blocking=True) for name, x in held.items() if x is not None},
        )


class RequestReader:
    """Makes `Requests` of pointers.

    Args:
        histories: where the pointers point.
        table: what a context is.
        index: the histories by context, with keys of `table`.
        users: [U] row of the encoder of each user of the histories, −1 unknown.
        recent: r.
        add_target: a target context that the user never had becomes a node of its own.
    """

    def __init__(
        self,
        histories: Histories,
        table: ContextTable,
        index: ContextIndex,
        users: Ints,
        *,
        recent: int = 20,
        add_target: bool = True,
    ) -> None:
        self.histories = histories
        self.table = table
        self.index = index
        self.users = users
        self.recent = recent
        self.add_target = add_target
        # Requests come from one or two codecs for the life of a reader.
        self._translator = lru_cache(maxsize=4)(table.codec.translator)

    def contexts(self, pointers: Pointers) -> UserContexts:
        """The distinct contexts of each request before it."""
        return self.index.contexts(*locate(self.histories, pointers.start, pointers.end))

    def target_keys(self, pointers: Pointers) -> Ints:
        """Context keys [R] of the requests themselves."""
        return self.table.keys(self._translator(pointers.codec)(pointers.context))

    def target_nodes(self, contexts: UserContexts, targets: Ints) -> Ints:
        """Number in `contexts` of each request's own context key in targets [R], −1 if the user
        has not been in it."""
        node = np.full(len(targets), -1, np.int64)
        met = np.flatnonzero(contexts.key == targets[contexts.request])
        node[contexts.request[met]] = met
        return node

    def newest(self, pointers: Pointers) -> tuple[Tensor, Tensor]:
        """Item rows of the newest r events, 0 where masked, and their mask; both [R, r]."""
        rows = self.histories.newest(pointers.start, pointers.end, self.recent)
        mask = rows >= 0
        items = np.zeros(rows.shape, np.int64)
        items[mask] = self.histories.item[rows[mask]]
        return torch.from_numpy(items), torch.from_numpy(mask)

    def __call__(self, pointers: Pointers, contexts: UserContexts | None = None) -> Requests:
        """Read the requests; `contexts` if they are at hand already."""
        seen = self.contexts(pointers) if contexts is None else contexts
        wanted = self.target_keys(pointers)
        request, key = seen.request, seen.key
        target = self.target_nodes(seen, wanted)
        if self.add_target:
            missing = np.flatnonzero(target < 0)
            target[missing] = len(key) + np.arange(len(missing))
            request = np.concatenate([request, missing])
            key = np.concatenate([key, wanted[missing]])
        recent, recent_mask = self.newest(pointers)
        known = np.append(self.users, -1)  # the last one for nobody
        draw = pointers.draw
        return Requests(
            user=torch.from_numpy(known[seen.user]),
            node_request=torch.from_numpy(request),
            node_codes=torch.from_numpy(self.table.codes(key)),
            node_row=torch.from_numpy(self.table.rows(key)),
            steps=torch.from_numpy(np.stack(self.index.steps(seen))),
            target=torch.from_numpy(target),
            target_codes=torch.from_numpy(self.table.codes(wanted)),
            target_row=torch.from_numpy(self.table.rows(wanted)),
            recent=recent,
            recent_mask=recent_mask,
            draw=None if draw is None else torch.from_numpy(draw),
        )
