"""Scene values in words: one versioned template per feature."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.data.contexts import FIRST, ContextCodec
from raysys.errors import ConfigError
from raysys.larr.config import ContextSentence, LarrConfig

# All codes of a feature's context features together; a table of the size is kept.
MAX_COMBINATIONS = 100_000
Wordings = dict[str, dict[str, str]]  # context feature → value → how it is told


def declared_wordings(contexts: pa.Table, how: Literal["all", "first", "value"]) -> Wordings:
    """What a data set's `contexts` table says about how its values are told."""
    told: Wordings = {}
    if how == "value":
        return told
    for row in contexts.to_pylist():
        phrasings = {value: words for value, words in row["phrasings"] or () if words}
        told[row["name"]] = {
            value: words[0] if how == "first" else "; ".join(words)
            for value, words in phrasings.items()
        }
    return told


class Verbaliser:
    """The texts of a request's K' context sentences; one text of all where `single_pass`.

    Args:
        config: the sentences.
        wordings: see `declared_wordings`; a value without one is told as it is.
    """

    def __init__(self, config: LarrConfig, wordings: Wordings) -> None:
        self.sentences = config.sentences
        self.single_pass = config.single_pass
        self.wordings = wordings

    @property
    def names(self) -> tuple[str, ...]:
        """Of the texts, in order."""
        if self.single_pass:
            return ("scene",)
        return tuple(sentence.name for sentence in self.sentences)

    @property
    def template_ids(self) -> tuple[str, ...]:
        """`name@version` of each text; of a joint one, those of its sentences."""
        ids = tuple(sentence.template_id for sentence in self.sentences)
        return ("+".join(ids),) if self.single_pass else ids

    @property
    def contexts(self) -> tuple[tuple[str, ...], ...]:
        """Context features that each text depends on."""
        if not self.single_pass:
            return tuple(sentence.contexts for sentence in self.sentences)
        names = dict.fromkeys(name for sentence in self.sentences for name in sentence.contexts)
        return (tuple(names),)

    def texts(self, values: Mapping[str, str | None]) -> list[str | None]:
        """The K' texts of a context given as words; None where a value is missing."""
        parts = [self._text(sentence, values) for sentence in self.sentences]
        if not self.single_pass:
            return parts
        said = [part for part in parts if part is not None]
        return [" ".join(said) if said else None]

    def _text(self, sentence: ContextSentence, values: Mapping[str, str | None]) -> str | None:
        words = {name: values.get(name) for name in sentence.contexts}
        if any(word is None or not word.strip() for word in words.values()):
            return None
        told = {
            name: self.wordings.get(name, {}).get(str(word), str(word))
            for name, word in words.items()
        }
        return sentence.template.format(**told)

    def columns(self, codec: ContextCodec) -> list[list[int]]:
        """Where the context features of each text are in a codec.

        Raises:
            ConfigError: a feature that the codec does not have, or too many combinations.
        """
        place = {name: index for index, name in enumerate(codec.names)}
        lacking = sorted({name for names in self.contexts for name in names} - set(place))
        if lacking:
            raise ConfigError(
                f"larr.features: the model has no context feature {', '.join(lacking)}; "
                f"it has {', '.join(codec.names) or 'none'}"
            )
        out = [[place[name] for name in names] for names in self.contexts]
        for name, columns in zip(self.names, out, strict=True):
            size = int(np.prod([codec.features[c].cardinality for c in columns], dtype=np.float64))
            if size > MAX_COMBINATIONS:
                raise ConfigError(
                    f"larr.features: {name} has {size:,} combinations of values, at most "
                    f"{MAX_COMBINATIONS:,} can be looked up; give its context features sentences "
                    "of their own"
                )
        return out

    def combinations(self, codec: ContextCodec) -> list[list[str | None]]:
        """The text of every combination of codes, by text and in the order of `joint_codes`."""
        out = []
        for index, columns in enumerate(self.columns(codec)):
            features = [codec.features[column] for column in columns]
            words = [(None, None, *feature.labels[FIRST:]) for feature in features]
            names = [feature.name for feature in features]
            out.append(
                [self.texts(dict(zip(names, told, strict=True)))[index] for told in product(*words)]
            )
        return out


def joint_codes(
    codes: npt.NDArray[np.integer], columns: Sequence[int], sizes: Iterable[int]
) -> npt.NDArray[np.int64]:
    """Numbers [...] of the combinations in codes [..., F], the last column counting fastest."""
    out = np.zeros(codes.shape[:-1], np.int64)
    for column, size in zip(columns, sizes, strict=True):
        out = out * size + codes[..., column]
    return out
