"""The nightly job of HKFR: what is known of each user, fused where events are new (§2.2, §7)."""

import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from raysys.data.dataset import Dataset
from raysys.data.histories import UNKNOWN_TS
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError
from raysys.hkfr.anonymise import Anonymiser
from raysys.hkfr.config import KnowledgeConfig
from raysys.hkfr.events import Teller, UserLog, survey, user_logs
from raysys.hkfr.fuse import Fuser
from raysys.hkfr.fusion import open_fusion
from raysys.hkfr.items import Items
from raysys.hkfr.render import Document
from raysys.hkfr.store import StoreWriter, TextRow
from raysys.llm.progress import TextProgress

# Documents that one start of an engine is for; it bounds memory too.
_DOCUMENTS_PER_JOB = 2048
# A part is committed when it has this many rows or its first one is this old.
_ROWS_PER_PART, _SECONDS_PER_PART = 1024, 60.0

Target = date | None  # None: the requests


class KnowledgeReport(BaseModel):
    """What a run did.

    users: with knowledge; cold: those without an event by the last date, or at any request;
    changed: users with a text that the store lacked; texts: new ones; tokens: that models read and
    wrote; fallbacks: texts of the template in a model's place; claims, dropped_claims: statements
    and sentences of models, and those that their users' events do not support.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    data_card_id: str
    backend: str
    dates: tuple[str, ...]
    users: int
    cold: int
    changed: int
    texts: int
    llm_calls: int
    tokens: int
    fallbacks: int
    claims: int
    dropped_claims: int
    seconds: float


def build_knowledge(
    data: Path, out: Path, config: KnowledgeConfig, day: date | None = None
) -> KnowledgeReport:
    """Write the knowledge of all users of a data set folder into the store at `out`.

    Killed and run again it goes on where it was; texts that the store has cost nothing.

    day: the last of the days, whose knowledge is of the events before it; by default the one
    after the newest event.

    Raises:
        ConfigError: a set without times but not `as_of_request`; see `open_fusion`.
        DataError: no data set folder, an event of an unknown kind, or another writer at work.
        RaysysError: the engine does not start or keeps dying; what was committed stays.
    """
    begin = time.monotonic()
    dataset = Dataset(data)
    prepared = prepare(dataset)
    last = survey(dataset)
    if not config.as_of_request and last is None:
        raise ConfigError(
            f"{data}: no event has a time, so there are no days; pass as_of_request=true"
        )
    anonymiser = Anonymiser(config.anonymise, dataset.card.dataset)
    items = Items(dataset.table("items"), anonymiser)
    fuser = Fuser(config, open_fusion(config.backend, anonymiser), items.names())
    contexts = [n for n, kind in dataset.manifest.contexts.items() if kind == "categorical"]
    teller = Teller(items, anonymiser, config.events, contexts)
    if config.as_of_request:
        cuts: _Cuts = _RequestCuts(prepared)
    else:
        assert last is not None
        end = day or last + timedelta(days=1)
        cuts = _DayCuts(tuple(end - timedelta(days=n) for n in reversed(range(config.days))))
    with StoreWriter(out) as store:
        job = _Job(fuser, store)
        users = prepared.histories.users.to_pylist()
        for log in user_logs(dataset, users, config.events.behaviours):
            asked = list(cuts.of(log))
            documents = teller.documents(log, [end for _, _, end in asked])
            for (target, request, end), document in zip(asked, documents, strict=True):
                job.add(target, request, log, end, document)
        job.fuse()
        for target in cuts.targets:
            store.bind(
                target or "requests",
                job.rows(target),
                data_card_id=dataset.card.id,
                # Names of persons are not for everybody who reads the store.
                options=config.model_dump(mode="json", exclude={"anonymise": {"names"}}),
                salt=anonymiser.fingerprint,
            )
    newest = job.bound[cuts.targets[-1]]
    known = {row["user_id"] for row in newest}
    return KnowledgeReport(
        out=str(out),
        data_card_id=dataset.card.id,
        backend=config.backend.name,
        dates=tuple(target.isoformat() for target in cuts.targets if target),
        users=len(known),
        cold=len(known - {row["user_id"] for row in newest if not row["cold"]}),
        changed=len(job.changed),
        texts=job.texts,
        llm_calls=fuser.llm_calls,
        tokens=fuser.tokens,
        fallbacks=fuser.fallbacks,
        claims=fuser.filter.claims,
        dropped_claims=fuser.filter.dropped,
        seconds=round(time.monotonic() - begin, 3),
    )


class _DayCuts:
    """K_u of each day: of the events before it, by the user's clock."""

    def __init__(self, days: tuple[date, ...]) -> None:
        self.targets: tuple[Target, ...] = days
        self._days = days

    def of(self, log: UserLog) -> Iterator[tuple[Target, str | None, int]]:
        """(day, None, how many events count) of a user."""
        for day in self._days:
            yield day, None, log.before_day(day)


class _RequestCuts:
    """K_u of each request: of the events before its moment or, without times, its history."""

    targets: tuple[Target, ...] = (None,)

    def __init__(self, prepared: Prepared) -> None:
        rows = prepared.impressions
        self._ids = rows.ids
        self._ts = rows.ts
        self._ends = rows.end - prepared.histories.begin(np.asarray(rows.user, np.int64))
        self._behaviours = prepared.dataset.manifest.history_behaviours
        order = np.argsort(rows.user, kind="stable")
        users = prepared.histories.users
        names = users.take(np.asarray(rows.user)[order]).to_pylist()
        self._of: dict[str, list[int]] = defaultdict(list)
        for name, row in zip(names, order.tolist(), strict=True):
            self._of[name].append(row)

    def of(self, log: UserLog) -> Iterator[tuple[Target, str | None, int]]:
        """(None, request, how many events count) of a user."""
        for row in self._of.get(log.user_id, ()):
            ts = int(self._ts[row])
            timed = ts != UNKNOWN_TS
            ends = int(self._ends[row])
            end = log.before(ts) if timed else log.before_history_end(ends, self._behaviours)
            yield None, self._ids[row].as_py(), end


_Cuts = _DayCuts | _RequestCuts


class _Job:
    """Collects documents, fuses those that the store lacks, and notes who has which text.

    bound: BOUND rows of each target; changed: users with a new text; texts: new ones.
    """

    def __init__(self, fuser: Fuser, store: StoreWriter) -> None:
        self.fuser = fuser
        self.store = store
        self.bound: dict[Target, list[dict[str, Any]]] = defaultdict(list)
        self.changed: set[str] = set()
        self.texts = 0
        self._lacking: dict[str, Document] = {}
        self._instead: dict[str, str] = {}  # key asked for -> key of the text it got

    def add(
        self, target: Target, request: str | None, log: UserLog, end: int, document: Document
    ) -> None:
        """Note that a user has a document's text on a day or at a request."""
        key = self.fuser.key(document)
        ts = int(log.ts[end - 1]) if end else UNKNOWN_TS
        self.bound[target].append(
            dict(
                user_id=log.user_id,
                request_id=request,
                key=key,
                cold=not end,
                events=end,
                last_ts=None if ts == UNKNOWN_TS else ts,
            )
        )
        if key in self.store:
            return
        self.changed.add(log.user_id)
        if key not in self._instead:
            self._lacking[key] = document
        if len(self._lacking) == _DOCUMENTS_PER_JOB:
            self.fuse()

    def fuse(self) -> None:
        """Fuse what was collected, part by part."""
        keys, documents = list(self._lacking), list(self._lacking.values())
        self._lacking = {}
        pending: list[TextRow] = []
        opened = time.monotonic()
        with TextProgress("users", len(keys), verb="fuse") as progress:
            try:
                for done, (place, row) in enumerate(self.fuser(documents), 1):
                    self._instead[keys[place]] = row.key
                    pending.append(row)
                    old = time.monotonic() - opened >= _SECONDS_PER_PART
                    if old or len(pending) >= _ROWS_PER_PART:
                        self._commit(pending)
                        pending, opened = [], time.monotonic()
                    progress.update(done)
            finally:
                # Also what a dying engine, or a user who interrupts, leaves behind.
                self._commit(pending)

    def _commit(self, rows: list[TextRow]) -> None:
        self.store.append(rows)
        self.texts += len(rows)

    def rows(self, target: Target) -> list[dict[str, Any]]:
        """BOUND rows of a target, with the keys of the texts that there are."""
        rows = self.bound[target]
        return [row | {"key": self._instead.get(row["key"], row["key"])} for row in rows]
