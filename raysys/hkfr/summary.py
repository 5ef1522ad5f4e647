"""The back-end `template`: what a log says when it is counted, in fixed words (§2.2)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from raysys.hkfr.knowledge import Knowledge, Statement
from raysys.hkfr.render import TEMPLATES, Document, Event
from raysys.hkfr.words import day_kind, mealtime, price_band, quoted

VERSION = 1  # of the wording below; part of every key
_ORDERS, _TOP, _NAMED, _EVIDENCE = 5, 5, 3, 5
# An order says more of a liking than a look does.
_WEIGHT = {"order": 4, "checkin": 4, "favourite": 3, "like": 3, "cart": 2}

Numbered = tuple[int, Event]


def summarise(document: Document) -> Knowledge:
    """Counts, recency, top categories and brands, price and time bands of the events."""
    events = list(enumerate(document.events, 1))
    return Knowledge(
        facts=tuple(_facts(events)), interests=tuple(_interests(events)), prose=_prose(events)
    )


def _facts(events: list[Numbered]) -> Iterator[Statement]:
    """The newest event of each kind, and the newest orders; newest first."""
    newest = {event.behaviour: number for number, event in events}
    orders = [number for number, event in events if event.behaviour == "order"][-_ORDERS:]
    wanted = {*newest.values(), *orders}
    for number, event in reversed(events):
        if number in wanted:
            day = f"{event.when:%Y-%m-%d}: " if event.when else ""
            last = "last " if newest[event.behaviour] == number else ""
            text = f"{day}{last}{event.behaviour} {_what(event)}"
            yield Statement(text=text, events=(f"e{number}",))


def _interests(events: list[Numbered]) -> Iterator[Statement]:
    """What events have in common, by weight; equals in the order of their names."""
    for kind, of in _GROUPS.items():
        for name, members in _ranked(events, of)[:_TOP]:
            orders = sum(event.behaviour == "order" for _, event in members)
            when = members[-1][1].when
            last = f", last {when:%Y-%m-%d}" if when else ""
            counts = f"{_counted(len(members), 'event')}, {_counted(orders, 'order')}"
            text = f"{kind} {quoted(name)}: {counts}{last}"
            evidence = tuple(f"e{number}" for number, _ in reversed(members[-_EVIDENCE:]))
            yield Statement(text=text, events=evidence)


def _prose(events: list[Numbered]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for _, event in events:
        counts[event.behaviour] += 1
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in TEMPLATES if kind in counts)
    dated = [event.when for _, event in events if event.when]
    days = f" from {dated[0]:%Y-%m-%d} to {dated[-1]:%Y-%m-%d}" if dated else ""
    said = [f"The user has {_counted(len(events), 'known event')}{days}: {kinds}."]
    newest = {event.behaviour: event for _, event in events}
    for kind in ("search", "favourite", "cart", "order"):
        if kind in newest:
            said.append(f"The last {kind} was {_what(newest[kind])}.")
    for begin, of in (
        ("Turns most to", _leaf),
        ("Most frequent brands are", _brand),
        ("Prices are mostly", _price),
        ("Active mostly at", _mealtime),
        ("Active mostly on a", _day_kind),
    ):
        named = [quoted(name) for name, _ in _ranked(events, of)[:_NAMED]]
        if named:
            said.append(f"{begin} {', '.join(named)}.")
    return " ".join(said)


def _ranked(
    events: Iterable[Numbered], of: Callable[[Event], str | None]
) -> list[tuple[str, list[Numbered]]]:
    groups: dict[str, list[Numbered]] = defaultdict(list)
    for number, event in events:
        if name := of(event):
            groups[name].append((number, event))
    weight = {
        name: sum(_WEIGHT.get(event.behaviour, 1) for _, event in members)
        for name, members in groups.items()
    }
    return sorted(groups.items(), key=lambda pair: (-weight[pair[0]], pair[0]))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _what(event: Event) -> str:
    if event.item is None:
        return quoted(event.text or "")
    path = quoted(" > ".join(event.item.category)) if event.item.category else ""
    return f"{quoted(event.item.label)} {path}".rstrip()


def _leaf(event: Event) -> str | None:
    return event.item.category[-1] if event.item and event.item.category else None


def _brand(event: Event) -> str | None:
    return event.item.brand if event.item else None


def _price(event: Event) -> str | None:
    known = event.item is not None and event.item.price is not None
    return price_band(event.item.price) if known else None  # type: ignore[union-attr, arg-type]


def _mealtime(event: Event) -> str | None:
    return mealtime(event.when) if event.when else None


def _day_kind(event: Event) -> str | None:
    return day_kind(event.when) if event.when else None


_GROUPS: dict[str, Callable[[Event], str | None]] = {
    "category": _leaf,
    "brand": _brand,
    "price": _price,
    "mealtime": _mealtime,
    "day": _day_kind,
}
