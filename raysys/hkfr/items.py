"""The items of a data set in words: one label each, category, brand, area, price."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysys.errors import DataError
from raysys.hkfr.anonymise import Anonymiser
from raysys.hkfr.words import one_line

_COLUMNS = ["item_id", "name", "title", "category", "price", "brand", "location"]


@dataclass(frozen=True)
class Item:
    """An item in words; label: its name, unlike that of any other item."""

    label: str
    category: tuple[str, ...]
    price: float | None
    brand: str | None
    area: str | None


class Items:
    """The items by id; an unknown id is a DataError.

    Args:
        table: the items table.
        anonymiser: of names and places.
    """

    def __init__(self, table: pa.Table, anonymiser: Anonymiser) -> None:
        rows = table.select(_COLUMNS).to_pylist()
        labels = _labels(rows, anonymiser)
        self._items = {
            row["item_id"]: Item(
                label=label,
                category=tuple(one_line(part) for part in row["category"] or ()),
                price=row["price"],
                brand=anonymiser.public_name("brand", row["brand"]) if row["brand"] else None,
                area=anonymiser.area(row["location"]),
            )
            for row, label in zip(rows, labels, strict=True)
        }

    def __getitem__(self, item_id: str) -> Item:
        try:
            return self._items[item_id]
        except KeyError as error:
            raise DataError(
                f"item {item_id!r} has an event but no row in the items table; see all faults with "
                "`raysys data check`"
            ) from error

    def values(self) -> Iterable[Item]:
        """All items, in the order of the table."""
        return self._items.values()

    def names(self) -> set[str]:
        """Every name that a text could mention: labels, brands, areas, categories."""
        return {
            name
            for item in self._items.values()
            for name in (item.label, item.brand, item.area, *item.category)
            if name
        }


def _labels(rows: list[dict[str, Any]], anonymiser: Anonymiser) -> list[str]:
    """Names; those that several items have are told apart by the id."""
    if anonymiser.opaque_ids:
        return [anonymiser.pseudonym("item", row["item_id"]) for row in rows]
    names = [anonymiser.public_name("item", row["name"] or row["title"] or "") for row in rows]
    shared = Counter(names)
    used: set[str] = set()
    out = []
    for row, name in zip(rows, names, strict=True):
        own = f" ({one_line(row['item_id'])})"
        label = name if name and shared[name] == 1 else (name or "item") + own
        while label in used:
            label += own
        used.add(label)
        out.append(label)
    return out
