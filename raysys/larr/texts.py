"""Places and users as fields between special tokens: what the language model reads (§2.1, §2.2).

    <poi><name> ..<loc> ..<brand> ..<cat> ..<price> ..<desc> ..<menu> ..</poi>
    <user><profile> ..<likes> ..<visits> ..</user>

Which fields there are follows the paper's idea and secondary summaries; token strings and
wording are ours.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.data.contexts import FIRST

PoiField = Literal["name", "loc", "brand", "cat", "price", "desc", "menu"]

# Token -> the words whose sub-tokens its row begins as.
SPECIAL_TOKENS: Mapping[str, str] = {
    "<poi>": "place",
    "</poi>": "end of place",
    "<name>": "name",
    "<loc>": "location",
    "<brand>": "brand",
    "<cat>": "category",
    "<price>": "price",
    "<desc>": "description",
    "<menu>": "menu",
    "<user>": "user",
    "</user>": "end of user",
    "<profile>": "profile",
    "<likes>": "likes",
    "<visits>": "visits",
}
# Ours, and the shape that public models give theirs: text of users must not look like either.
_MARKS = re.compile("|".join([*map(re.escape, SPECIAL_TOKENS), r"<\|[^|<>]{1,40}\|>", "</?s>"]))
_LABEL = 60  # characters
_LONGEST = 4000  # characters of one value; a model reads a few hundred tokens


class TextConfig(BaseModel):
    """Which items are places and how they and users are put into words.

    kinds: kinds of items that are places (left out, all); others appear in visits only.
    given, told: fields the model is given, and those it learns to tell from them.
    visits, recent: newest visits named in a user's text; newest events its likes are counted on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[str, ...] | None = None
    given: tuple[PoiField, ...] = ("name", "loc")
    told: tuple[PoiField, ...] = ("brand", "cat", "price", "desc", "menu")
    visits: int = Field(default=12, ge=1)
    recent: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _apart(self) -> "TextConfig":
        both = [name for name in self.given if name in self.told]
        if both:
            raise ValueError(f"{both[0]!r} is both in given and in told")
        if not self.given or not self.told:
            raise ValueError("given and told each need a field")
        return self


def clean(value: str) -> str:
    """NFC text in one line without control characters and without special tokens."""
    text = unicodedata.normalize("NFC", value[:_LONGEST])
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return " ".join(_MARKS.sub(" ", text).split())


def plain(text: str) -> str:
    """The text without special tokens, fields as sentences: for models that know no tokens."""
    parts = [part.strip() for part in _MARKS.split(text)]
    return ". ".join(part for part in parts if part)


@dataclass(frozen=True)
class Places:
    """The texts of N items, in catalogue rows 2..N + 1; rows 0 and 1 hold nothing.

    given, told: halves of the text between <poi> and </poi>; label: what a visit is called;
    leaf, area, brand: deepest category, area and brand, "" where unknown; poi: whether it is a
    place, i.e. of a wanted kind and with any text.
    """

    given: list[str]
    told: list[str]
    label: list[str]
    leaf: list[str]
    area: list[str]
    brand: list[str]
    poi: list[bool]

    @classmethod
    def of(cls, items: pa.Table, config: TextConfig) -> "Places":
        """From the items table of a data set."""
        out = cls(*([""] * FIRST for _ in range(6)), [False] * FIRST)  # type: ignore[arg-type]
        for row in items.to_pylist():
            fields = _poi_fields(row)
            given, told = (
                "".join(f"<{name}> {fields[name]}" for name in names if fields[name])
                for names in (config.given, config.told)
            )
            path = [clean(part) for part in row["category"] or ()]
            out.given.append(given)
            out.told.append(told)
            out.leaf.append(path[-1] if path else "")
            out.label.append(fields["name"] or out.leaf[-1] or _begin(fields["desc"]))
            out.area.append(fields["loc"])
            out.brand.append(fields["brand"])
            wanted = config.kinds is None or row["kind"] in config.kinds
            out.poi.append(wanted and bool(given or told))
        return out

    def text(self, row: int) -> str:
        """Both halves."""
        return f"<poi>{self.given[row]}{self.told[row]}</poi>"

    def view(self, row: int, half: Literal["given", "told"]) -> str:
        """One half alone."""
        return f"<poi>{getattr(self, half)[row]}</poi>"


def _begin(text: str) -> str:
    """The first words of a text, for what has no name."""
    return text if len(text) <= _LABEL else text[:_LABEL].rpartition(" ")[0]


def _poi_fields(row: Mapping[str, Any]) -> dict[str, str]:
    price = row["price"]
    words = {
        "name": row["name"] or row["title"],
        "loc": (row["location"] or {}).get("area"),
        "brand": row["brand"],
        "cat": ", ".join(row["category"] or ()),
        "price": None if price is None else f"{price:g}",
        "desc": row["abstract"],
        "menu": row["text"],
    }
    return {name: clean(value) if value else "" for name, value in words.items()}


def attributes_text(attributes: Iterable[tuple[str, str | None]] | None) -> str:
    """A user's attributes as `name: value; ...`."""
    pairs = [(clean(name), clean(value or "")) for name, value in attributes or ()]
    return "; ".join(f"{name}: {value}" for name, value in pairs if value)


def user_text(
    profile: str,
    rows: Sequence[int],
    places: Places,
    config: TextConfig,
    style: Literal["profile", "visits", "user"],
) -> str:
    """A user's text from attributes and item rows of events, oldest first.

    style: profile (attributes and likes), visits (names of the newest, newest first), or user
    (both).
    """
    parts = []
    if style != "visits":
        if profile:
            parts.append(f"<profile> {profile}")
        recent = rows[-config.recent :]
        likes = [_top((places.leaf[row] for row in recent), 3)]
        likes.append(_top((places.area[row] for row in recent), 2))
        if any(likes):
            parts.append("<likes> " + "; ".join(like for like in likes if like))
    if style != "profile":
        named = [places.label[row] for row in reversed(rows) if places.label[row]]
        if named:
            parts.append("<visits> " + "; ".join(named[: config.visits]))
    return f"<user>{''.join(parts)}</user>"


def _top(values: Iterable[str], count: int) -> str:
    # Of equally frequent values the one first met: `most_common` keeps that order.
    return ", ".join(v for v, _ in Counter(v for v in values if v).most_common(count))
