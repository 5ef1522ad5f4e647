"""Values in words: the same wording in events, knowledge, instructions and answers."""

import json
import re
from datetime import datetime
from math import floor, log10

import numpy as np

from raysys.data.loaders import local_time
from raysys.llm.texts import printable

_LONGEST = 200  # characters of one value
# Brackets of the log's delimiters and of special tokens (`<|im_end|>`, `[INST]`).
_BRACKETS = str.maketrans("<>[]", "‹›()")
_PIECE = re.compile(r"\w+|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_MEALTIME_OF_HOUR = local_time.mealtime(np.arange(24)).to_pylist()


def one_line(value: str, longest: int | None = _LONGEST) -> str:
    """The value in one line, in NFC, without control characters and without the brackets that
    could make it look like a delimiter or a special token of a model.

    longest: characters of the value that are kept.
    """
    return " ".join(printable(value[:longest]).translate(_BRACKETS).split())


def quoted(value: str) -> str:
    """The value between double quotes, with those inside it escaped."""
    return json.dumps(value, ensure_ascii=False)


def token_count(text: str) -> int:
    """Words and marks of a text: tokens in the sense of §2.2, whatever the model."""
    return len(_PIECE.findall(text))


def sentences(text: str) -> list[str]:
    """The sentences of a text in one line."""
    return [part for part in _SENTENCE.split(" ".join(text.split())) if part]


def within(parts: list[str], limit: int, between: str) -> str:
    """As many of the parts, from the first on, as have at most `limit` tokens together; of a
    first part that is too long alone, its beginning."""
    kept: list[str] = []
    left = limit
    for part in parts:
        left -= token_count(part)
        if left < 0:
            break
        kept.append(part)
    if not kept and parts:
        ends = [match.end() for match in _PIECE.finditer(parts[0])]
        return parts[0][: ends[limit - 1]]
    return between.join(kept)


def price_band(price: float) -> str:
    """The price between two of .., 1, 2, 5, 10, 20, 50, ..: bands that no other price moves."""
    if price <= 0:
        return "free"
    scale = 10.0 ** floor(log10(price))
    low, high = next((a, b) for a, b in ((5, 10), (2, 5), (1, 2)) if price >= a * scale or a == 1)
    return f"{low * scale:g} to {high * scale:g}"


def mealtime(when: datetime) -> str:
    """The band of hours of a local time."""
    return str(_MEALTIME_OF_HOUR[when.hour])


def day_kind(when: datetime) -> str:
    """workday or weekend, by the local date."""
    return local_time.DAY_KINDS[when.weekday() >= 5]
