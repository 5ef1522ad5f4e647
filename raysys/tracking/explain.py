"""Explanation examples: which past events weigh most for a ranked candidate."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysys.artifacts.predictor import PastEvent, Predictor
from raysys.data.dataset import Dataset
from raysys.data.prepared import prepare
from raysys.data.requests import Requests
from raysys.errors import ArtifactError

_COLUMNS = ["impression_id", "user_id", "ts", "tz_offset_min", "history_end", "context"]
_LISTS = ["candidates", "clicks"]
# Requests scored to find a few users with a history; a cold one's ranking has no explanation.
_LOOKED_AT = 256


@dataclass(frozen=True)
class Reason:
    """A past event: its item, when and what, its weight, and that as a share of the largest."""

    item: str
    when: str
    behaviour: str
    weight: float
    share: float


@dataclass(frozen=True)
class RankedItem:
    """A candidate with what the model says of it and the events behind it."""

    item: str
    score: float
    p_click: float | None
    clicked: bool
    reasons: list[Reason]


@dataclass(frozen=True)
class Example:
    """One request of the test split and its best-ranked candidates."""

    request: str
    user: str
    when: str
    context: dict[str, Any]
    candidates: int
    ranked: list[RankedItem]


@dataclass(frozen=True)
class Examples:
    """meaning: what a weight is, in the words of the model's own code."""

    meaning: str
    examples: list[Example]


def explain_run(run: Path, data: Path, *, count: int = 3, top: int = 4) -> Examples:
    """The first test requests of `data` with a click and a history of `count` users, explained.

    Raises:
        ArtifactError: a damaged run, or one whose items are not those of `data`.
        DataError: `data` is no data set folder.
    """
    prepared = prepare(Dataset(data))
    predictor = Predictor.load(run, histories=prepared.histories)
    if not predictor.run.catalogue.item_ids.equals(prepared.item_ids):
        raise ArtifactError(f"{run} was trained on other items than {data} holds; no examples")
    table = next(_clicked(prepared.dataset), None)
    meaning = inspect.getdoc(type(predictor.model).event_weights) or ""
    if table is None:
        return Examples(meaning, [])
    requests = Requests.of_table(table, predictor.codec)
    reasons = predictor.explain(requests, top=3)
    scores = predictor.score(requests).to_pylist()
    names = _names(predictor.run.items)
    examples: list[Example] = []
    begin = 0
    for row, record in enumerate(table.to_pylist()):
        end = begin + len(record["candidates"])
        seen = {example.user for example in examples}
        if any(reasons[row]) and len(examples) < count and record["user_id"] not in seen:
            examples.append(_example(record, scores[begin:end], reasons[row], names, top))
        begin = end
    return Examples(meaning, examples)


def _clicked(dataset: Dataset) -> Iterator[pa.Table]:
    """Test impressions with a click, a few at a time."""
    for part in dataset.parts("impressions", [*_COLUMNS, *_LISTS, "split"]):
        wanted = pc.and_(
            pc.equal(part["split"], "test"), pc.greater(pc.list_value_length(part["clicks"]), 0)
        )
        found = part.filter(wanted).slice(0, _LOOKED_AT)
        if len(found):
            yield found.combine_chunks()


def _example(
    record: dict[str, Any],
    scores: list[dict[str, Any]],
    reasons: list[list[PastEvent]],
    names: dict[str, str],
    top: int,
) -> Example:
    best = sorted(range(len(scores)), key=lambda i: -scores[i]["score"])[:top]
    largest = max((abs(e.weight) for i in best for e in reasons[i]), default=0.0) or 1.0
    offset = record["tz_offset_min"]
    ranked = [
        RankedItem(
            item=names.get(scores[i]["item_id"], scores[i]["item_id"]),
            score=scores[i]["score"],
            p_click=scores[i]["p_click"],
            clicked=scores[i]["item_id"] in record["clicks"],
            reasons=[
                Reason(
                    names.get(event.item_id, event.item_id),
                    _local_time(event.ts, offset),
                    event.behaviour,
                    event.weight,
                    abs(event.weight) / largest,
                )
                for event in reasons[i]
            ],
        )
        for i in best
    ]
    context = {k: v for k, v in (record["context"] or {}).items() if v is not None}
    return Example(
        request=record["impression_id"],
        user=record["user_id"],
        when=_local_time(record["ts"], offset),
        context=context,
        candidates=len(scores),
        ranked=ranked,
    )


def _local_time(ts: int | None, tz_offset_min: int | None) -> str:
    if ts is None:
        return ""
    moment = datetime.fromtimestamp(ts / 1e6, UTC) + timedelta(minutes=tz_offset_min or 0)
    return moment.strftime("%A %Y-%m-%d %H:%M")


def _names(items: pa.Table) -> dict[str, str]:
    """Item id -> its name or title, else its id."""
    words = pc.coalesce(items["name"], items["title"], items["item_id"])
    return dict(zip(items["item_id"].to_pylist(), words.to_pylist(), strict=True))
