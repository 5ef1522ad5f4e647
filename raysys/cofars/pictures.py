"""Pictures of a fitted selector: which contexts are alike, and the graph of one user."""

import numpy as np
import numpy.typing as npt
import torch

from raysys.cofars.explain import top_values
from raysys.cofars.lists import Lists
from raysys.cofars.selector import CofarsSelector
from raysys.data.attributes import Attributes
from raysys.data.context_keys import ContextTable
from raysys.tracking.figures import Edge, Figure, GraphFigure, HeatmapFigure, Node

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
MAX_CONTEXTS = 40  # of a map
MAX_NODES = 10  # contexts of a user that can be told apart in a graph


@torch.no_grad()
def pictures(
    selector: CofarsSelector,
    table: ContextTable,
    attributes: Attributes,
    lists: Lists,
    users: Ints,
) -> dict[str, Figure]:
    """Name → figure: two maps, and a graph where any user has an event.

    lists: of U users; users [U]: their rows of the encoder, −1 unknown.
    """
    painter = _Painter(selector.eval(), table, attributes)
    index = lists.index
    events = np.diff(index.entry_begin)
    keys, number = np.unique(index.key, return_inverse=True)
    if not len(keys):
        return {}
    often = np.bincount(number, events)
    most = np.sort(np.argsort(-often, kind="stable")[:MAX_CONTEXTS])
    found = painter.maps(keys[most])
    user = example_user(np.diff(index.pair_begin))
    found["cofars-graph"] = painter.graph(lists, user, int(users[user]))
    return found


def example_user(contexts: Ints) -> int:
    """The user with the most contexts [U] that still fit a graph, else the one with the fewest."""
    fits = np.where(contexts <= MAX_NODES, contexts, 0)
    if fits.any():
        return int(fits.argmax())
    return int(np.where(contexts > 0, contexts, contexts.max() + 1).argmin())


class _Painter:
    def __init__(
        self, selector: CofarsSelector, table: ContextTable, attributes: Attributes
    ) -> None:
        self.selector = selector
        self.table = table
        self.attributes = attributes

    def maps(self, keys: Ints) -> dict[str, Figure]:
        """Of contexts [M] for a user without a vector of his own."""
        alike, close, shares = self._similarities(keys, -1)
        best = close.argmax(1)
        order = np.lexsort((-close.max(1), best))
        words = self._names(keys[order])
        names = tuple(f"{best[i]} | {word}" for i, word in zip(order, words, strict=True))
        features = " · ".join(self.table.codec.names)
        what = (
            f"The {len(keys)} contexts with the most events, as a user without a vector of his "
            "own would have them. "
        )
        label = "1 − divergence"
        if self.selector.encoder.similar_by == "inner":
            label = "σ of the inner product"
        return {
            "cofars-contexts": HeatmapFigure(
                title="Similarity of contexts",
                caption=f"{what}Before the bar: the most similar prototype, by which they are "
                "ordered. Squares on the diagonal are contexts of alike predicted preferences.",
                x=names,
                y=names,
                values=_cells(alike[np.ix_(order, order)]),
                x_label=f"prototype | {features}",
                y_label=f"prototype | {features}",
                value_label=label,
            ),
            "cofars-prototypes": HeatmapFigure(
                title="Similarity of contexts and prototypes",
                caption=f"{what}Under each prototype: the values that it likes best.",
                x=tuple(self._prototype(number, row) for number, row in enumerate(shares)),
                y=names,
                values=_cells(close[order]),
                x_label="prototype and what it likes",
                y_label=f"prototype | {features}",
                value_label=label,
            ),
        }

    def graph(self, lists: Lists, user: int, row: int) -> Figure:
        """Contexts of a user of the lists, with the row of his vector, and their prototypes."""
        index = lists.index
        mine = index.pairs_of(np.array([user]))
        events = np.diff(index.entry_begin)[mine]
        shown = np.sort(np.argsort(-events, kind="stable")[:MAX_NODES])
        pairs, events = mine[shown], events[shown]
        member = lists.members(pairs)
        _, close, shares = self._similarities(index.key[pairs], row)
        nodes = [
            Node(
                id=f"prototype {number}",
                label=self._prototype(number, shares[number]),
                group="prototype",
                weight=float(events[member[:, number]].sum()),
            )
            for number in np.flatnonzero(member.any(0)).tolist()
        ]
        nodes += [
            Node(id=f"context {pair}", label=name, group="context", weight=float(count))
            for pair, name, count in zip(
                pairs.tolist(), self._names(index.key[pairs]), events.tolist(), strict=True
            )
        ]
        edges = [
            Edge(
                source=f"prototype {number}",
                target=f"context {pairs[place]}",
                weight=float(close[place, number]),
                group="brings",
            )
            for place, number in np.argwhere(member).tolist()
        ]
        moves = index.moves[index.move_begin[user] : index.move_begin[user + 1], :2]
        kept = np.isin(moves, pairs).all(1) & (moves[:, 0] != moves[:, 1])
        edges += [
            Edge(
                source=f"context {source}",
                target=f"context {target}",
                weight=0.3,
                group="followed by",
            )
            for source, target in moves[kept].tolist()
        ]
        left = len(mine) - len(pairs)
        return GraphFigure(
            title="Prototypes and contexts of one user",
            caption=f"User {user} of the lists, {int(events.sum())} events in {len(pairs)} contexts"
            + (f" ({left} rarer ones left out)" if left else "")
            + ". Size: events. An arrow leads from a prototype to the contexts it brings, wider "
            "with their similarity, and from a context to one that followed it.",
            nodes=tuple(nodes),
            edges=tuple(edges),
            directed=True,
        )

    def _similarities(self, keys: Ints, user: int) -> tuple[Floats, Floats, Floats]:
        """Of contexts [M] with each other [M, M] and with prototypes [M, P], for a row of the
        encoder; and the shares [P, W] of the prototypes."""
        encoder, table = self.selector.encoder, self.table
        device = encoder.prototypes.device
        u = encoder.user_vectors(torch.tensor([user], device=device))
        codes = torch.from_numpy(table.codes(keys)).to(device)
        rows = torch.from_numpy(table.rows(keys)).to(device)
        profile = encoder.profile(encoder.contexts(codes, rows) + u)
        others = encoder.profile(u + encoder.prototypes)
        group = torch.zeros_like(rows)
        alike = encoder.similarities(profile, profile.unsqueeze(0), group)
        close = encoder.similarities(profile, others.unsqueeze(0), group)
        shares = self.selector.prototype_shares(u)[0]
        return alike.cpu().numpy(), close.cpu().numpy(), shares.cpu().numpy()

    def _names(self, keys: Ints) -> list[str]:
        return [" · ".join(words.values()) for words in self.table.words(keys)]

    def _prototype(self, number: int, shares: Floats) -> str:
        """Its number and best values of two fields; the second is named, it is often a number."""
        best = [
            (name, top[0].value) for name, top in top_values(self.attributes, shares, 1).items()
        ]
        more = [f"{name.rpartition(':')[2]} {value}" for name, value in best[1:2]]
        return f"{number}: " + " · ".join([best[0][1], *more])


def _cells(values: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 4) for value in row) for row in values)
