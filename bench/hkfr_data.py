"""The questions of HKFR's fair test, the same for every arm, and what prompts say of users."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bench.hkfr_arms import Text
from raysys.data.contexts import FIRST
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.data.split import stable_hash
from raysys.errors import ConfigError, DataError
from raysys.hkfr.anonymise import Anonymiser
from raysys.hkfr.config import (
    AnonymiseOptions,
    Backend,
    EventOptions,
    EventsBackend,
    KnowledgeConfig,
    TemplateBackend,
)
from raysys.hkfr.events import Teller, local_time, survey, user_logs
from raysys.hkfr.fuse import Fuser
from raysys.hkfr.fusion import open_fusion
from raysys.hkfr.instructions import KnownAt
from raysys.hkfr.items import Items
from raysys.hkfr.knowledge import NOTHING
from raysys.hkfr.moments import Request
from raysys.hkfr.next_task import Ints, NextConfig, NextTask
from raysys.hkfr.render import TEMPLATES, Document
from raysys.hkfr.store import KnowledgeStore
from raysys.hkfr.words import mealtime, one_line, quoted

PHRASINGS = (
    "Which {what} will the user's next order be of, for {mealtime}{place}?",
    "The user's next order is for {mealtime}{place}. Name its {what}.",
)
_AGE_DAYS = 7  # of fused knowledge, at most
_DECILES = 10
_BEST = 10  # the larger cut-off: among no more candidates everything is a hit


class Study(BaseModel):
    """What all arms of a study have in common.

    data, fused: folders. events: newest events of a user that an arm reads, at most. tokens: of a
    prompt with its answer. samples: training questions; valid: questions to choose by; users:
    whose test questions are asked. area: the context feature that names a place. layers, width,
    vocab: of the language model, whose heads are 32 wide; pretrain_tokens: that it learns the texts
    by; epochs: of tuning.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    task: NextConfig = NextConfig()
    fused: str | None = None
    area: str | None = None
    events: int = Field(default=300, ge=1, le=300)
    tokens: int = Field(default=384, ge=64)
    samples: int = Field(default=3000, ge=8)
    valid: int = Field(default=300, ge=1)
    users: int = Field(default=2000, ge=1)
    layers: int = Field(default=6, ge=1)
    width: int = Field(default=128, ge=32, multiple_of=32)
    vocab: int = Field(default=4096, ge=300)
    pretrain_tokens: int = Field(default=2_000_000, ge=1)
    epochs: int = Field(default=2, ge=1)


@dataclass(frozen=True)
class Questions:
    """The questions of a study, Q in all: those of training, then of validation, then of test.

    parts: how many of each; training questions stand in the order of a hash, so that the first
    ones are a sample. names [V]: the candidates in words. local, place [Q]: when and where asked.
    """

    data: Prepared
    task: NextTask
    parts: tuple[int, int, int]
    names: tuple[str, ...]
    local: tuple[datetime, ...]
    place: tuple[str | None, ...]

    def rows(self, split: str) -> Ints:
        """Which questions are of a split."""
        begin = np.cumsum([0, *self.parts])
        place = ("train", "valid", "test").index(split)
        return np.arange(begin[place], begin[place + 1])

    def of(self, split: str, first: int | None = None) -> NextTask:
        """The task of a split, or of its first questions."""
        return self.task.take(self.rows(split)[:first])

    @property
    def users(self) -> list[str]:
        """[Q] ids of users."""
        found: list[str] = np.asarray(self.task.histories.users)[self.task.user].tolist()
        return found


def untestable(data: str) -> str | None:
    """Why the next order cannot be asked for in a data set, if so."""
    dataset = Dataset(data)
    if survey(dataset) is None:
        return "no event has a time"
    if set(dataset.card.split_bounds) != {"valid", "test"}:
        return "the set is not split by time"
    return None


@lru_cache(maxsize=2)
def questions(study: Study) -> Questions:
    """The questions of a study.

    Raises:
        ConfigError: see `NextTask`; or so few candidates that every ranking hits.
    """
    data = prepare(Dataset(study.data).with_history(tuple(TEMPLATES)))
    task = NextTask.of_data(data, study.task)
    if len(task.names) <= _BEST:
        raise ConfigError(
            f"{study.data}: {study.task.target} has {len(task.names)} candidates, among which "
            f"every ranking has hr@{_BEST} 1; choose another target"
        )
    users = np.asarray(data.histories.users)
    rank = stable_hash(np.char.add(users[task.user].astype(str), task.cut.astype(str)), 0)
    found = []
    for split, limit in (("train", study.samples), ("valid", study.valid)):
        mine = np.flatnonzero((task.split == _code(split)) & (task.target >= 0))
        found.append(mine[np.argsort(rank[mine], kind="stable")][:limit])
    test = np.flatnonzero(task.split == _code("test"))
    asked = np.unique(task.user[test])
    drawn = asked[np.argsort(stable_hash(users[asked], 0), kind="stable")][: study.users]
    found.append(test[np.isin(task.user[test], drawn)])
    chosen = task.take(np.concatenate(found))
    orders, row = chosen.orders, chosen.row
    times = zip(orders.ts[row].tolist(), orders.tz[row].tolist(), strict=True)
    return Questions(
        data=data,
        task=chosen,
        parts=(len(found[0]), len(found[1]), len(found[2])),
        names=_names(data, task, study.task.target),
        local=tuple(local_time(ts, tz) for ts, tz in times),
        place=_places(data, chosen, study.area),
    )


def instructions(asked: Questions, target: str, seed: int | None = None) -> list[str]:
    """[Q] in the first wording, or in one that the seed draws for each.

    They tell the time of day and the place, as the heuristics know them.
    """
    what = {"item_id": "merchant"}.get(target, target.partition(":")[0])
    what = target.partition(":")[2] if what == "attribute" else what
    out = []
    for number, (local, place) in enumerate(zip(asked.local, asked.place, strict=True)):
        wording = PHRASINGS[0] if seed is None else Random(f"{seed} {number}").choice(PHRASINGS)
        at = f" at {quoted(place)}" if place else ""
        out.append(wording.format(what=what, mealtime=mealtime(local), place=at))
    return out


def texts(study: Study, kind: Text) -> list[str]:
    """[Q] what prompts say of the users.

    Raises:
        DataError: fused knowledge of other data, or none that a question may use.
    """
    asked = questions(study)
    match kind:
        case "nothing":
            return [NOTHING] * len(asked.task)
        case "fused":
            return _fused(study, asked)
        case "names":
            return [_in_a_row(document) for document in _documents(study, asked)]
        case "single":
            told = (study.task.behaviour,)
            return _knowledge(_documents(study, asked, told), TemplateBackend())
        case "template":
            return _knowledge(_documents(study, asked), TemplateBackend())
        case "events":
            backend = EventsBackend(tokens=study.tokens)
            return _knowledge(_documents(study, asked), backend)


def swapped(asked: Questions, seed: int) -> Ints:
    """[Q] whose knowledge a question gets instead: that of another user, of the same split and
    the same tenth by the number of events."""
    rng = np.random.default_rng(seed)
    events, user = asked.task.end - asked.task.start, asked.task.user
    out = np.arange(len(user))
    for split in ("train", "valid", "test"):
        rows = asked.rows(split)
        ordered = rows[np.argsort(events[rows], kind="stable")]
        for tenth in np.array_split(ordered, min(_DECILES, max(1, len(rows) // 2))):
            out[tenth] = _others(user, tenth, rng)
    return out


def _others(user: Ints, rows: Ints, rng: np.random.Generator) -> Ints:
    """Rows drawn from those of other users; its own where a user is alone."""
    drawn = rows.copy()
    for place, row in enumerate(rows):
        others = rows[user[rows] != user[row]]
        if len(others):
            drawn[place] = rng.choice(others)
    return drawn


def _code(split: str) -> int:
    return ("train", "valid", "test").index(split)


def _items(data: Prepared) -> tuple[Items, Anonymiser]:
    anonymiser = Anonymiser(AnonymiseOptions(), data.dataset.card.dataset)
    return Items(data.dataset.table("items"), anonymiser), anonymiser


def _names(data: Prepared, task: NextTask, target: str) -> tuple[str, ...]:
    if target == "item_id":
        items = _items(data)[0]
        return tuple(items[name].label for name in task.names)
    return tuple(one_line(name) for name in task.names)


def _places(data: Prepared, task: NextTask, area: str | None) -> tuple[str | None, ...]:
    if area is None:
        return (None,) * len(task)
    if area not in data.codec.names:
        known = ", ".join(data.codec.names)
        raise ConfigError(f"area={area}: no such context feature; there are {known}")
    place = data.codec.names.index(area)
    labels = data.codec.features[place].labels
    codes = task.orders.context[task.row, place].tolist()
    return tuple(one_line(labels[code]) if code >= FIRST else None for code in codes)


def _documents(
    study: Study, asked: Questions, behaviours: Sequence[str] | None = None
) -> list[Document]:
    """B_u [Q]: events before the cut, of these behaviours."""
    data, task = asked.data, asked.task
    items, anonymiser = _items(data)
    kinds = data.dataset.manifest.contexts.items()
    contexts = [name for name, kind in kinds if kind == "categorical"]
    teller = Teller(items, anonymiser, EventOptions(limit=study.events), contexts)
    order = np.argsort(task.user, kind="stable")
    users = data.histories.users.to_pylist()
    begins = np.searchsorted(task.user[order], np.arange(len(users) + 1))
    found: dict[int, Document] = {}
    logs = user_logs(data.dataset, users, behaviours)
    for log, begin, end in zip(logs, begins[:-1], begins[1:], strict=True):
        mine = order[begin:end].tolist()
        ends = [log.before(int(task.cut[row])) for row in mine]
        found |= zip(mine, teller.documents(log, ends), strict=True)
    return [found[row] for row in range(len(task))]


def _knowledge(documents: list[Document], backend: Backend) -> list[str]:
    config = KnowledgeConfig(backend=backend)
    anonymiser = Anonymiser(config.anonymise, "")
    fuser = Fuser(config, open_fusion(backend, anonymiser), ())
    found = {place: row.text for place, row in fuser(documents)}
    return [found[place] for place in range(len(documents))]


def _in_a_row(document: Document) -> str:
    """P5's way: the user's id, then what was done with what, by name, the oldest first."""
    rows = (
        f"{event.behaviour} {quoted(event.item.label if event.item else event.text or '')}"
        for event in document.events
    )
    return "\n".join([document.pseudonym, *rows])


def _fused(study: Study, asked: Questions) -> list[str]:
    assert study.fused is not None
    store = KnowledgeStore(Path(study.fused))
    known = KnownAt(store, asked.data.dataset.card.id, _AGE_DAYS)
    table = store.texts(["key", "text"])
    text = dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))
    out = []
    for user, local, cut in zip(asked.users, asked.local, asked.task.cut.tolist(), strict=True):
        key = known.key(Request("", user, cut, local, ""))
        if key is None:
            raise DataError(
                f"fused={study.fused}: no knowledge of user {user} for {local:%Y-%m-%d}; build it "
                "of all days of the questions (days=N, as_of_request=false)"
            )
        out.append(text[key])
    return out
