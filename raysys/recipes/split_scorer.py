"""A split of a data set scored by a run, through the one scoring path."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import load_run
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.prepared import Prepared
from raysys.data.requests import Requests
from raysys.data.split import stable_hash
from raysys.errors import DataError
from raysys.metrics import ScoredRows
from raysys.metrics.blocks import Floats, Ints

_REQUESTS_AT_ONCE = 2_000
_COLUMNS = [
    "impression_id", "user_id", "ts", "tz_offset_min", "history_end", "context", "candidates",
]  # fmt: skip

Advance = Callable[[int], None]  # called with the number of impressions just scored


@dataclass(frozen=True)
class SplitScorer:
    """Scores the rows of a split as often as wanted: as they are, reordered, or with the
    histories of other users.

    impressions: the N that are scored, see `chosen_impressions`. requests: the same, as asked.
    rows: what the model makes of them.
    """

    predictor: Predictor
    impressions: Ints
    requests: Requests
    rows: ScoredRows

    @classmethod
    def of(
        cls, run: str, data: Prepared, split: str, advance: Advance, users: int | None = None
    ) -> "SplitScorer":
        """Load the run and score the split with the histories of the data set.

        users: only the impressions of so many users, see `chosen_impressions`; None: of all.

        Raises:
            ArtifactError: the run folder is unfinished or damaged.
            DataError: the split is empty.
        """
        loaded = load_run(run)
        histories = _in_rows_of(loaded.catalogue, data)
        predictor = Predictor(loaded, histories=histories)
        impressions = chosen_impressions(data, split, users)
        if not len(impressions):
            raise DataError(f"{data.dataset.path}: split {split} has no impressions to evaluate")
        requests = _requests(data, impressions, predictor.codec)
        rows = _score(predictor, requests, data, split, impressions, advance)
        return cls(predictor, impressions, requests, rows)

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

    def newest_event(self, data: Prepared) -> Ints:
        """[R] time of the newest event in each row's history; the beginning of time without."""
        log = data.impressions
        start, end = log.start[self.impressions], log.end[self.impressions]
        newest = np.full(start.size, UNKNOWN_TS)
        some = end > start
        newest[some] = data.histories.ts[end[some] - 1]
        return np.repeat(newest, self.requests.counts)


def chosen_impressions(data: Prepared, split: str, users: int | None = None) -> Ints:
    """The impressions of a split that have candidates, in table order.

    users: only those of so many users, the first by a hash of their names, so that which they are
    depends on nothing else.
    """
    log = data.impressions
    impressions = log.of(split)
    impressions = impressions[log.offsets[impressions + 1] > log.offsets[impressions]]
    if users is None:
        return impressions
    people = np.unique(log.user[impressions])
    names = data.histories.users.take(people).to_numpy(zero_copy_only=False)
    first = people[np.argsort(stable_hash(names, 0), kind="stable")[:users]]
    return impressions[np.isin(log.user[impressions], first)]


def _in_rows_of(catalogue: Catalogue, data: Prepared) -> Histories:
    """The histories of the data set with items as rows of the run's catalogue."""
    if catalogue.item_ids.equals(data.item_ids):
        return data.histories
    row = np.concatenate([np.arange(FIRST), catalogue.rows(data.item_ids.to_pylist())])
    return replace(data.histories, item=row[data.histories.item].astype(np.int32))


def _requests(data: Prepared, impressions: Ints, codec: ContextCodec) -> Requests:
    parts, first = [], 0
    for part in data.dataset.parts("impressions", _COLUMNS):
        low, high = np.searchsorted(impressions, [first, first + len(part)])
        parts.append(part.take(pa.array(impressions[low:high] - first)))
        first += len(part)
    return Requests.of_table(pa.concat_tables(parts).combine_chunks(), codec)


def _score(
    predictor: Predictor,
    requests: Requests,
    data: Prepared,
    split: str,
    impressions: Ints,
    advance: Advance,
) -> ScoredRows:
    tables = []
    for first in range(0, len(requests), _REQUESTS_AT_ONCE):
        chosen = np.arange(first, min(first + _REQUESTS_AT_ONCE, len(requests)))
        tables.append(predictor.score(requests.take(chosen)))
        advance(chosen.size)
    scores = pa.concat_tables(tables)
    log = data.impressions
    every = chosen_impressions(data, split)
    empty = np.setdiff1d(log.of(split), every, assume_unique=True)
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
            "impression": empty.size,
            "user": np.setdiff1d(log.user[empty], log.user[every]).size,
        },
    )


def _optional(scores: pa.Table, name: str) -> Floats | None:
    return None if scores[name].null_count else scores[name].to_numpy()
