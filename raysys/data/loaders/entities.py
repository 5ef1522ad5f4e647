"""Entity annotations of news in their public spellings."""

import json
from typing import Any, Literal

from raysys.data.loaders.reading import Source
from raysys.errors import DataError

BadEntities = Literal["fail", "drop"]
Entity = dict[str, Any]
_HINT = "mend the file or pass --on-bad-entities drop"


def numbered_entities(source: Source, column: str, policy: BadEntities) -> list[list[Entity]]:
    """`id:name;id:name` of each row as entity structs.

    Raises:
        DataError: an entry without an id or a name, under policy "fail".
    """
    out: list[list[Entity]] = []
    for row, text in enumerate(source.strings(column).to_pylist()):
        found: list[Entity] = []
        for entry in (text or "").split(";"):
            number, colon, label = entry.partition(":")
            if number and colon and label:
                found.append({"id": number, "label": label, "field": "title"})
            elif entry and policy == "fail":
                raise DataError(
                    f"{source.where(row)}: malformed entity {entry!r} (want id:name); {_HINT}"
                )
        out.append(found)
    return out


def json_entities(
    source: Source, column: str, field: str, policy: BadEntities
) -> list[list[Entity]]:
    """MIND's JSON list of {Label, Type, WikidataId, Confidence, ...} of each row.

    Raises:
        DataError: malformed JSON or an entry without WikidataId, under policy "fail".
    """
    out: list[list[Entity]] = []
    for row, text in enumerate(source.strings(column).to_pylist()):
        try:
            out.append([_entity(entry, field) for entry in json.loads(text or "[]")])
        except (ValueError, TypeError, KeyError) as error:
            if policy == "fail":
                raise DataError(
                    f"{source.where(row)}: column {column!r}: malformed entity JSON "
                    f"({type(error).__name__}: {error}); {_HINT}"
                ) from error
            out.append([])
    return out


def _entity(entry: dict[str, Any], field: str) -> Entity:
    confidence = entry.get("Confidence")
    return {
        "id": str(entry["WikidataId"]),
        "label": entry.get("Label"),
        "type": entry.get("Type"),
        "confidence": None if confidence is None else float(confidence),
        "field": field,
    }
