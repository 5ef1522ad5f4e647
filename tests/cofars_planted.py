"""A small log whose contexts fall into known clusters of preference, in plain arrays."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from raysys.cofars.encoder import ContextEncoder
from raysys.cofars.requests import RequestReader
from raysys.cofars.selector import CofarsSelector
from raysys.data.attribute_counts import ContextCounts, count_contexts, event_keys
from raysys.data.attributes import AttributeField, Attributes
from raysys.data.batch import Pointers
from raysys.data.context_index import ContextIndex
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import ContextCodec, ContextFeature
from raysys.data.histories import Histories

SIZES = dict(meal=4, place=3, weather=3)
CODEC = ContextCodec(
    features=tuple(
        ContextFeature(name=name, kind="categorical", values=tuple(f"{name}{i}" for i in range(n)))
        for name, n in SIZES.items()
    )
)
CUISINES, PRICES, CLUSTERS = 8, 4, 4
WIDTHS = (CUISINES, PRICES)
ITEMS = CUISINES * PRICES * 2
FIELDS = Attributes(
    fields=(AttributeField(source="brand"), AttributeField(source="price", edges=(10, 20, 30))),
    features=(
        ContextFeature(
            name="brand", kind="categorical", values=tuple(f"brand{n}" for n in range(WIDTHS[0]))
        ),
        ContextFeature(name="price", kind="numeric", edges=(10, 20, 30)),
    ),
)
# Values [2 + items, 2]: padding and the unknown item have none.
VALUES = np.array(
    [(-1, -1)] * 2 + [(i % CUISINES, i // CUISINES % PRICES) for i in range(ITEMS)], np.int32
)


def cluster(codes: np.ndarray) -> np.ndarray:
    """Cluster [...] of code rows [..., 3]: of meal and place; weather says nothing."""
    return (codes[..., 0] + 2 * codes[..., 1]) % CLUSTERS


def law(kind: int) -> np.ndarray:
    """Probability [items] of each item in a cluster: two cuisines and one price stand out."""
    cuisine, price = VALUES[2:].T
    mass = np.where(cuisine // 2 == kind, 8.0, 1.0) * np.where(price == kind, 5.0, 1.0)
    return mass / mass.sum()


def histories(lengths: list[int], seed: int = 0, contexts: np.ndarray | None = None) -> Histories:
    """Users with the given numbers of events, one a minute, in random contexts."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    codes = np.stack([rng.integers(2, 2 + n, total) for n in SIZES.values()], 1)
    if contexts is not None:
        codes = contexts
    laws = np.stack([law(kind) for kind in range(CLUSTERS)])
    drawn = (rng.random((total, 1)) > laws[cluster(codes)].cumsum(1)).sum(1)
    return Histories(
        users=pa.array([f"u{i}" for i in range(len(lengths))], pa.string()),
        start=np.cumsum([0, *lengths]).astype(np.int64),
        item=(2 + drawn).astype(np.int32),
        ts=np.concatenate([60_000_000 * np.arange(n) for n in lengths]).astype(np.int64),
        behaviour=np.zeros(total, np.int8),
        context=codes.astype(np.int32),
        codec=CODEC,
    )


@dataclass
class Planted:
    """The log with everything that is made of it before training."""

    past: Histories
    table: ContextTable
    index: ContextIndex
    reader: RequestReader
    counts: ContextCounts
    shares: np.ndarray

    @classmethod
    def of(cls, past: Histories, known: np.ndarray | None = None, **reader: int) -> "Planted":
        """`known` code rows make the table; by default those of the log."""
        table = ContextTable.fit(
            CODEC, tuple(SIZES), ("weather",), [past.context if known is None else known]
        )
        index = ContextIndex.build(past.start, event_keys(past, table, slice(None)))
        users = np.arange(len(past.users))
        counts = count_contexts(past, table, VALUES, WIDTHS, past.start[1:])
        return cls(
            past=past,
            table=table,
            index=index,
            reader=RequestReader(past, table, index, users, **reader),
            counts=counts,
            shares=counts.shares(table, 20.0),
        )

    def selector(self, seed: int = 0, **options: object) -> CofarsSelector:
        """A fresh selector with the log's catalogue and shares bound to it."""
        torch.manual_seed(seed)
        names = ContextEncoder.__init__.__kwdefaults__
        own = {name: options.pop(name) for name in list(options) if name in names}
        encoder = ContextEncoder(
            cardinalities=self.table.cardinalities,
            contexts=self.table.size,
            users=len(self.past.users),
            widths=WIDTHS,
            **{"dim": 16, "hidden": (32,), "prototypes": 8, **own},
        )
        selector = CofarsSelector(encoder, (2 + ITEMS,), **options)
        selector.items.bind(torch.arange(2 + ITEMS)[:, None], {})
        rows = self.counts.supported(1)
        codes = self.table.codes(self.table.known_keys[rows - 1])
        tensors = (torch.from_numpy(x) for x in (codes, rows, self.shares[rows]))
        selector.bind_shares(*tensors)
        return selector

    def pointers(
        self, users: list[int], ends: list[int], seed: int = 0, candidates: int = 4
    ) -> Pointers:
        """Requests of users at numbers of events; a user of −1 has no history."""
        rng = np.random.default_rng(seed)
        start = self.past.begin(np.array(users, np.int64))
        context = np.stack([rng.integers(2, 2 + n, len(users)) for n in SIZES.values()], 1)
        clicks = np.zeros((len(users), candidates), np.float32)
        clicks[:, 0] = 1
        return Pointers(
            start=start,
            end=start + np.array(ends, np.int64),
            ts=60_000_000 * np.array(ends, np.int64),
            context=context.astype(np.int32),
            codec=CODEC,
            candidates=rng.integers(2, 2 + ITEMS, (len(users), candidates)),
            clicks=clicks,
        )


def train(selector: CofarsSelector, planted: Planted, warm: int = 300, steps: int = 60) -> None:
    """Fit the encoder alone, set the thresholds, then fit everything."""
    rng = np.random.default_rng(0)
    laws = np.stack([law(kind) for kind in range(CLUSTERS)])
    optimizer = torch.optim.Adam(selector.parameters(), lr=5e-3)
    selector.train()
    for step in range(warm + steps):
        users = rng.integers(0, len(planted.past.users), 24)
        limit = np.diff(planted.past.start)[users]
        pointers = planted.pointers(
            users.tolist(), rng.integers(1, limit + 1).tolist(), seed=step, candidates=2
        )
        clicked = (rng.random((24, 1)) > laws[cluster(pointers.context)].cumsum(1)).sum(1)
        pointers.candidates[:, 0] = 2 + clicked
        requests = planted.reader(pointers)
        if step == warm:
            selector.calibrate(requests, 70.0, 70.0)
        if step < warm:
            u = selector.encoder.user_vectors(requests.user)
            profiles = selector.encoder.profile(u.unsqueeze(1) + selector.encoder.prototypes)
            loss = selector.mse * selector.pair_loss(requests, u).mean()
            loss = loss + selector.ind * selector.encoder.independence_loss(profiles).mean()
        else:
            candidates = torch.from_numpy(pointers.candidates)
            losses = selector.loss(
                requests, candidates, torch.from_numpy(pointers.clicks), candidates > 0
            )
            loss = losses.total / losses.weight
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    selector.eval()
