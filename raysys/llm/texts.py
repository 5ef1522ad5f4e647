"""What may be given to a model as a text, the same for every engine."""

import re
import unicodedata
from dataclasses import dataclass

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Unreadable:
    """In the place of a text that could not be read, and why."""

    why: str


def printable(text: str) -> str:
    """`text` in NFC, as its key is, with a blank for every control character but tab and line
    ends, which tokenizers treat in many ways: some drop them, some spend tokens on them, some end
    the text there."""
    return _CONTROL.sub(" ", unicodedata.normalize("NFC", text))


def fault_of(text: object) -> str | None:
    """Why `text` cannot be given to a model, in words; None if it can.

    bytes are taken as UTF-8.
    """
    if text is None:
        return "no text"
    if isinstance(text, Unreadable):
        return text.why
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"not UTF-8: {error.reason} at byte {error.start}"
    if not isinstance(text, str):
        return f"not a text but {type(text).__name__}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not valid Unicode: {error.reason} at character {error.start}"
    if not printable(text).strip():
        return "empty text" if not text.strip() else "nothing but control characters"
    return None
