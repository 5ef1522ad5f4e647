"""Samples (knowledge, instruction, answer) of the tasks about each request (§2.3)."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from random import Random
from typing import Any

from raysys.errors import DataError
from raysys.hkfr.moments import Moments, Request
from raysys.hkfr.store import Bound, KnowledgeStore
from raysys.hkfr.tasks import TASKS, Moment


@dataclass(frozen=True)
class KeyedSample:
    """A sample whose knowledge text is in the store still; key: of that."""

    sample_id: str
    user_id: str
    ts: int | None
    task: str
    key: str
    instruction: str
    answer: str
    split: str


class KnownAt:
    """Which knowledge a request may use: its own, or that of the newest day up to its local day.

    Raises:
        DataError: no knowledge, or knowledge of other data or of several options.
    """

    def __init__(self, store: KnowledgeStore, data_card_id: str, max_age_days: int) -> None:
        self.store = store
        self.max_age = timedelta(days=max_age_days)
        self.requests = store.has_requests()
        self.days = [] if self.requests else store.dates()
        names: list[Any] = ["requests"] if self.requests else list(self.days)
        if not names:
            raise DataError(f"{store.path}: it holds no knowledge yet; build it again to its end")
        manifests = [store.bound(name)[0] for name in names]
        self.bound: Bound = manifests[-1]
        for manifest in manifests:
            if manifest.data_card_id != data_card_id:
                raise DataError(
                    f"{store.path}: knowledge of {manifest.name} is of data card "
                    f"{manifest.data_card_id}, the data set's is {data_card_id}; build it of this "
                    "data set (texts that have not changed cost nothing)"
                )
            if _apart_from_days(manifest) != _apart_from_days(self.bound):
                raise DataError(
                    f"{store.path}: knowledge of {manifest.name} was built with other options than "
                    f"that of {self.bound.name}; build both with the same"
                )
        self._of = lru_cache(maxsize=2 * (max_age_days + 1))(self._rows)

    def key(self, request: Request) -> str | None:
        """Key of the text that the request may use; None where there is none.

        Knowledge with an event at or after the request, as a change of the clock can give, is
        none.
        """
        name = "requests" if self.requests else self._day(request)
        if name is None:
            return None
        asked = request.request_id if self.requests else request.user_id
        key, last = self._of(name).get(asked, (None, None))
        late = last is not None and request.ts is not None and last >= request.ts
        return None if late else key

    def _day(self, request: Request) -> date | None:
        if request.local is None:
            return None
        today = request.local.date()
        return max((d for d in self.days if today - self.max_age <= d <= today), default=None)

    def _rows(self, name: Any) -> dict[str, tuple[str | None, int | None]]:
        _, rows = self.store.bound(name)
        owner = rows["request_id" if self.requests else "user_id"].to_pylist()
        keys, last = rows["key"].to_pylist(), rows["last_ts"].to_pylist()
        return dict(zip(owner, zip(keys, last, strict=True), strict=True))


def _apart_from_days(manifest: Bound) -> dict[str, Any]:
    return {name: value for name, value in manifest.options.items() if name != "days"}


@dataclass
class Asked:
    """Samples of all tasks that the data set has answers for.

    skipped: the other tasks, and why; without_knowledge: requests that no knowledge was known at.
    """

    samples: list[KeyedSample]
    skipped: dict[str, str]
    without_knowledge: int


def ask(
    moments: Moments, known: KnownAt, tasks: Sequence[str], seed: int, train_per_user: int | None
) -> Asked:
    """The samples of the requests, in their order; equal seeds give equal samples.

    Every answer is about the order that a request led to, or the next one after it, while its
    knowledge ends before it.
    """
    samples: list[KeyedSample] = []
    without = 0
    for request, moment in moments:
        key = known.key(request)
        if key is None:
            without += 1
            continue
        samples += _of_request(request, moment, key, tasks, seed)
    answers: dict[str, set[str]] = {name: set() for name in tasks}
    for sample in samples:
        answers[sample.task].add(sample.answer)
    skipped = {
        name: f"every answer is {next(iter(found))!r}" if found else "no request has what it asks"
        for name, found in answers.items()
        if len(found) < 2
    }
    kept = [sample for sample in samples if sample.task not in skipped]
    return Asked(_thinned(kept, train_per_user, seed), skipped, without)


def _of_request(
    request: Request, moment: Moment, key: str, tasks: Sequence[str], seed: int
) -> Iterator[KeyedSample]:
    for name in tasks:
        # Of its own, so that the other tasks of a run do not matter.
        draw = Random(f"{seed} {request.request_id} {name}")
        asked = TASKS[name].ask(moment, draw)
        if asked is None:
            continue
        slots, answer = asked
        yield KeyedSample(
            sample_id=f"{request.request_id}/{name}",
            user_id=request.user_id,
            ts=request.ts,
            task=name,
            key=key,
            instruction=draw.choice(TASKS[name].phrasings).format(**slots),
            answer=answer,
            split=request.split,
        )


def _thinned(samples: list[KeyedSample], per_user: int | None, seed: int) -> list[KeyedSample]:
    """At most so many training samples of each user, drawn by hash."""
    if per_user is None:
        return samples
    drawn = defaultdict(list)
    for sample in samples:
        if sample.split == "train":
            rank = hashlib.sha256(f"{seed} {sample.sample_id}".encode()).digest()
            drawn[sample.user_id].append((rank, sample.sample_id))
    kept = {name for ranks in drawn.values() for _, name in sorted(ranks)[:per_user]}
    return [s for s in samples if s.split != "train" or s.sample_id in kept]
