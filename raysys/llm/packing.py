"""Texts of many lengths in few rows: no padding worth mentioning, no text sees another.

Several texts share a row; position ids begin anew with each of them, from which transformers'
attention masks keep them apart (`attention_keeps_apart` asks whether a model's do).
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysys.errors import ConfigError


@dataclass(frozen=True)
class Packed:
    """R rows of T tokens that hold n texts.

    ids, positions [R, T] int64; last [n] int64: place of each text's last token in the
    flattened rows, in the order of the texts; weights [R, T] float32: weight of each token as
    something to predict; mask [R, T] int64, 1 for real tokens: only where each row is one text
    and another program has padded it.
    """

    ids: Tensor
    positions: Tensor
    last: Tensor
    weights: Tensor | None = None
    mask: Tensor | None = None

    def to(self, device: torch.device) -> "Packed":
        """On another device."""
        return Packed(**{k: v if v is None else v.to(device) for k, v in vars(self).items()})

    @classmethod
    def of(
        cls,
        texts: Sequence[Sequence[int]],
        rows: Sequence[Sequence[int]],
        pad: int,
        weights: Sequence[Sequence[float]] | None = None,
    ) -> "Packed":
        """Texts as token ids, laid out as `rows` say (indices of texts, each in one row).

        `last` follows the order of the rows. weights: of each token of each text; what pads a
        row weighs nothing. Without any row: one row of one pad token and no text.
        """
        width = max([sum(len(texts[i]) for i in row) for row in rows], default=1)
        shape = (max(len(rows), 1), width)
        ids = np.full(shape, pad, np.int64)
        positions = np.zeros(shape, np.int64)
        weight = np.zeros(shape, np.float32)
        last = []
        for r, row in enumerate(rows):
            at = 0
            for index in row:
                text = texts[index]
                span = slice(at, at + len(text))
                ids[r, span], positions[r, span] = text, np.arange(len(text))
                if weights is not None:
                    weight[r, span] = weights[index]
                at += len(text)
                last.append(r * width + at - 1)
            positions[r, at:] = np.arange(width - at)
        return cls(
            torch.from_numpy(ids),
            torch.from_numpy(positions),
            torch.tensor(last, dtype=torch.int64),
            None if weights is None else torch.from_numpy(weight),
        )

    @classmethod
    def padded(cls, ids: Tensor, mask: Tensor, weights: Tensor | None = None) -> "Packed":
        """Rows [N, T] of one text each, padded on either side; mask [N, T] 1 for real tokens."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).argmax(1) + torch.arange(len(ids), device=ids.device) * ids.shape[1]
        return cls(ids, positions, last, weights, mask)


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of indices whose lengths sum to `width` at most: best fit, longest first.

    Raises:
        ValueError: a length beyond `width`.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > width:
            raise ValueError(f"a text of {length} tokens does not fit into rows of {width}")
        place = bisect_left(room, (length, -1))
        if place == len(room):
            rows.append([])
            left, row = width, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        if left > length:
            insort(room, (left - length, row))
    return rows


def passes(
    rows: Sequence[list[int]], rank: int, size: int, at_once: int
) -> Iterator[list[list[int]]]:
    """The share of worker `rank` of `size` in `rows`, `at_once` in one forward pass.

    Every worker makes as many, if need be over nothing: sharded models need that.
    """
    share = -(-len(rows) // size)
    mine = rows[share * rank : share * (rank + 1)]
    for begin in range(0, share, at_once):
        yield list(mine[begin : begin + at_once])


@torch.no_grad()
def attention_keeps_apart(body: Any, vocabulary: int) -> None:
    """Refuse a model whose texts see others of their row, or what comes after them.

    Raises:
        ConfigError: the last hidden states of packed texts differ from those of texts alone.
    """
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, vocabulary, n).tolist() for n in (5, 3, 7)]
    device = next(body.parameters()).device
    training = body.training
    body.eval()
    packed = last_hidden(body, Packed.of(texts, [[0, 1, 2]], pad=0).to(device))
    single = [last_hidden(body, Packed.of([text], [[0]], pad=0).to(device)) for text in texts]
    body.train(training)
    if not torch.allclose(
        packed, torch.cat(single), rtol=1e-2, atol=1e-3 * float(packed.abs().max())
    ):
        raise ConfigError(
            f"{type(body).__name__}: texts in one row see each other (no causal attention that "
            "heeds position ids); choose a decoder model"
        )


def last_hidden(body: Any, packed: Packed) -> Tensor:
    """The body's hidden state [n, D] at each text's last token."""
    hidden = body(
        input_ids=packed.ids,
        position_ids=packed.positions,
        attention_mask=packed.mask,
        use_cache=False,
    ).last_hidden_state
    return hidden.flatten(0, 1)[packed.last]


def token_losses(model: nn.Module, batch: Packed) -> Tensor:
    """−log p of each token but the first of each row [R, T − 1], in float32.

    Where a text begins mid-row the value is that of a guess across texts: weigh it 0.
    """
    logits = model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        use_cache=False,
    ).logits.float()
    flat = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    return flat.view(batch.ids.shape[0], -1)


@dataclass
class PackedLoader:
    """Packed rows by position: each epoch holds every row once, in an order of its own.

    ids, weights: tokens of each text, and what each weighs as something to predict; width: tokens
    of a row; rows_per_batch: of one global batch.
    """

    ids: Sequence[Sequence[int]]
    weights: Sequence[Sequence[float]]
    width: int
    rows_per_batch: int
    pad: int
    seed: int
    steps_per_epoch: int = field(init=False)
    rows: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = pack([len(ids) for ids in self.ids], self.width)
        self.steps_per_epoch = -(-len(self.rows) // self.rows_per_batch)

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return sum(map(len, self.ids))

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a token of a text."""
        return self.tokens / (len(self.rows) * self.width)

    def batch(self, epoch: int, step: int, part: int, parts: int) -> Packed:
        """See `raysys.training.Loader`; a part without rows is a batch that weighs nothing."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        chosen = order[step * self.rows_per_batch : (step + 1) * self.rows_per_batch]
        mine = chosen[len(chosen) * part // parts : len(chosen) * (part + 1) // parts]
        return Packed.of(self.ids, [self.rows[row] for row in mine], self.pad, self.weights)
