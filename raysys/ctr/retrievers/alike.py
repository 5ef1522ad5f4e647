"""Contexts in which the same is liked, by counting alone; and a placebo of them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from raysys.data.attribute_counts import Shares
from raysys.data.context_keys import ContextTable
from raysys.layers.divergence import Divergence

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_FIRST_BLOCK = 8  # contexts of about as many events that stand in for each other


class AlikeContexts(BaseModel):
    """Which contexts count as alike.

    table: what a context is, and the M combinations that training has met.
    rows: for each of the N nodes of the table (the combinations, their parents, all) the nodes
        alike to it: bits [N], packed, in hexadecimal digits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: ContextTable
    rows: tuple[str, ...]

    @classmethod
    def of(cls, table: ContextTable, matrix: Bools) -> "AlikeContexts":
        """Of a matrix [N, N]."""
        packed = np.packbits(matrix, axis=1)
        return cls(table=table, rows=tuple(row.tobytes().hex() for row in packed))

    @classmethod
    def nearest(
        cls, table: ContextTable, shares: Shares, widths: tuple[int, ...], share: float
    ) -> "AlikeContexts":
        """Nodes whose shares of attribute values diverge by a threshold at most.

        JS is the mean over the fields. The threshold is the smallest that lets a part `share` of
        the pairs of different combinations be alike; each node is alike to itself. What training
        has not met has the shares of its parent.

        Args:
            table: with M ≥ 2 combinations.
            shares: [N, W], see `ContextCounts.node_shares`.
            widths: number of values of each field.
            share: in (0, 1].
        """
        known = torch.from_numpy(shares)
        divergence = Divergence(widths).pairwise(known, known).numpy()
        met = len(table.known)
        pairs = divergence[:met, :met][np.triu_indices(met, 1)]
        threshold = np.quantile(pairs, share, method="inverted_cdf")
        return cls.of(table, (divergence <= threshold) | np.eye(len(known), dtype=bool))

    @property
    def matrix(self) -> Bools:
        """[N, N]: row i says which nodes are alike to node i."""
        packed = np.frombuffer(bytes.fromhex("".join(self.rows)), np.uint8)
        bits = np.unpackbits(packed.reshape(len(self.rows), -1), axis=1, count=len(self.rows))
        return bits.astype(bool)

    def drawn(self, events: npt.NDArray[Any], seed: int) -> "AlikeContexts":
        """A placebo: as many contexts alike to each, drawn at random.

        Contexts are ordered by their events [N], most first, and cut at 8, 16, 32, …; each row
        keeps how many of a block it has, so that its contexts hold about as many events as
        before. Every context stays alike to itself if it was.
        """
        matrix, size = self.matrix, len(self.rows)
        keys = np.random.default_rng(seed).random((size, size))
        np.fill_diagonal(keys, 2.0)
        out = np.eye(size, dtype=bool) & matrix
        others = matrix & ~np.eye(size, dtype=bool)
        order = np.argsort(-events, kind="stable")
        cuts = _FIRST_BLOCK * 2 ** np.arange(max(0, int(np.log2(size / _FIRST_BLOCK))))
        for block in np.split(order, cuts):
            rank = keys[:, block].argsort(1).argsort(1)
            out[:, block] |= rank < others[:, block].sum(1, keepdims=True)
        return AlikeContexts.of(self.table, out)
