"""Why a request got its events: prototypes that are on, the contexts and events they brought."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from raysys.artifacts.retrieval import (
    ActivePrototype,
    BackOffStep,
    ContextPart,
    Link,
    RetrievalExplanation,
    RetrievedEvent,
    ValueShare,
)
from raysys.cofars.retriever import Choice, CofarsRetriever
from raysys.data.attribute_counts import event_keys
from raysys.data.attributes import Attributes
from raysys.data.batch import Pointers
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import MISSING

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Explainer:
    """Puts the choices of a retriever into words.

    Args:
        retriever: whose choices.
        attributes: of its selector; W values in all.
        catalogue: names of items.
        values, contexts, events: at most so many of each field, request and context.
    """

    retriever: CofarsRetriever
    attributes: Attributes
    catalogue: Catalogue
    values: int = 3
    contexts: int = 10
    events: int = 3

    @torch.no_grad()
    def __call__(self, pointers: Pointers) -> list[RetrievalExplanation]:
        """One explanation for each of R requests."""
        choice = self.retriever.choose(pointers)
        shares = self.retriever.selector.prototype_shares(choice.selection.users).cpu().numpy()
        words = self.retriever.reader.table.words(choice.targets)
        return [
            self._one(choice, pointers, row, words[row], shares[row]) for row in range(len(words))
        ]

    def _one(
        self,
        choice: Choice,
        pointers: Pointers,
        row: int,
        target: dict[str, str],
        shares: Floats,
    ) -> RetrievalExplanation:
        selector, table = self.retriever.selector, self.retriever.reader.table
        selection, seen = choice.selection, choice.contexts
        active = np.flatnonzero(choice.active[row])
        beta, similarity = selection.beta[row], selection.target[row]
        gate = selector.choice_gate
        prototypes = tuple(
            ActivePrototype(
                prototype=number,
                similarity=float(similarity[number]),
                beta=float(beta[number]),
                forced=not bool(gate.on(beta[number])),
                likes=top_values(self.attributes, shares[number], self.values),
            )
            for number in active.tolist()
        )
        mine = np.flatnonzero(seen.request == row)
        positions = choice.events.positions[row]
        rows = positions[positions >= 0] + pointers.start[row]
        keys = event_keys(self.retriever.reader.histories, table, rows)
        node = mine[np.searchsorted(seen.key[mine], keys)] if len(mine) else mine
        brought, count = np.unique(node, return_counts=True)
        tiers, total = np.unique(choice.tier[node], return_counts=True)
        step = np.searchsorted(tiers, choice.tier[brought])
        order = np.lexsort((-count, step))[: self.contexts]
        described = table.words(seen.key[brought[order]])
        parts = tuple(
            ContextPart(
                context=context,
                step=int(step[place]),
                links=self._links(choice, int(brought[place]), active),
                events=int(count[place]),
                newest=self._events(rows[node == brought[place]][: self.events]),
            )
            for place, context in zip(order.tolist(), described, strict=True)
        )
        return RetrievalExplanation(
            target=target,
            missing=tuple(
                name
                for name, code in zip(
                    table.codec.names, table.codes(choice.targets[row]).tolist(), strict=True
                )
                if code == MISSING
            ),
            known_user=bool(choice.requests.user[row] >= 0),
            known_context=bool(choice.requests.target_row[row] > 0),
            threshold=gate.theta,
            prototypes=prototypes,
            contexts=parts,
            contexts_left_out=len(brought) - len(parts),
            back_off=tuple(
                back_off_step(table.drop, tier, events)
                for tier, events in zip(tiers.tolist(), total.tolist(), strict=True)
            ),
            events=len(rows),
        )

    def _links(self, choice: Choice, node: int, active: npt.NDArray[np.int64]) -> tuple[Link, ...]:
        return tuple(
            Link(
                prototype=number,
                similarity=float(choice.selection.similarity[node, number]),
                belongs=bool(choice.membership[node, number]),
            )
            for number in active.tolist()
        )

    def _events(self, rows: npt.NDArray[np.int64]) -> tuple[RetrievedEvent, ...]:
        histories = self.retriever.reader.histories
        return tuple(RetrievedEvent.of(histories, self.catalogue, row) for row in rows.tolist())


def back_off_step(drop: tuple[str, ...], tier: int, events: int) -> BackOffStep:
    """What a tier of `Retrieved` means; `drop`: the features in the order they are given up."""
    if tier > len(drop):
        return BackOffStep(recent=True, events=events)
    return BackOffStep(dropped=drop[:tier], events=events)


def top_values(
    attributes: Attributes, shares: Floats, count: int
) -> dict[str, tuple[ValueShare, ...]]:
    """Field → its values of the largest shares, largest first; shares [W]."""
    out = {}
    fields = np.split(shares, np.cumsum(attributes.widths)[:-1])
    for name, labels, part in zip(attributes.names, attributes.labels, fields, strict=True):
        best = np.argsort(-part, kind="stable")[:count].tolist()
        out[name] = tuple(ValueShare(value=labels[i], share=float(part[i])) for i in best)
    return out
