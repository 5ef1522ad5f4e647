"""A split of a data set scored by a run, through the one scoring path."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import load_run
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.prepared import Prepared
from raysys.data.requests import Requests
from raysys.errors import DataError
from raysys.metrics import ScoredRows
from raysys.metrics.blocks import Floats, Ints

_REQUESTS_AT_ONCE = 2_000
_COLUMNS = ["impression_id", "user_id", "ts", "history_end", "context", "candidates"]

Advance = Callable[[int], None]  # called with the number of impressions just scored


@dataclass(frozen=True)
class SplitScorer:
    """Scores the rows of a split as often as wanted: as they are, reordered, or with the
    histories of other users.

    requests: the N impressions of the split that have candidates, in table order.
    rows: what the model makes of them.
    """

    predictor: Predictor
    requests: Requests
    rows: ScoredRows

    @classmethod
    def of(cls, run: str, data: Prepared, split: str, advance: Advance) -> "SplitScorer":
        """Load the run and score the split with the histories of the data set.

        Raises:
            ArtifactError: the run folder is unfinished or damaged.
            DataError: the split is empty.
        """
        loaded = load_run(run)
        histories = _in_rows_of(loaded.catalogue, data)
        predictor = Predictor(loaded, histories=histories)
        requests = _requests(data, split, predictor.codec)
        return cls(predictor, requests, _score(predictor, requests, data, split, advance))

    def __call__(self, rows: Ints, history_of: Ints | None) -> Floats:
        """Scores [n] of the given rows, in any order; see `raysys.metrics.leaks.Scorer`."""
        requests = self.requests
        owner = np.repeat(np.arange(len(requests)), requests.counts)[rows]
        order = np.argsort(owner, kind="stable")
        users = requests.users
        if history_of is not None:
            names = self.rows.user.values.to_pylist()
            given = {name: names[other] for name, other in zip(names, history_of, strict=True)}
            users = [given[user] for user in users]
        used, counts = np.unique(owner, return_counts=True)
        asked = replace(
            replace(requests, users=users).take(used),
            candidates=[requests.candidates[row] for row in rows[order]],
            counts=counts.astype(np.int64),
        )
        scores = np.empty(len(rows))
        scores[order] = self.predictor.score(asked)["score"].to_numpy()
        return scores

    def history_lengths(self) -> Ints:
        """[U] events of each user of `rows.user.values`."""
        histories = self.predictor.histories
        user = histories.rows(self.rows.user.values)
        return histories.finish(user) - histories.begin(user)

    def newest_event(self, data: Prepared, split: str) -> Ints:
        """[R] time of the newest event in each row's history; the beginning of time without."""
        log = data.impressions
        impressions = _with_candidates(data, split)
        start, end = log.start[impressions], log.end[impressions]
        newest = np.full(impressions.size, UNKNOWN_TS)
        some = end > start
        newest[some] = data.histories.ts[end[some] - 1]
        return np.repeat(newest, self.requests.counts)


def _with_candidates(data: Prepared, split: str) -> npt.NDArray[np.int64]:
    log = data.impressions
    impressions = log.of(split)
    return impressions[log.offsets[impressions + 1] > log.offsets[impressions]]


def _in_rows_of(catalogue: Catalogue, data: Prepared) -> Histories:
    """The histories of the data set with items as rows of the run's catalogue."""
    if catalogue.item_ids.equals(data.item_ids):
        return data.histories
    row = np.concatenate([np.arange(FIRST), catalogue.rows(data.item_ids.to_pylist())])
    return replace(data.histories, item=row[data.histories.item].astype(np.int32))


def _requests(data: Prepared, split: str, codec: ContextCodec) -> Requests:
    parts = []
    for part in data.dataset.parts("impressions", [*_COLUMNS, "split"]):
        wanted = pc.and_(
            pc.equal(part["split"], split), pc.greater(pc.list_value_length(part["candidates"]), 0)
        )
        parts.append(part.select(_COLUMNS).filter(wanted))
    table = pa.concat_tables(parts) if parts else None
    if table is None or not len(table):
        raise DataError(f"{data.dataset.path}: split {split} has no impressions to evaluate")
    return Requests.of_table(table.combine_chunks(), codec)


def _score(
    predictor: Predictor, requests: Requests, data: Prepared, split: str, advance: Advance
) -> ScoredRows:
    tables = []
    for first in range(0, len(requests), _REQUESTS_AT_ONCE):
        chosen = np.arange(first, min(first + _REQUESTS_AT_ONCE, len(requests)))
        tables.append(predictor.score(requests.take(chosen)))
        advance(chosen.size)
    scores = pa.concat_tables(tables)
    log = data.impressions
    every = log.of(split)
    impressions = _with_candidates(data, split)
    flat = log.rows(impressions)
    owner = pa.array(np.repeat(np.arange(impressions.size), requests.counts))
    return ScoredRows.of(
        impression_id=scores["request_id"],
        user_id=pa.array(requests.users, pa.string()).take(owner),
        item_id=scores["item_id"],
        score=scores["score"].to_numpy(),
        p_click=_optional(scores, "p_click"),
        p_order=_optional(scores, "p_order"),
        click=log.click[flat],
        order=log.order[flat],
        data_card_id=data.dataset.manifest.data_card_id,
        trained_on=predictor.run.config.data_card_id,
        split=split,
        model_id=predictor.model_id,
        empty={
            "impression": every.size - impressions.size,
            "user": np.setdiff1d(log.user[every], log.user[impressions]).size,
        },
    )


def _optional(scores: pa.Table, name: str) -> Floats | None:
    return None if scores[name].null_count else scores[name].to_numpy()
