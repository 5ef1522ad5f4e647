"""Scene values without a vector: counted, encoded off the hot path, known to the next request."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ray import serve

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import read_config
from raysys.data.requests import Request
from raysys.errors import RaysysError
from raysys.larr.fit import scene_keys
from raysys.larr.online import Sentence, learn_values, scene_fit, told
from raysys.larr.ranker import LarrDIN
from raysys.llm.encoder import TextEncoder
from raysys.llm.keys import Keys
from raysys.llm.parts import HEADER, TableHeader
from raysys.llm.vectors import VectorTable
from raysys.llm.writer import TableWriter
from serve_apps.config import Scene
from serve_apps.schemas import SceneCounts

log = logging.getLogger("ray.serve")

TEXTS_PER_CALL = 64
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 600.0


class SceneTexts:
    """The encoder deployment: sentences in, vectors out, each encoded once.

    Raises:
        ArtifactError, ConfigError: see `scene_fit`; the backbone is not to be had.
    """

    def __init__(self, scene: Scene, run: Path) -> None:
        fitted = scene_fit(read_config(run), run)
        self.identity = fitted.identity
        self.table = scene.table
        self._encoder = TextEncoder(fitted.encoder)
        self._known: dict[bytes, npt.NDArray[np.float32]] = {}
        self._unstored: list[bytes] = []
        self._thread = ThreadPoolExecutor(1, "encode", torch.set_num_threads, (scene.threads,))

    async def encode(self, sentences: list[Sentence]) -> npt.NDArray[np.float32]:
        """Vectors [N, D] of N sentences."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._encode, sentences)

    def _encode(self, sentences: list[Sentence]) -> npt.NDArray[np.float32]:
        texts = [sentence.text for sentence in sentences]
        keys = scene_keys(self.identity, [s.template for s in sentences], texts)
        names = [row.tobytes() for row in keys]
        self._recall(keys, names)
        fresh = [row for row, name in enumerate(names) if name not in self._known]
        if fresh:
            vectors = self._encoder([texts[row] for row in fresh])
            self._known |= {names[row]: v for row, v in zip(fresh, vectors, strict=True)}
            self._unstored += [names[row] for row in fresh]
            self._store()
        return np.stack([self._known[name] for name in names])

    def _recall(self, keys: Keys, names: Sequence[bytes]) -> None:
        """Take from the table what it has."""
        if self.table is None or not (self.table / HEADER).is_file():
            return
        rows = [row for row, name in enumerate(names) if name not in self._known]
        if not rows:
            return
        table = VectorTable(self.table)
        found = table.rows(keys[rows]) >= 0
        vectors = table.get(keys[rows])
        for row, there, vector in zip(rows, found, vectors, strict=True):
            if there:
                self._known[names[row]] = vector

    def _store(self) -> None:
        if self.table is None:
            return
        vectors = np.stack([self._known[name] for name in self._unstored])
        keys = np.frombuffer(b"".join(self._unstored), np.uint64).reshape(-1, 2)
        try:
            with TableWriter(self.table, TableHeader(width=vectors.shape[1])) as writer:
                writer.append(keys, vectors)
            self._unstored.clear()
        except RaysysError as error:
            # Another writer, say the nightly one: the values are known here all the same, and
            # are stored with the next ones.
            log.warning("filled scene vectors are not in the table yet: %s", error)


@dataclass
class _Asked:
    """A value that was asked for: how often in vain, and when it may be asked for again."""

    failures: int = 0
    not_before: float = 0.0

    def postpone(self) -> None:
        self.not_before = time.monotonic() + min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self.failures)
        self.failures += 1


class SceneWatch:
    """Beside a ranker: counts what the requests' scenes lack, and has it filled.

    Nothing here waits: a request is ranked with what is known when it comes.

    Args:
        predictor: of a run with a scene vector.
        executor: the thread that scores; vocabularies change in it alone, between two batches.
        encoder: handle of `SceneTexts`; without one, misses are counted only.
        most: so many different values are asked for in the life of this process, because clients
            name them. One that could not be had is asked for again after a while, each time later.
    """

    def __init__(
        self, predictor: Predictor, executor: Executor, encoder: Any = None, most: int = 10_000
    ) -> None:
        assert isinstance(predictor.model, LarrDIN)
        self.predictor = predictor
        self.lookup = predictor.model.scene
        self.counts: Counter[str] = Counter()
        self._executor = executor
        self._encoder = encoder
        self._most = most
        self._pending: dict[tuple[str, str], Sentence] = {}
        self._asked: dict[tuple[str, str], _Asked] = {}
        self._task: asyncio.Task[None] | None = None

    def look(self, request: Request) -> None:
        """Count the scene of a request, and queue the sentences that have no vector."""
        for sentence in told(self.lookup, request.context):
            self.counts["lookups"] += 1
            if sentence.text is None:
                self.counts["missing"] += 1
            elif not self.lookup.known(sentence.name, sentence.text):
                self.counts["misses"] += 1
                self._queue(sentence)

    def report(self) -> SceneCounts:
        """The counts so far."""
        llm_calls = TextEncoder.encoded
        fields = SceneCounts.model_fields.keys() - {"llm_calls"}
        return SceneCounts(llm_calls=llm_calls, **{name: self.counts[name] for name in fields})

    def _queue(self, sentence: Sentence) -> None:
        key = (sentence.name, str(sentence.text))
        if self._encoder is None or key in self._pending:
            return
        if key not in self._asked and len(self._asked) >= self._most:
            self.counts["dropped"] += 1
            return
        asked = self._asked.setdefault(key, _Asked())
        if time.monotonic() < asked.not_before:
            return
        self.counts["queued"] += 1
        self._pending[key] = sentence
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._fill())

    async def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            keys = list(self._pending)[:TEXTS_PER_CALL]
            sentences = [self._pending[key] for key in keys]
            learned = [False] * len(keys)
            try:
                vectors = await self._encoder.encode.remote(sentences)
                learned = await loop.run_in_executor(
                    self._executor, learn_values, self.predictor, sentences, vectors
                )
            except Exception:
                log.exception("%d scene values could not be filled", len(sentences))
            for key, known in zip(keys, learned, strict=True):
                self.counts["filled" if known else "failed"] += 1
                if not known:
                    self._asked[key].postpone()
                del self._pending[key]


scene = serve.deployment(name="scene")(SceneTexts)
