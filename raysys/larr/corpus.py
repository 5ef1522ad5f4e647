"""Stage 1's documents: the text of each place, and what of it is to be predicted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysys.errors import DataError
from raysys.larr.log import BoolArray, Log, Part
from raysys.larr.texts import SPECIAL_TOKENS
from raysys.llm.tokens import TextTokens


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
