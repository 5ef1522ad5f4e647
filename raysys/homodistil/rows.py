"""Documents as rows of tokens, and what is to be predicted of them."""

from collections.abc import Iterable
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


class Rows(NamedTuple):
    """input_ids [B, S]; labels [B, S], −100 where nothing is predicted."""

    input_ids: Tensor
    labels: Tensor


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
        flat += tokenizer(text, add_special_tokens=False)["input_ids"]
        if end is not None:
            flat.append(end)
    count = len(flat) // width
    if not count:
        raise DataError(f"{len(flat)} tokens of text are less than one row of {width}")
    return np.array(flat[: count * width], np.int64).reshape(count, width)


class RowLoader:
    """Global batches of `batch_rows` rows, drawn anew each epoch.

    masked: some tokens of each row are to be told from the others, equally many in every row, and
    by the mask token, else each from those before it. A batch is a function of its place alone.
    """

    def __init__(
        self, rows: Ints, batch_rows: int, seed: int, tokenizer: Any, *, masked: bool
    ) -> None:
        self.rows, self.batch_rows, self.seed, self.masked = rows, batch_rows, seed, masked
        self.mask_token, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.steps_per_epoch = -(-len(rows) // batch_rows)

    def batch(self, epoch: int, step: int, part: int, parts: int) -> Rows | None:
        """See `raysys.training.task.Loader`."""
        order = _draw(self.seed, _ORDER, epoch)
        picked = order.permutation(len(self.rows))[
            step * self.batch_rows : (step + 1) * self.batch_rows
        ]
        mine = picked[part::parts]
        if not len(mine):
            return None
        return self.told(self.rows[mine], epoch, mine)

    def told(self, rows: Ints, epoch: int, places: Ints) -> Rows:
        """Rows [B, S] with what is to be predicted; places: what the draw of each depends on."""
        if not self.masked:
            ids = torch.from_numpy(rows)
            return Rows(ids, ids)
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
        return Rows(torch.from_numpy(ids), torch.from_numpy(labels))


def _draw(seed: int, purpose: int, epoch: int, place: int = 0) -> np.random.Generator:
    """A stream of its own; the low words of the counter are the generator's."""
    counter = [0, 0, epoch, place]
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=counter))
