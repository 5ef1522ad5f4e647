"""CoFARS as a retriever: requests in, event rows out, whatever the candidates are."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from raysys.cofars.lists import Lists, Retrieved, tiers
from raysys.cofars.requests import RequestReader, Requests
from raysys.cofars.selector import CofarsSelector, Selection
from raysys.data.batch import Pointers
from raysys.data.context_index import UserContexts
from raysys.data.histories import Histories
from raysys.errors import ConfigError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """What led to the events of R requests with S contexts.

    requests, selection: in and out of the selector; active [R, P]; contexts of the
    requests before them; membership [S, P] by the lists; tier [S], see `Retrieved`; targets [R]
    context keys of the requests.
    """

    requests: Requests
    selection: Selection
    active: Bools
    contexts: UserContexts
    membership: Bools
    tier: Ints
    targets: Ints
    events: Retrieved


class CofarsRetriever:
    """Chooses K events of each history by the contexts of the prototypes that are on.

    Args:
        selector: the fitted selector.
        reader: of the histories.
        lists: made with the selector over the reader's index.
        events: K.
        strict: see `ListConfig`.
    """

    def __init__(
        self,
        selector: CofarsSelector,
        reader: RequestReader,
        lists: Lists,
        *,
        events: int = 100,
        strict: bool = False,
    ) -> None:
        self.selector = selector.eval()
        self.reader = reader
        self.lists = lists
        self.events = events
        self.strict = strict

    def retrieve(self, pointers: Pointers) -> Retrieved:
        """Positions and tiers [R, K] of R requests."""
        reader = self.reader
        contexts, targets = reader.contexts(pointers), reader.target_keys(pointers)
        active = self.chosen(pointers, contexts, targets)
        return self._found(contexts, targets, self.lists.membership(contexts), active)[1]

    @torch.no_grad()
    def choose(self, pointers: Pointers) -> Choice:
        """The events of R requests, and why."""
        reader, lists = self.reader, self.lists
        contexts, targets = reader.contexts(pointers), reader.target_keys(pointers)
        requests = reader(pointers, contexts)
        selection = self._online(requests)
        active = _active(selection)
        membership = lists.membership(contexts)
        tier, events = self._found(contexts, targets, membership, active)
        return Choice(requests, selection, active, contexts, membership, tier, targets, events)

    def _found(
        self, contexts: UserContexts, targets: Ints, membership: Bools, active: Bools
    ) -> tuple[Ints, Retrieved]:
        table, index = self.reader.table, self.lists.index
        tier = tiers(table, contexts, targets, membership, active, strict=self.strict)
        return tier, Retrieved(*index.newest(contexts, tier, self.events))

    @torch.no_grad()
    def chosen(self, pointers: Pointers, contexts: UserContexts, targets: Ints) -> Bools:
        """Which prototypes are on [R, P]; by the stored graphs where these know the request."""
        reader, stored = self.reader, self.lists.nightly
        if stored is None:
            return _active(self._online(reader(pointers, contexts)))
        node = reader.target_nodes(contexts, targets)
        known = stored.covers(contexts) & (node >= 0)
        if not known.any():
            return _active(self._online(reader(pointers, contexts)))
        out = np.zeros((len(targets), self.lists.prototypes), bool)
        if not known.all():
            out[~known] = _active(self._online(reader(_part(pointers, ~known))))
            pointers = _part(pointers, known)
        device = self.selector.encoder.prototypes.device
        own = stored.prototypes[contexts.user[known]]
        given = (
            torch.from_numpy(own.reshape(len(own), self.lists.prototypes, -1)),
            torch.from_numpy(stored.similarity[contexts.pair[node[known]]]),
            *reader.newest(pointers),
        )
        out[known] = self.selector.chosen(*(x.to(device) for x in given)).cpu().numpy()
        return out

    def _online(self, requests: Requests) -> Selection:
        selection: Selection = self.selector(requests.to(self.selector.encoder.prototypes.device))
        return selection

    def rows(self, pointers: Pointers, histories: Histories) -> Ints:
        """Event rows [R, K] of the reader's histories, newest first, −1 padding.

        Raises:
            ConfigError: other histories than those of the lists.
        """
        if histories is not self.reader.histories:
            raise ConfigError("the CoFARS lists belong to other histories; build them for these")
        positions = self.retrieve(pointers).positions
        return np.where(positions >= 0, positions + pointers.start[:, None], -1)


def _active(selection: Selection) -> Bools:
    return selection.z.cpu().numpy() > 0.5


def _part(pointers: Pointers, which: Bools) -> Pointers:
    """Some of the requests, without their candidates."""
    return Pointers(
        start=pointers.start[which],
        end=pointers.end[which],
        ts=pointers.ts[which],
        context=pointers.context[which],
        codec=pointers.codec,
        candidates=np.zeros((int(which.sum()), 0), np.int64),
    )
