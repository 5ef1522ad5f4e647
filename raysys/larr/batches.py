"""Stage 2's batches: pairs of every kind, this worker's texts, and which keys are negatives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raysys.errors import DataError
from raysys.larr.log import Int64Array, Log
from raysys.larr.pairs import Kind, Pairs, place_text
from raysys.llm.packing import Packed, pack
from raysys.llm.tokens import TextTokens


@dataclass(frozen=True)
class PairBlock:
    """This worker's n of the B pairs of one kind in a global batch; H hard negatives each.

    anchor, positive [n], hard [n·H]: rows of the worker's vectors; negative [n, B + B·H] bool:
    which keys count, positives of the global batch first, then hard negatives, by pair;
    backward [n, B]: the same for positives against the anchors, or None; counts: pairs of each
    worker; first: place of the first of ours in the global batch.
    """

    anchor: Tensor
    positive: Tensor
    hard: Tensor
    negative: Tensor
    backward: Tensor | None
    counts: tuple[int, ...]
    first: int

    @property
    def total(self) -> int:
        """B."""
        return sum(self.counts)


@dataclass(frozen=True)
class ContrastBatch:
    """Chunks to encode one by one; order [n]: where each text of the worker lies among their
    vectors; pairs by kind."""

    chunks: list[Packed]
    order: Tensor
    pairs: dict[Kind, PairBlock]

    def to(self, device: torch.device) -> "ContrastBatch":
        """On another device."""
        blocks = {
            kind: replace(
                block,
                **{k: v.to(device) for k, v in vars(block).items() if isinstance(v, Tensor)},
            )
            for kind, block in self.pairs.items()
        }
        return ContrastBatch(
            [chunk.to(device) for chunk in self.chunks], self.order.to(device), blocks
        )


class Texts:
    """Token rows of one batch, each distinct text once."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self._row: dict[str, int] = {}

    def add(self, text: str) -> int:
        """Row of the text."""
        row = self._row.setdefault(text, len(self.rows))
        if row == len(self.rows):
            self.rows.append(text)
        return row


class PairLoader:
    """Global batches of `batch_size` pairs of every kind.

    An epoch goes once through the largest kind; smaller ones are gone through again, each time
    in another order. A part is a worker's share: pairs need all workers at once, so memory is
    bounded by chunks (`chunk_tokens`), never by cutting the batch.
    """

    def __init__(
        self,
        log: Log,
        pairs: Mapping[Kind, Pairs],
        tokens: TextTokens,
        *,
        batch_size: int,
        hard: int,
        row_tokens: int,
        chunk_tokens: int,
        seed: int,
    ) -> None:
        """Raises:
        DataError: a kind has fewer than two pairs.
        """
        for kind, found in pairs.items():
            if len(found) < 2:
                raise DataError(
                    f"{log.data.dataset.path}: {len(found)} training pairs of kind {kind} where "
                    f"two are needed; choose another rule (pairs.{kind}) or set weights.{kind}=0"
                )
        self.log, self.pairs, self.tokens = log, dict(pairs), tokens
        self.size = {kind: min(batch_size, len(found)) for kind, found in pairs.items()}
        self.hard, self.seed = hard, seed
        self.row_tokens, self.rows_per_chunk = row_tokens, max(1, chunk_tokens // row_tokens)
        self.steps_per_epoch = max(len(p) // self.size[kind] for kind, p in pairs.items())

    def batch(self, epoch: int, step: int, part: int, parts: int) -> ContrastBatch:
        """See `raysys.training.Loader`."""
        texts = Texts()
        blocks: dict[Kind, PairBlock] = {}
        for number, kind in enumerate(self.pairs):
            rng = np.random.default_rng([self.seed, epoch, step, number])
            chosen = self._chosen(kind, number, epoch, step)
            blocks[kind] = self._block(self.pairs[kind], chosen, rng, part, parts, texts)
        ids = self.tokens(texts.rows)
        rows = pack([len(row) for row in ids], self.row_tokens)
        size = self.rows_per_chunk
        parts_of = [rows[i : i + size] for i in range(0, max(len(rows), 1), size)]
        chunks = [Packed.of(ids, some, self.tokens.pad) for some in parts_of]
        placed = np.empty(len(ids), np.int64)
        placed[[index for row in rows for index in row]] = np.arange(len(ids))
        return ContrastBatch(chunks, torch.from_numpy(placed), blocks)

    def sample(self, count: int) -> list[str]:
        """Some `count` training texts of all kinds, spread over the pairs."""
        texts = []
        each = max(1, count // (2 * len(self.pairs)))
        for pairs in self.pairs.values():
            for pair in np.linspace(0, len(pairs) - 1, min(each, len(pairs))).astype(int).tolist():
                texts += [
                    side.text(self.log, pair, training=True)
                    for side in (pairs.anchor, pairs.positive)
                ]
        return texts

    def _chosen(self, kind: Kind, number: int, epoch: int, step: int) -> Int64Array:
        """Pairs [B] of the global batch."""
        size, count = self.size[kind], len(self.pairs[kind])
        per_round = count // size
        # Rounds are counted over all epochs: an order is never used twice.
        rounds, place = divmod(epoch * self.steps_per_epoch + step, per_round)
        order = np.random.default_rng([self.seed, number, rounds]).permutation(count)
        return order[place * size : (place + 1) * size]

    def _block(
        self,
        pairs: Pairs,
        chosen: Int64Array,
        rng: np.random.Generator,
        part: int,
        parts: int,
        texts: Texts,
    ) -> PairBlock:
        total = len(chosen)
        bounds = [total * p // parts for p in range(parts + 1)]
        mine = slice(bounds[part], bounds[part + 1])
        keys = pairs.positive_id[chosen]
        width = self.hard if pairs.draw else 0
        hard = np.zeros((total, 0), np.int64)
        if pairs.draw and width:
            hard = pairs.draw(chosen, width, rng)
            keys = np.concatenate([keys, hard.reshape(-1)])
        negative = pairs.negatives(chosen[mine], keys)
        backward = None
        if pairs.symmetric:
            backward = torch.from_numpy(_turned(pairs, chosen, mine))
        log = self.log
        rows = {
            side: [
                texts.add(getattr(pairs, side).text(log, pair, training=True))
                for pair in chosen[mine]
            ]
            for side in ("anchor", "positive")
        }
        # A hard negative that does not exist is masked; any text stands in for it.
        others = [
            texts.add(place_text(log.places, row, "poi")) if row > 0 else rows["positive"][0]
            for row in hard[mine].reshape(-1).tolist()
        ]
        return PairBlock(
            anchor=torch.tensor(rows["anchor"], dtype=torch.int64),
            positive=torch.tensor(rows["positive"], dtype=torch.int64),
            hard=torch.tensor(others, dtype=torch.int64),
            negative=torch.from_numpy(negative),
            backward=backward,
            counts=tuple(bounds[p + 1] - bounds[p] for p in range(parts)),
            first=bounds[part],
        )


def _turned(pairs: Pairs, chosen: Int64Array, mine: slice) -> np.ndarray:
    """[n, B]: which anchors are negatives of our positives: those of which the positive is one,
    and that are not the same anchor."""
    forward = pairs.negatives(chosen, pairs.positive_id[chosen[mine]]).T
    anchors = pairs.anchor_id[chosen]
    return forward & (anchors[mine][:, None] != anchors[None, :])
