"""The 20 instructions about a user's next order (§2.3; the paper's own list is unpublished)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from random import Random

from raysys.data.loaders.local_time import DAY_KINDS, MEALTIMES
from raysys.hkfr.words import day_kind, mealtime, quoted

# Bounds of bands and their names.
_BASKETS = ((1, "one item"), (3, "two or three items"))
_DAYS = ((0, "the same day"), (1, "the next day"), (3, "2 to 3 days"), (7, "4 to 7 days"))


@dataclass(frozen=True)
class Thing:
    """An item as tasks know it; None where the data set does not say."""

    merchant: str
    category: str | None = None
    sub_category: str | None = None
    price_band: str | None = None
    brand: str | None = None
    dish_type: str | None = None
    delivery: str | None = None


@dataclass(frozen=True)
class Moment:
    """A request, and what came of it.

    local: on the user's clock; basket: what the next order, which this request led to, consists
    of, its main item first; empty where it led to none. clicked, others: shown items that were
    clicked, and those that were not. repeat: whether the main item was ordered before.
    days_until: local days up to the next order, of a request that led to none.
    """

    local: datetime | None
    place: str | None
    basket: tuple[Thing, ...]
    clicked: tuple[Thing, ...]
    others: tuple[Thing, ...]
    repeat: bool
    days_until: int | None


# What fills the braces of a phrasing, and the answer; None where the moment lacks something.
Asked = tuple[dict[str, str], str] | None


@dataclass(frozen=True)
class Task:
    """One kind of instruction, in at least two phrasings."""

    phrasings: tuple[str, ...]
    ask: Callable[[Moment, Random], Asked]


def _of_order(field: str) -> Callable[[Moment, Random], Asked]:
    def ask(moment: Moment, _: Random) -> Asked:
        answer = getattr(moment.basket[0], field) if moment.basket else None
        return ({}, answer) if answer else None

    return ask


def _of_time(band: Callable[[datetime], str]) -> Callable[[Moment, Random], Asked]:
    def ask(moment: Moment, _: Random) -> Asked:
        return ({}, band(moment.local)) if moment.basket and moment.local else None

    return ask


def _place_type(moment: Moment, _: Random) -> Asked:
    return ({}, moment.place) if moment.basket and moment.place else None


def _new_or_repeat(moment: Moment, _: Random) -> Asked:
    return ({}, "repeat" if moment.repeat else "new") if moment.basket else None


def _next_click(moment: Moment, _: Random) -> Asked:
    return ({}, moment.clicked[0].merchant) if moment.clicked else None


def _next_order(moment: Moment, _: Random) -> Asked:
    if not moment.basket:
        return None
    main = moment.basket[0]
    told = (main.sub_category or main.category, main.brand, main.price_band)
    return {}, ", ".join([main.merchant, *filter(None, told)])


def _basket_size(moment: Moment, _: Random) -> Asked:
    return ({}, band(len(moment.basket), _BASKETS, "four or more items")) if moment.basket else None


def _days_until(moment: Moment, _: Random) -> Asked:
    if moment.days_until is None:
        return None
    return {}, band(moment.days_until, _DAYS, "more than 7 days")


def _yes_or_no(moment: Moment, draw: Random) -> Asked:
    if not moment.basket or not moment.others:
        return None
    yes = draw.random() < 0.5
    thing = moment.basket[0] if yes else draw.choice(moment.others)
    return {"candidate": quoted(thing.merchant)}, "yes" if yes else "no"


def _better_of_two(moment: Moment, draw: Random) -> Asked:
    if not moment.basket or not moment.others:
        return None
    names = [moment.basket[0].merchant, draw.choice(moment.others).merchant]
    first, second = draw.sample(names, 2)
    return {"first": quoted(first), "second": quoted(second)}, names[0]


def _rank(moment: Moment, draw: Random) -> Asked:
    looked = [thing for thing in moment.clicked if thing not in moment.basket]
    if not moment.basket or not looked or not moment.others:
        return None
    chosen = (moment.basket[0], draw.choice(looked), draw.choice(moment.others))
    best = [thing.merchant for thing in chosen]
    shown = ", ".join(quoted(name) for name in draw.sample(best, len(best)))
    return {"list": shown}, "; ".join(best)


def _category_at_mealtime(moment: Moment, _: Random) -> Asked:
    if not moment.basket or not moment.local or not moment.basket[0].category:
        return None
    return {"mealtime": mealtime(moment.local)}, moment.basket[0].category


def _merchant_of_category(moment: Moment, _: Random) -> Asked:
    if not moment.basket or not moment.basket[0].category:
        return None
    main = moment.basket[0]
    return {"category": quoted(str(main.category))}, main.merchant


def band(value: int, bands: tuple[tuple[int, str], ...], beyond: str) -> str:
    """Name of the first of the bands (upper bound, name) that holds the value."""
    return next((name for limit, name in bands if value <= limit), beyond)


TASKS: dict[str, Task] = {
    "category": Task(
        (
            "Which category will the user's next order be of?",
            "Name the category that the user will order next.",
        ),
        _of_order("category"),
    ),
    "sub_category": Task(
        (
            "Which sub-category will the user's next order be of?",
            "Name the sub-category that the user will order next.",
        ),
        _of_order("sub_category"),
    ),
    "price_band": Task(
        (
            "In which price band will the user's next order lie?",
            "What will the user pay next, as a price band?",
        ),
        _of_order("price_band"),
    ),
    "merchant": Task(
        (
            "Which merchant will the user order from next?",
            "Name the place of the user's next order.",
        ),
        _of_order("merchant"),
    ),
    "brand": Task(
        (
            "Which brand will the user order next?",
            "Name the brand of the user's next order.",
        ),
        _of_order("brand"),
    ),
    "mealtime": Task(
        (
            f"At which time of day will the user order next: {', '.join(MEALTIMES)}?",
            "For which time of day is the user's next order?",
        ),
        _of_time(mealtime),
    ),
    "place_type": Task(
        (
            "Where will the user be when ordering next?",
            "Name the kind of place that the user will order from next.",
        ),
        _place_type,
    ),
    "new_or_repeat": Task(
        (
            "Will the user's next order be new or a repeat?",
            "Has the user ordered before what comes next? Answer new or repeat.",
        ),
        _new_or_repeat,
    ),
    "next_click": Task(
        (
            "What will the user click on next?",
            "Name what the user will look at next.",
        ),
        _next_click,
    ),
    "next_order": Task(
        (
            "Describe the user's next order: name, kind, brand and price band.",
            "What will the user order next? Give name, kind, brand and price band.",
        ),
        _next_order,
    ),
    "dish_type": Task(
        (
            "Which type of dish will the user order next?",
            "Name the dish type of the user's next order.",
        ),
        _of_order("dish_type"),
    ),
    "basket_size": Task(
        (
            "How many items will the user's next order have?",
            "Name the size of the user's next basket.",
        ),
        _basket_size,
    ),
    "delivery": Task(
        (
            "Which delivery time will the user accept next?",
            "How long will the user wait for the next order?",
        ),
        _of_order("delivery"),
    ),
    "weekday_or_weekend": Task(
        (
            f"Will the user order next on a {DAY_KINDS[0]} or a {DAY_KINDS[1]}?",
            f"On which kind of day is the user's next order: {' or '.join(DAY_KINDS)}?",
        ),
        _of_time(day_kind),
    ),
    "yes_or_no": Task(
        (
            "Will the user order {candidate} next? Answer yes or no.",
            "Is {candidate} the user's next order? Answer yes or no.",
        ),
        _yes_or_no,
    ),
    "better_of_two": Task(
        (
            "Which of the two will the user order next: {first} or {second}?",
            "The user chooses between {first} and {second}. Name the choice.",
        ),
        _better_of_two,
    ),
    "rank": Task(
        (
            "Rank these for the user, the best first: {list}.",
            "Put these in the order of the user's liking, the best first: {list}.",
        ),
        _rank,
    ),
    "category_at_mealtime": Task(
        (
            "Which category will the user order next for {mealtime}?",
            "The user's next order is for {mealtime}. Name its category.",
        ),
        _category_at_mealtime,
    ),
    "merchant_of_category": Task(
        (
            "Which merchant of category {category} will the user order from next?",
            "The user's next order is of category {category}. Name the merchant.",
        ),
        _merchant_of_category,
    ),
    "days_until": Task(
        (
            "In how many days will the user order next?",
            "How long will it be until the user's next order?",
        ),
        _days_until,
    ),
}
