"""What readers did and asked for since the run was made: clicks, what is hidden, what is to be
forgotten."""

import asyncio
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve

from raysys.errors import ArtifactError

_TABLES = """
CREATE TABLE IF NOT EXISTS wishes
    (reader TEXT PRIMARY KEY, hidden TEXT NOT NULL, since INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clicks
    (reader TEXT, ts INTEGER, item TEXT, PRIMARY KEY (reader, ts, item)) WITHOUT ROWID;
"""
KEPT = 200  # newest clicks of a reader


class Wish(BaseModel):
    """hidden: entities that must not count in the persona; since: µs UTC, nothing from before it
    may be looked at, null if all may; clicks: (news, µs UTC) that came while serving, oldest
    first."""

    model_config = ConfigDict(extra="forbid")

    hidden: tuple[str, ...] = ()
    since: int | None = None
    clicks: tuple[tuple[str, int], ...] = ()


class PersonaBook:
    """Clicks and wishes of all readers in one SQLite file. What a call has returned from is on
    the disk.

    Raises:
        ArtifactError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, isolation_level=None)
            self._base.execute("PRAGMA synchronous = FULL")
            self._base.executescript(_TABLES)
            self._base.execute("SELECT reader, hidden, since FROM wishes LIMIT 1")
            self._base.execute("SELECT reader, ts, item FROM clicks LIMIT 1")
        except (OSError, sqlite3.Error) as error:
            raise ArtifactError(f"models.personas.store: {path}: {error}") from error

    def read(self, reader: str) -> Wish:
        """What the reader has asked for; nothing if he never did."""
        found = self._base.execute(
            "SELECT hidden, since FROM wishes WHERE reader = ?", (reader,)
        ).fetchone()
        hidden, since = ((), None) if found is None else (json.loads(found[0]), found[1])
        clicks = self._base.execute(
            "SELECT item, ts FROM clicks WHERE reader = ? ORDER BY ts, item", (reader,)
        ).fetchall()
        return Wish(hidden=hidden, since=since, clicks=clicks)

    def click(self, reader: str, item: str, ts: int) -> Wish:
        """The reader has clicked a news; told twice it counts once. The oldest beyond `KEPT` go,
        and what is of before a deletion does not come back."""
        with self._base:
            self._base.execute("BEGIN")
            self._base.execute(
                "INSERT OR IGNORE INTO clicks SELECT ?, ?, ? WHERE NOT EXISTS "
                "(SELECT 1 FROM wishes WHERE reader = ? AND since > ?)",
                (reader, ts, item, reader, ts),
            )
            self._base.execute(
                "DELETE FROM clicks WHERE reader = ? AND (ts, item) NOT IN (SELECT ts, item FROM "
                "clicks WHERE reader = ? ORDER BY ts DESC, item DESC LIMIT ?)",
                (reader, reader, KEPT),
            )
        return self.read(reader)

    def hide(self, reader: str, hidden: tuple[str, ...]) -> Wish:
        """From now on these entities are hidden, and no others."""
        self._base.execute(
            "INSERT INTO wishes VALUES (?, ?, NULL) "
            "ON CONFLICT (reader) DO UPDATE SET hidden = excluded.hidden",
            (reader, json.dumps(hidden)),
        )
        return self.read(reader)

    def forget(self, reader: str, now: int) -> Wish:
        """Nothing from before now, µs UTC, may be looked at again; what was hidden tells of the
        reader too, and is forgotten with the rest."""
        with self._base:
            self._base.execute("BEGIN")
            self._base.execute("DELETE FROM clicks WHERE reader = ?", (reader,))
            self._base.execute(
                "INSERT INTO wishes VALUES (?, '[]', ?) ON CONFLICT (reader) DO UPDATE SET "
                "hidden = excluded.hidden, "
                # A clock that was set back must not bring anything back.
                "since = max(excluded.since, coalesce(since, excluded.since))",
                (reader, now),
            )
        return self.read(reader)


class PersonaStore:
    """The deployment that owns a `PersonaBook`: one replica, so that all rankers read the same."""

    def __init__(self, path: Path) -> None:
        # SQLite connections belong to the thread that opened them.
        self._thread = ThreadPoolExecutor(1, "personas")
        self._book = self._thread.submit(PersonaBook, path).result()

    async def read(self, reader: str) -> Wish:
        """See `PersonaBook`."""
        return await self._in_thread(self._book.read, reader)

    async def hide(self, reader: str, hidden: tuple[str, ...]) -> Wish:
        """See `PersonaBook`."""
        return await self._in_thread(self._book.hide, reader, hidden)

    async def click(self, reader: str, item: str, ts: int) -> Wish:
        """See `PersonaBook`."""
        return await self._in_thread(self._book.click, reader, item, ts)

    async def forget(self, reader: str) -> Wish:
        """See `PersonaBook`."""
        return await self._in_thread(self._book.forget, reader, time.time_ns() // 1000)

    async def _in_thread(self, call, *given) -> Wish:  # type: ignore[no-untyped-def]
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *given)


personas = serve.deployment(name="personas")(PersonaStore)
