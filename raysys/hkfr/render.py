"""Events as lines of text: one versioned template per kind of behaviour (§2.2).

    e7 2024-01-20 18:41 ordered product name="Jade Spoon" category="food > mexican" price=14.33

Whatever comes from the log stands between double quotes, in one line, without brackets: a value
that reads like an instruction, or like the end of the log, stays a value.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from raysys.hkfr.items import Item
from raysys.hkfr.words import quoted


@dataclass(frozen=True)
class Template:
    """How events of one kind begin. version: raised whenever the wording of their lines changes,
    because it is part of every knowledge text's key."""

    version: int
    verb: str


TEMPLATES = {
    "click": Template(1, "clicked on"),
    "view": Template(1, "viewed"),
    "cart": Template(1, "put into the cart"),
    "favourite": Template(1, "kept as a favourite"),
    "search": Template(1, "searched for"),
    "order": Template(1, "ordered"),
    "like": Template(1, "liked"),
    "comment": Template(1, "commented on"),
    "share": Template(1, "shared"),
    "follow": Template(1, "followed"),
    "bookmark": Template(1, "bookmarked"),
    "rate": Template(1, "rated"),
    "tag": Template(1, "tagged"),
    "checkin": Template(1, "checked in at"),
    "coupon": Template(1, "used a coupon for"),
}


@dataclass(frozen=True)
class Event:
    """BehaviorEvent of §2.1, cleaned and anonymised.

    when: local time, None where unknown; context: (feature, value) pairs.
    """

    when: datetime | None
    behaviour: str
    scenario: str | None = None
    subject: str | None = None
    text: str | None = None
    item: Item | None = None
    context: tuple[tuple[str, str], ...] = ()
    value: float | None = None

    @cached_property
    def line(self) -> str:
        """The event in words, without its number."""
        when = f"{self.when:%Y-%m-%d %H:%M}" if self.when else "undated"
        parts = [when, TEMPLATES[self.behaviour].verb]
        if self.subject:
            parts.append(quoted(self.subject))
        parts += (f"{name}={value}" for name, value in self._fields())
        return " ".join(parts)

    def _fields(self) -> Iterator[tuple[str, str]]:
        if self.text:
            yield "text", quoted(self.text)
        if self.item:
            yield "name", quoted(self.item.label)
            if self.item.category:
                yield "category", quoted(" > ".join(self.item.category))
            if self.item.brand:
                yield "brand", quoted(self.item.brand)
            if self.item.price is not None:
                yield "price", f"{self.item.price:g}"
            if self.item.area:
                yield "area", quoted(self.item.area)
        if self.value is not None:
            yield "value", f"{self.value:g}"
        if self.scenario:
            yield "scenario", quoted(self.scenario)
        for name, value in self.context:
            yield name, quoted(value)


@dataclass(frozen=True)
class Document:
    """B_u: a user's selected events, oldest first. pseudonym: of the user; no text names it."""

    pseudonym: str
    events: tuple[Event, ...]

    @cached_property
    def lines(self) -> list[str]:
        """One line per event, oldest first, numbered from e1."""
        return [f"e{number} {event.line}" for number, event in enumerate(self.events, 1)]

    @property
    def templates(self) -> list[str]:
        """`kind@version` of the templates in use."""
        kinds = sorted({event.behaviour for event in self.events})
        return [f"{kind}@{TEMPLATES[kind].version}" for kind in kinds]
