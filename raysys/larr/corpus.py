"""Stage 1's documents: the text of each place, what of it is to be predicted, in packed rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raysys.errors import DataError
from raysys.larr.log import BoolArray, Log, Part
from raysys.larr.packing import Packed, pack
from raysys.larr.texts import SPECIAL_TOKENS
from raysys.larr.tokens import TextTokens


@dataclass(frozen=True)
class Documents:
    """Texts of places as token ids.

    ids: of each text, ended; told: for each token, whether it belongs to the told fields (name
    and location are given, what follows is told); word: whether it is a token of a told value,
    i.e. neither a special token nor the end.
    """

    ids: list[list[int]]
    told: list[list[bool]]
    word: list[list[bool]]

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return sum(map(len, self.ids))

    def weights(self, loss: str) -> list[list[float]]:
        """Weight of each token: full, all but the first, which nothing predicts; completion,
        the told ones."""
        if loss == "completion":
            return [[float(told) for told in row] for row in self.told]
        return [[0.0, *[1.0] * (len(row) - 1)] for row in self.ids]


def training_texts(log: Log) -> list[str]:
    """Distinct texts of the places that may be trained on.

    Raises:
        DataError: there are none.
    """
    texts = _texts(log, log.usable)
    if not texts:
        raise DataError(
            f"{log.data.dataset.path}: no item has a text to learn from (kinds {log.config.kinds})"
        )
    return texts


def held_out(log: Log, part: Part) -> list[str]:
    """Distinct texts of the held-out places of validation or test that tell anything."""
    return _texts(log, log.asked(part) & np.array([bool(told) for told in log.places.told], bool))


def _texts(log: Log, wanted: BoolArray) -> list[str]:
    rows = np.flatnonzero(wanted & np.array(log.places.poi))
    return list(dict.fromkeys(log.places.text(row) for row in rows.tolist()))


def documents(texts: Sequence[str], tokens: TextTokens, told: Sequence[str]) -> Documents:
    """Tokenise the texts of places; told: names of the fields that are to be predicted."""
    ids = tokens(texts)
    begins = tokens.marks([f"<{name}>" for name in told])
    special = tokens.marks(list(SPECIAL_TOKENS)) | {tokens.end}
    told_rows, words = [], []
    for row in ids:
        first = next((place for place, token in enumerate(row) if token in begins), len(row))
        inside = [place >= first for place in range(len(row))]
        told_rows.append(inside)
        words.append([t and token not in special for t, token in zip(inside, row, strict=True)])
    return Documents(ids, told_rows, words)


@dataclass
class CorpusLoader:
    """Packed rows by position: each epoch holds every row once, in an order of its own.

    rows_per_batch: rows of `width` tokens in one global batch.
    """

    docs: Documents
    loss: str
    width: int
    rows_per_batch: int
    pad: int
    seed: int
    steps_per_epoch: int = field(init=False)
    rows: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = pack([len(ids) for ids in self.docs.ids], self.width)
        self.weights = self.docs.weights(self.loss)
        self.steps_per_epoch = -(-len(self.rows) // self.rows_per_batch)

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a token of a text."""
        return self.docs.tokens / (len(self.rows) * self.width)

    def batch(self, epoch: int, step: int, part: int, parts: int) -> Packed:
        """See `raysys.training.Loader`; a part without rows is a batch that weighs nothing."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        chosen = order[step * self.rows_per_batch : (step + 1) * self.rows_per_batch]
        mine = chosen[len(chosen) * part // parts : len(chosen) * (part + 1) // parts]
        rows = [self.rows[row] for row in mine]
        return Packed.of(self.docs.ids, rows, self.pad, self.weights)
