"""What no model sees: who a user is, where exactly, and how to reach anybody (§2.2)."""

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from math import floor
from typing import Any

from raysys.hkfr.config import AnonymiseOptions
from raysys.hkfr.words import one_line

_DIGITS = 7  # of the shortest telephone number
_READ = 2000  # characters of a text; the patterns take time by its square

_LINK = re.compile(r"(?:https?://|www\.)\S*[^\s.,;:!?)]", re.IGNORECASE)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_PHONE = re.compile(r"(?<!\w)\+?\(?\d[\d\s().\-/]{5,}\d(?!\w)")
_STREET = "street|str|st|avenue|ave|road|rd|lane|ln|drive|boulevard|blvd|square|terrace"
_ADDRESS = re.compile(
    rf"\b\d{{1,5}}[a-z]?\s+(?:[^\W\d][\w'’-]*\s+){{1,3}}(?:{_STREET})\b\.?"
    r"|\b\w*(?:straße|strasse|gasse|platz|gatan|vägen|laan|straat)\s+\d{1,5}\w?\b"
    r"|\b(?:rue|via|calle|avenida|rua|place)\s+(?:\w+\s+){1,4}\d{1,5}\b"
    r"|[\u4e00-\u9fff]{1,10}(?:路|街|道|巷)\s*\d{1,5}\s*号?",
    re.IGNORECASE,
)


class Anonymiser:
    """Pseudonyms by a salt, coarse places, redacted texts.

    Args:
        options: see there.
        dataset: name of the data set, the salt where the environment holds none; equal from night
            to night.
    """

    def __init__(self, options: AnonymiseOptions, dataset: str) -> None:
        secret = os.environ.get(options.salt_env)
        self.salted = bool(secret)
        self.opaque_ids = options.opaque_ids
        self._salt = (secret or dataset).encode()
        self._cell = options.cell_deg
        self._names = [_whole_words(name) for name in sorted(options.names, key=len, reverse=True)]

    @property
    def fingerprint(self) -> str:
        """Tells two salts apart, and nothing else about them."""
        return self.pseudonym("salt", "")

    def pseudonym(self, kind: str, name: str) -> str:
        """A name that says no more than its kind; equal for equal names under one salt."""
        digest = hmac.new(self._salt, f"{kind}\n{name}".encode(), hashlib.sha256)
        return f"{kind}-{digest.hexdigest()[:12]}"

    def public_name(self, kind: str, name: str) -> str:
        """The name of an item or a brand, without what could reach a person."""
        if self.opaque_ids:
            return self.pseudonym(kind, name)
        return one_line(_without_contacts(name[:_READ]))

    def free_text(self, text: str, user_id: str) -> str:
        """What a user wrote, without links, mail addresses, names, addresses and telephones."""
        text = " ".join(text[:_READ].split())
        for name in (_whole_words(user_id), *self._names):
            text = name.sub("(name)", text)
        return one_line(_without_contacts(_ADDRESS.sub("(address)", text)))

    def area(self, location: Mapping[str, Any] | None) -> str | None:
        """The named area of a place, or the cell of its coordinates."""
        if not location:
            return None
        if location["area"]:
            return one_line(location["area"])
        if location["lat"] is None or location["lon"] is None:
            return None
        low = (floor(location[axis] / self._cell) for axis in ("lat", "lon"))
        return "cell " + " ".join(str(number) for number in low)


def _without_contacts(text: str) -> str:
    text = _EMAIL.sub("(mail)", _LINK.sub("(link)", text))
    return _PHONE.sub(
        lambda found: (
            "(phone)" if sum(map(str.isdigit, found.group())) >= _DIGITS else found.group()
        ),
        text,
    )


def _whole_words(name: str) -> re.Pattern[str]:
    spaced = r"\s+".join(map(re.escape, name.split()))
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)
