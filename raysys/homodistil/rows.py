"""Documents as rows of tokens, and what is to be predicted of them."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysys.errors import DataError

Ints = npt.NDArray[np.int64]
MASKED = 0.15  # of the tokens of a row
_ORDER, _MASKS = 1, 2  # what is drawn
_MASK, _OTHER = 0.8, 0.9  # of these: the mask token, another one, and the rest as they are


_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_SHORTEST = 3  # words of a sentence
_WINDOW = 50  # batches whose rows are sorted by length


class Rows(NamedTuple):
    """input_ids [B, S]; labels [B, S], −100 where nothing is predicted; mask [B, S] bool, True = a
    real token."""

    input_ids: Tensor
    labels: Tensor
    mask: Tensor


def packed(texts: Iterable[str], tokenizer: Any, width: int) -> Ints:
    """[N, width] the tokens of all texts one after the other, an end token behind each; what does
    not fill a row is left out.

    Raises:
        DataError: less than one row.
    """
    end = tokenizer.sep_token_id
    if end is None:
        end = tokenizer.eos_token_id
    flat: list[int] = []
    for text in texts:
        flat += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if end is not None:
            flat.append(end)
    count = len(flat) // width
    if not count:
        raise DataError(f"{len(flat)} tokens of text are less than one row of {width}")
    return np.array(flat[: count * width], np.int64).reshape(count, width)


def sentences(texts: Iterable[str], tokenizer: Any, width: int) -> list[list[int]]:
    """The tokens of each different sentence with the model's own first and last token, cut to
    `width`.

    Raises:
        DataError: no sentence of three words.
    """
    found = (part.strip() for text in texts for part in _SENTENCE.split(text))
    distinct = list(dict.fromkeys(part for part in found if len(part.split()) >= _SHORTEST))
    if not distinct:
        raise DataError(f"no sentence of {_SHORTEST} words in the corpus")
    ids: list[list[int]] = tokenizer(distinct, truncation=True, max_length=width)["input_ids"]
    return ids


class RowLoader:
    """Global batches of `batch_rows` rows, drawn anew each epoch.

    rows: [N, S], or rows of many lengths, which are padded to the longest of their batch; those of
    a batch are about equally long. masked: some tokens of each row are to
    be told from the others, equally many in every row, and by the mask token, else each from those
    before it. together: rows that one worker gets as one. A batch is a function of its place alone.
    """

    def __init__(
        self,
        rows: Ints | Sequence[Sequence[int]],
        batch_rows: int,
        seed: int,
        tokenizer: Any,
        *,
        masked: bool,
        together: int = 1,
    ) -> None:
        self.rows, self.batch_rows, self.seed, self.masked = rows, batch_rows, seed, masked
        self.mask_token, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.pad, self.together = tokenizer.pad_token_id or 0, together
        self.steps_per_epoch = -(-len(rows) // batch_rows)
        self._drawn: tuple[int, Ints] = (-1, np.empty(0, np.int64))

    @property
    def tokens(self) -> int:
        """Of all rows, without padding."""
        return sum(len(row) for row in self.rows)

    def batch(self, epoch: int, step: int, part: int, parts: int) -> Rows | None:
        """See `raysys.training.task.Loader`."""
        if self._drawn[0] != epoch:
            self._drawn = (epoch, self._order(epoch))
        picked = self._drawn[1][step * self.batch_rows : (step + 1) * self.batch_rows]
        mine = picked[np.arange(len(picked)) // self.together % parts == part]
        if not len(mine):
            return None
        return self.told(mine, epoch)

    def _order(self, epoch: int) -> Ints:
        """[N] all rows, drawn; neighbours of many are put into batches by their length, so that
        little is padded, and the batches drawn again."""
        draw = _draw(self.seed, _ORDER, epoch)
        order = draw.permutation(len(self.rows))
        if isinstance(self.rows, np.ndarray):
            return order
        size = self.batch_rows
        full = len(order) // size
        if not full:
            return order
        whole, rest = np.split(order, [full * size])
        lengths = np.array([len(self.rows[place]) for place in whole.tolist()])
        window = np.arange(len(whole)) // (_WINDOW * size)
        sorted_rows = whole[np.lexsort((lengths, window))]
        batches = sorted_rows.reshape(full, size)[draw.permutation(full)]
        return np.concatenate([batches.flatten(), rest])

    def told(self, places: Ints, epoch: int) -> Rows:
        """The rows [B, S] at these places with what is to be predicted; the draw of each depends on
        its place."""
        rows, mask = self._padded(places)
        real = torch.from_numpy(mask)
        if not self.masked:
            ids = torch.from_numpy(rows)
            return Rows(ids, torch.where(real, ids, -100), real)
        ids, labels = rows.copy(), np.full_like(rows, -100)
        count = max(1, round(MASKED * rows.shape[1]))
        for row, place in enumerate(places.tolist()):
            draw = _draw(self.seed, _MASKS, epoch, place)
            at = draw.permutation(rows.shape[1])[:count]
            labels[row, at] = rows[row, at]
            how = draw.random(count)
            other = draw.integers(0, self.vocabulary, count)
            ids[row, at] = np.where(
                how < _MASK, self.mask_token, np.where(how < _OTHER, other, rows[row, at])
            )
        return Rows(torch.from_numpy(ids), torch.from_numpy(labels), real)

    def _padded(self, places: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
        if isinstance(self.rows, np.ndarray):
            rows = self.rows[places]
            return rows, np.ones(rows.shape, bool)
        picked = [self.rows[place] for place in places.tolist()]
        lengths = np.array([len(row) for row in picked])
        mask = np.arange(lengths.max()) < lengths[:, None]
        rows = np.full(mask.shape, self.pad, np.int64)
        rows[mask] = np.concatenate([np.asarray(row, np.int64) for row in picked])
        return rows, mask


def _draw(seed: int, purpose: int, epoch: int, place: int = 0) -> np.random.Generator:
    """A stream of its own; the low words of the counter are the generator's."""
    counter = [0, 0, epoch, place]
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=counter))
