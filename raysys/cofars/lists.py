"""The lists kept per user: contexts of each prototype; from them the events of a request.

Contexts belong to a prototype by the edge gate without noise, on vectors before aggregation.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from raysys.cofars.nightly import Nightly
from raysys.cofars.selector import CofarsSelector
from raysys.ctr.retrievers.draws import mixed
from raysys.data.context_index import ContextIndex, UserContexts
from raysys.data.context_keys import ContextTable

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
# Passes the numbers of some work on, and may show how far it is.
Track = Callable[[Sequence[int]], Iterable[int]]
_CHUNK = 1 << 14  # contexts held at once
_USERS = 1 << 12  # users dealt at once


@dataclass(frozen=True)
class Retrieved:
    """K events of R requests, newest first.

    positions [R, K] in the user's history, −1 padding; tier [R, K]: 0 by a selected prototype
    or the target context itself, l by contexts equal to the target without l dropped features,
    the last by recency alone; −1 padding.
    """

    positions: Ints
    tier: Ints

    def path(self) -> Ints:
        """The last tier that each request needed [R]; −1 without any event."""
        return self.tier.max(1, initial=-1)


@torch.no_grad()
def assign(
    selector: CofarsSelector, table: ContextTable, users: Ints, keys: Ints, track: Track = iter
) -> Bools:
    """Which prototypes n contexts belong to: users [n] encoder rows, keys [n] → [n, P].

    Nothing but its own user and context decides about a context. `track` watches the parts.
    """
    encoder = selector.encoder
    device = encoder.prototypes.device
    training = selector.training
    selector.eval()
    out = np.zeros((len(keys), len(encoder.prototypes)), bool)
    for low in track(range(0, len(keys), _CHUNK)):
        part = slice(low, low + _CHUNK)
        own, of = np.unique(users[part], return_inverse=True)
        u = encoder.user_vectors(torch.from_numpy(own).to(device))
        group = torch.from_numpy(of).to(device)
        codes = torch.from_numpy(table.codes(keys[part])).to(device)
        rows = torch.from_numpy(table.rows(keys[part])).to(device)
        profile = encoder.profile(encoder.contexts(codes, rows) + u[group])
        others = encoder.profile(u.unsqueeze(1) + encoder.prototypes)
        sim = encoder.similarities(profile, others, group)
        out[part] = selector.edge_gate.on(sim).cpu().numpy()
    selector.train(training)
    return out


@dataclass(frozen=True)
class Lists:
    """A context index with the prototypes of each of its pairs.

    bits [pairs, ⌈P/8⌉] uint8, packed. `model` names the selector they were made with. `nightly`
    spares requests behind whole histories their graph; what they retrieve is the same without.
    """

    index: ContextIndex
    bits: npt.NDArray[np.uint8]
    prototypes: int
    model: str
    nightly: Nightly | None = None

    @classmethod
    def build(
        cls,
        selector: CofarsSelector,
        table: ContextTable,
        index: ContextIndex,
        users: Ints,
        model: str,
        track: Track = iter,
        *,
        nightly: bool = False,
    ) -> "Lists":
        """Lists of all users of the index; users [U] are their rows of the encoder.

        `nightly`: with the graphs of their whole histories.
        """
        owner = np.repeat(users, np.diff(index.pair_begin))
        member = assign(selector, table, owner, index.key, track)
        graphs = Nightly.build(selector, table, index, users) if nightly else None
        return cls(index, np.packbits(member, axis=1), member.shape[1], model, graphs)

    def of(self, users: Ints) -> "Lists":
        """The lists of the given users, see `ContextIndex.of`."""
        pairs = self.index.pairs_of(users)
        graphs = None if self.nightly is None else self.nightly.of(users, pairs)
        index = self.index.of(users)
        return Lists(index, self.bits[pairs], self.prototypes, self.model, graphs)

    def append(
        self,
        selector: CofarsSelector,
        table: ContextTable,
        users: Ints,
        user: Ints,
        keys: Ints,
        position: Ints,
    ) -> "Lists":
        """The lists with n later events of users [n]; only contexts new to a user are assigned.

        users [U] rows of the encoder, as in `build`; the other arguments as in
        `ContextIndex.append`. Graphs stay as they were and serve requests before the later events.
        """
        index, moved = self.index.append(user, keys, position)
        bits = np.zeros((len(index.key), self.bits.shape[1]), np.uint8)
        bits[moved] = self.bits
        fresh = np.setdiff1d(np.arange(len(bits)), moved, assume_unique=True)
        owner = np.repeat(users, np.diff(index.pair_begin))
        member = assign(selector, table, owner[fresh], index.key[fresh])
        bits[fresh] = np.packbits(member, axis=1)
        graphs = None if self.nightly is None else self.nightly.moved(len(bits), moved)
        return Lists(index, bits, self.prototypes, self.model, graphs)

    def dealt(self, seed: int) -> "Lists":
        """A placebo: each user's prototypes get contexts drawn at random, with about as many
        events as before.

        For each prototype of a user his contexts are gone through in a random order, and those
        are taken that do not make the list longer than it was; then those that bring its length
        nearer to what it was, though beyond. It misses the old length by at most half the events
        of a single context; of the part of a history that an early request sees this holds
        roughly. What a context prefers has no part in it, nor which contexts the prototype had:
        only how many events these held. The order depends on the seed and the user's contexts, so
        that a history sent with a request is dealt like the same one stored.
        """
        events = np.diff(self.index.entry_begin)
        bits = np.empty_like(self.bits)
        for low in range(0, self.index.users, _USERS):
            begin = self.index.pair_begin[low : low + _USERS + 1]
            part = slice(int(begin[0]), int(begin[-1]))
            old = self.members(np.arange(part.start, part.stop))
            owner = np.repeat(np.arange(len(begin) - 1), np.diff(begin))
            new = _redrawn(old, owner, events[part], self.index.key[part], seed)
            bits[part] = np.packbits(new, axis=1)
        return replace(self, bits=bits)

    def membership(self, contexts: UserContexts) -> Bools:
        """[S, P] of the contexts of some requests, read from the lists."""
        return self.members(contexts.pair)

    def members(self, pairs: Ints) -> Bools:
        """[S, P] of pairs [S] of the index."""
        bits = np.unpackbits(self.bits[pairs], axis=1, count=self.prototypes)
        return bits.astype(bool)

    def open_pairs(self) -> int:
        """How many (context, prototype) pairs belong together."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64))


def _redrawn(member: Bools, owner: Ints, events: Ints, keys: Ints, seed: int) -> Bools:
    """Which contexts [n] belong to which prototypes [n, P] instead, see `Lists.dealt`.

    owner [n] ascending number of the user, events [n], keys [n].
    """
    users, count = int(owner.max(initial=-1)) + 1, member.shape[1]
    missing = np.zeros((users, count), np.int64)
    np.add.at(missing, owner, member * events[:, None])
    history = np.zeros(users, np.uint64)
    np.add.at(history, owner, mixed(seed, keys, events))
    drawn = mixed(seed, history[owner][:, None], keys[:, None], np.arange(count))
    order = np.argsort(drawn, axis=0)
    order = np.take_along_axis(order, np.argsort(owner[order], axis=0, kind="stable"), 0)
    out = np.zeros_like(member)
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    turns = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place))[:-1])
    for most in (1, 2):  # first what fits, then what comes nearer though it is too much
        for rows in turns:  # the first context of each user, then the second of each, …
            pair, user = order[rows], owner[rows]
            free = ~out[pair, np.arange(count)] & (missing[user] > 0)
            taken = free & (events[pair] < most * missing[user] + (2 - most))
            out[pair, np.arange(count)] |= taken
            missing[user] -= np.where(taken, events[pair], 0)
    return out


def tiers(
    table: ContextTable,
    contexts: UserContexts,
    targets: Ints,
    membership: Bools,
    chosen: Bools,
    *,
    strict: bool = False,
) -> Ints:
    """[S] tier of each context: see `Retrieved`; −1: not to be used.

    targets [R] context keys; membership [S, P]; chosen [R, P] prototypes that are on.
    `strict` uses the selected contexts and the target only.
    """
    selected = (membership & chosen[contexts.request]).any(1)
    return table.tiers(contexts.key, targets[contexts.request], selected, strict=strict)
