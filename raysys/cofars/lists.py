"""The lists kept per user: contexts of each prototype; from them the events of a request.

Contexts belong to a prototype by the edge gate without noise, on vectors before aggregation.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from raysys.cofars.selector import CofarsSelector
from raysys.data.columns import ColumnFolder
from raysys.data.context_index import ContextIndex, UserContexts
from raysys.data.context_keys import ContextTable
from raysys.errors import ArtifactError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_CHUNK = 1 << 14  # contexts held at once


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
def assign(selector: CofarsSelector, table: ContextTable, users: Ints, keys: Ints) -> Bools:
    """Which prototypes n contexts belong to: users [n] encoder rows, keys [n] → [n, P].

    Nothing but its own user and context decides about a context.
    """
    encoder = selector.encoder
    device = encoder.prototypes.device
    training = selector.training
    selector.eval()
    out = np.zeros((len(keys), len(encoder.prototypes)), bool)
    for low in range(0, len(keys), _CHUNK):
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

    bits [pairs, ⌈P/8⌉] uint8, packed. `model` names the selector they were made with.
    """

    index: ContextIndex
    bits: npt.NDArray[np.uint8]
    prototypes: int
    model: str

    @classmethod
    def build(
        cls,
        selector: CofarsSelector,
        table: ContextTable,
        index: ContextIndex,
        users: Ints,
        model: str,
    ) -> "Lists":
        """Lists of all users of the index; users [U] are their rows of the encoder."""
        owner = np.repeat(users, np.diff(index.pair_begin))
        member = assign(selector, table, owner, index.key)
        return cls(index, np.packbits(member, axis=1), member.shape[1], model)

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
        `ContextIndex.append`.
        """
        index, moved = self.index.append(user, keys, position)
        bits = np.zeros((len(index.key), self.bits.shape[1]), np.uint8)
        bits[moved] = self.bits
        fresh = np.setdiff1d(np.arange(len(bits)), moved, assume_unique=True)
        owner = np.repeat(users, np.diff(index.pair_begin))
        member = assign(selector, table, owner[fresh], index.key[fresh])
        bits[fresh] = np.packbits(member, axis=1)
        return Lists(index, bits, self.prototypes, self.model)

    def dealt(self, seed: int) -> "Lists":
        """A placebo: the prototypes of each user's contexts in another order, drawn at random."""
        owner = np.repeat(np.arange(self.index.users), np.diff(self.index.pair_begin))
        order = np.lexsort((np.random.default_rng(seed).random(len(owner)), owner))
        return replace(self, bits=self.bits[order])

    def membership(self, contexts: UserContexts) -> Bools:
        """[S, P] of the contexts of some requests, read from the lists."""
        bits = np.unpackbits(self.bits[contexts.pair], axis=1, count=self.prototypes)
        return bits.astype(bool)

    def save(self, folder: Path) -> None:
        """Write the lists as Arrow IPC columns into `folder`."""
        self.index.save(folder)
        columns = ColumnFolder(folder)
        columns.write("bits", self.bits)
        (folder / "model").write_text(f"{self.model} {self.prototypes}", encoding="utf-8")

    @staticmethod
    def version(folder: Path) -> str:
        """The selector that the lists in `folder` were made with.

        Raises:
            ArtifactError: there are none.
        """
        return _header(folder)[0]

    @classmethod
    def load(cls, folder: Path, model: str) -> "Lists":
        """Open memory-mapped lists.

        Raises:
            ArtifactError: there are none, or they were made with another selector.
        """
        made, prototypes = _header(folder)
        if made != model:
            raise ArtifactError(
                f"{folder}: lists of model {made} cannot serve model {model}; build them again"
            )
        bits = ColumnFolder(folder).read("bits")
        return cls(ContextIndex.load(folder), bits, int(prototypes), model)


def _header(folder: Path) -> tuple[str, str]:
    try:
        made, prototypes = (folder / "model").read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: holds no CoFARS lists; build them") from error
    return made, prototypes


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
