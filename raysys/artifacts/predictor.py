"""The one scoring path: evaluation, batch scoring and serving all call `Predictor.score`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raysys.artifacts.persona import PersonaExplanation
from raysys.artifacts.retrieval import RetrievalExplanation
from raysys.artifacts.run import LoadedRun, load_run, request_fit
from raysys.data.batch import Batch, Collator, Pointers
from raysys.data.contexts import FIRST, OOV, ContextCodec
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.requests import WHOLE, Request, Requests
from raysys.data.schema import BEHAVIOURS
from raysys.errors import ArtifactError, DataError

# Candidate rows scored at once: enough to fill the matrix units of a core, small enough that
# the pairwise tensors of target attention stay in its cache hierarchy.
ROWS_PER_BATCH = 4096

SCORES = pa.schema(
    [
        ("request_id", pa.string()),
        ("item_id", pa.string()),
        ("score", pa.float64()),
        ("p_click", pa.float64()),
        ("p_order", pa.float64()),
    ]
)


class PastEvent(NamedTuple):
    """An event of the history and how much it counted; ts µs UTC, None where unknown."""

    item_id: str
    ts: int | None
    behaviour: str
    weight: float


class _Chunk(NamedTuple):
    """Requests scored at once: their indices, and what their batch is gathered from."""

    chosen: npt.NDArray[np.int64]
    pointers: Pointers
    collate: Collator
    hidden: dict[int, tuple[str, ...]]  # place in the chunk -> entities
    predictor: "Predictor"

    def batch(self) -> Batch:
        """Gather it."""
        batch = self.collate(self.pointers)
        if self.hidden:
            wishes = [self.hidden.get(place, ()) for place in range(len(batch))]
            batch = self.predictor.model.hide(batch, wishes)
        return batch.to(self.predictor.device)


class Predictor:
    """Scores requests with a trained run; needs no data set.

    Histories come with the request, or from `histories` (a data set's, an online store's), or
    from the run's snapshot, in this order; a user known to none of them is cold.

    `unknown` counts items, users and contexts that were not known, over the life of the
    predictor. A user whose history came with the request is known, a context if the request has
    a value of each of the model's features and training met it.
    """

    def __init__(
        self,
        run: LoadedRun,
        *,
        histories: Histories | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.run = run
        self.model = run.model.to(device)
        self.model.bind(run.catalogue)
        self.model.freeze()
        self.device = device
        self.codec = run.features.contexts
        self.fit = request_fit(run.features, run.data_card)
        known = histories if histories is not None else run.histories
        self.histories = known if known is not None else Histories.empty(self.codec)
        self.unknown: Counter[str] = Counter()
        self._collate = self.model.collator(self.histories, self.codec)
        self.fit = replace(self.fit, whole=self._collate.selector is not None)

    @classmethod
    def load(
        cls,
        run: Path | str,
        *,
        histories: Histories | None = None,
        device: torch.device | str = "cpu",
    ) -> "Predictor":
        """Open and verify a run folder.

        Raises:
            ArtifactError: the folder is unfinished or damaged.
        """
        return cls(load_run(run), histories=histories, device=device)

    @property
    def model_id(self) -> str:
        """12 hex digits that name config, weights and features."""
        return self.run.config.model_id

    @property
    def data_card_id(self) -> str:
        """The card of the data the run was trained on."""
        return self.run.config.data_card_id

    def adopt(self, codec: ContextCodec) -> None:
        """Read requests with other vocabularies, see `Ranker.adopt`; not while scoring."""
        self.model.adopt(codec)
        self.codec = codec
        self.fit = replace(self.fit, codec=codec)
        self._collate = self._collate.over(codec)

    def score(self, requests: Sequence[Request] | Requests) -> pa.Table:
        """Score all candidates of all requests.

        Returns a table with one row per candidate, in request and candidate order: request_id,
        item_id, score (higher is better), p_click, p_order (null where the model has none).

        Raises:
            ArtifactError: the model gave a non-finite score.
            DataError: a context value of the wrong type; `since` where the model needs the whole
                history.
        """
        columns = self._columns(requests)
        offsets = np.concatenate([[0], np.cumsum(columns.counts)])
        out = np.full((3, int(offsets[-1])), np.nan)
        present = [True, True, True]
        for chunk in self._batches(columns):
            batch = chunk.batch()
            with torch.inference_mode():
                scores = self.model(batch)
            mask = batch.candidate_mask
            rows = _rows(offsets, chunk.chosen)
            for index, values in enumerate(scores):
                if values is None:
                    present[index] = False
                else:
                    out[index, rows] = values[mask].double().cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(out[present]).all(0))
        if len(bad):
            owner = int(np.searchsorted(offsets, bad[0], side="right")) - 1
            raise ArtifactError(
                f"{self.run.path}: non-finite score for item {columns.candidates[bad[0]]} of "
                f"request {columns.ids[owner]}; the model is not usable, train again"
            )
        counts = pa.array(np.repeat(np.arange(len(columns)), columns.counts))
        arrays = [pa.array(columns.ids, pa.string()).take(counts), pa.array(columns.candidates)]
        for index in range(3):
            filled = pa.array(out[index]) if present[index] else pa.nulls(out.shape[1])
            arrays.append(filled)
        return pa.table(arrays, names=SCORES.names).cast(SCORES)

    def explain(
        self, requests: Sequence[Request] | Requests, top: int = 3
    ) -> list[list[list[PastEvent]]]:
        """Per request and candidate, the past events that weigh most.

        What a weight means is said by `event_weights` of the model. Events of unknown items, or
        of weight 0, explain nothing and are left out; of equals the newest comes first.
        """
        columns = self._columns(requests)
        out: list[list[list[PastEvent]]] = [[] for _ in range(len(columns))]
        for chunk in self._batches(columns):
            batch, collate = chunk.batch(), chunk.collate
            events_of = collate.rows(chunk.pointers)
            with torch.inference_mode():
                weights = self.model.event_weights(batch)
            where = weights.abs().argsort(dim=-1, descending=True, stable=True)[..., :top]
            for row, request in enumerate(chunk.chosen.tolist()):
                for column in range(int(columns.counts[request])):
                    events = []
                    for position in where[row, column].tolist():
                        item = int(batch.history_items[row, position])
                        weight = float(weights[row, column, position])
                        if weight and item >= FIRST:
                            behaviour = BEHAVIOURS[int(batch.history_behaviour[row, position])]
                            ts = int(collate.histories.ts[events_of[row, position]])
                            events.append(
                                PastEvent(
                                    self.run.catalogue.item_ids[item - FIRST].as_py(),
                                    None if ts == UNKNOWN_TS else ts,
                                    behaviour,
                                    weight,
                                )
                            )
                    out[request].append(events)
        return out

    def explain_retrieval(
        self, requests: Sequence[Request] | Requests
    ) -> list[RetrievalExplanation | None]:
        """Per request, why the model was shown these past events, whatever the candidates are.

        None where the model has no reasons to give.
        """
        columns = self._columns(requests)
        out: list[RetrievalExplanation | None] = [None] * len(columns)
        for chunk in self._batches(columns):
            found = self.model.explain_retrieval(chunk.pointers, chunk.collate, self.run.catalogue)
            for request, reasons in zip(chunk.chosen.tolist(), found or (), strict=False):
                out[request] = reasons
        return out

    def explain_persona(
        self, requests: Sequence[Request] | Requests
    ) -> list[list[PersonaExplanation] | None]:
        """Per request and candidate, the score in parts by entity of the user's persona.

        None where the model has no personas.
        """
        columns = self._columns(requests)
        out: list[list[PersonaExplanation] | None] = [None] * len(columns)
        for chunk in self._batches(columns):
            with torch.inference_mode():
                found = self.model.explain_persona(chunk.batch(), self.run.catalogue)
            for request, parts in zip(chunk.chosen.tolist(), found or (), strict=False):
                out[request] = parts
        return out

    def _columns(self, requests: Sequence[Request] | Requests) -> Requests:
        if isinstance(requests, Requests):
            return requests
        return Requests.of(requests, self.codec)

    def _batches(self, columns: Requests) -> Iterator["_Chunk"]:
        """Requests with a stored history first, then those that sent their own."""
        stored = columns.stored()
        if len(stored):
            part = columns if len(stored) == len(columns) else columns.take(stored)
            yield from self._chunks(part, stored, self._collate)
        if columns.inline:
            chosen = np.array(sorted(columns.inline), np.int64)
            own = columns.inline_histories(self.run.catalogue, self.codec)
            collate = self.model.collator(own, self.codec)
            yield from self._chunks(columns.renamed_inline(), chosen, collate)

    def _chunks(
        self, part: Requests, names: npt.NDArray[np.int64], collate: Collator
    ) -> Iterator["_Chunk"]:
        if self.fit.whole and (part.since != UNKNOWN_TS).any():
            raise DataError(WHOLE)
        size = max(1, ROWS_PER_BATCH // int(part.counts.max(initial=1)))
        for begin in range(0, len(part), size):
            chosen = np.arange(begin, min(begin + size, len(part)))
            chunk = part if len(chosen) == len(part) else part.take(chosen)
            pointers = chunk.pointers(self.run.catalogue, collate.histories, self.codec)
            self.unknown["items"] += int((pointers.candidates == OOV).sum())
            self.unknown["contexts"] += int((pointers.context < FIRST).any(1).sum())
            self.unknown["users"] += int((collate.histories.lookup(chunk.users) < 0).sum())
            yield _Chunk(names[chosen], pointers, collate, chunk.hidden, self)


def _rows(offsets: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Output rows of the candidates of the chosen requests."""
    counts = offsets[chosen + 1] - offsets[chosen]
    begin = np.repeat(offsets[chosen] - (np.cumsum(counts) - counts), counts)
    return begin + np.arange(int(counts.sum()))
