"""Parts of the test rows in which arms are compared once more."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from raysys.data.attribute_counts import event_keys, rows_before
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import FIRST, MISSING, ContextFeature
from raysys.data.features import fit_contexts, training_item_counts
from raysys.data.prepared import Prepared
from raysys.data.training_counts import training_stop
from raysys.metrics import ScoredRows
from raysys.metrics.baselines import reader_kinds

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_LENGTHS = (100, 1000)
UNSEEN = "context unseen"
# Of `scene_slices`.
FREQUENT, RARE, UNSEEN_VALUE = "scene frequent", "scene rare", "scene unseen"
RARE_OR_UNSEEN, NEW_ITEMS = "scene rare or unseen", "new items"


def slices(data: Prepared, rows: ScoredRows, contexts: Sequence[str], rare: int) -> dict[str, Mask]:
    """Rows [N] by name: history length, contexts by how often training met them, and the values
    of the first context feature.

    contexts: the features that make a context. rare: fewer events than this before the end of
    training, and more than none.
    """
    log = data.impressions
    owner = _owners(data, rows)
    length = (log.end - log.start)[owner]
    out = {f"history<{_LENGTHS[0]}": length < _LENGTHS[0]}
    out[f"history {_LENGTHS[0]}-{_LENGTHS[1]}"] = (length >= _LENGTHS[0]) & (length < _LENGTHS[1])
    out[f"history>={_LENGTHS[1]}"] = length >= _LENGTHS[1]

    codec = fit_contexts(data, tuple(contexts))
    table = ContextTable.fit(codec, codec.names, (), ())
    past = [
        event_keys(data.histories, table, events)
        for events in rows_before(data.histories, training_stop(data))
    ]
    known, count = np.unique(np.concatenate([np.zeros(0, np.int64), *past]), return_counts=True)
    codes = codec.translator(data.codec)(log.context[owner])
    met = _looked_up(known, count, table.keys(codes))
    out |= {
        "context seen": met >= rare,
        "context rare": (met > 0) & (met < rare),
        UNSEEN: met == 0,
    }
    for code in np.unique(codes[:, 0]):
        out[f"{contexts[0]}={_name(codec.features[0], int(code))}"] = codes[:, 0] == code
    return {name: mask for name, mask in out.items() if mask.any()}


def scene_slices(
    data: Prepared, rows: ScoredRows, contexts: Sequence[str], rare: int
) -> dict[str, Mask]:
    """Rows [N] by name: scene values by how often training requests had them (a request is as
    rare as its rarest value), combinations that none had, items that training never showed, and
    users without an event before the end of training.

    contexts: the features that are told in words. rare: fewer training requests than this, and
    more than none.
    """
    log = data.impressions
    owner = _owners(data, rows)
    train = log.of("train")
    place = [data.codec.names.index(name) for name in contexts]
    codes = log.context[:, place]
    met = np.full(len(codes), np.iinfo(np.int64).max)
    for column in codes.T:
        counts = np.bincount(column[train], minlength=int(column.max(initial=0)) + 1)
        # A missing value is none that could be rare.
        met = np.where(column == MISSING, met, np.minimum(met, counts[column]))
    distinct, combination = np.unique(codes, axis=0, return_inverse=True)
    seen = np.bincount(combination.reshape(-1)[train], minlength=len(distinct)) > 0
    fresh = training_item_counts(data)[FIRST:] == 0
    item = pc.index_in(rows.item.values, value_set=data.item_ids).to_numpy()[rows.item.codes]
    user = log.user[owner]
    cold = (training_stop(data) == data.histories.start[:-1])[user]
    known = seen[combination.reshape(-1)]
    out = {
        FREQUENT: met[owner] >= rare,
        RARE: (met[owner] > 0) & (met[owner] < rare),
        UNSEEN_VALUE: met[owner] == 0,
        RARE_OR_UNSEEN: met[owner] < rare,
        "scene combination unseen": ~known[owner],
        NEW_ITEMS: fresh[item],
        "cold users": cold,
    }
    return {name: mask for name, mask in out.items() if mask.any()}


def news_slices(data: Prepared, rows: ScoredRows) -> dict[str, Mask]:
    """Rows [N] by name: clicks before the request, candidates that name no entity, requests whose
    newest 50 clicks name none, news that training never showed, and, where it is planted, what
    drives the reader."""
    log = data.impressions
    owner = _owners(data, rows)
    length = (log.end - log.start)[owner]
    named = pc.list_value_length(data.dataset.table("items", ["entities"])["entities"])
    has = np.concatenate([[False] * FIRST, named.fill_null(0).to_numpy() > 0])
    item = pc.index_in(rows.item.values, value_set=data.item_ids).to_numpy()[rows.item.codes]
    start = np.maximum(log.start, log.end - 50)
    before = np.concatenate([[0], np.cumsum(has[data.histories.item])])
    told = (before[log.end] - before[start])[owner] > 0
    fresh = training_item_counts(data)[FIRST:] == 0
    out = {
        "no clicks": length == 0,
        "clicks 1-10": (length > 0) & (length <= 10),
        "clicks 11-50": (length > 10) & (length <= 50),
        "clicks>50": length > 50,
        "clicks without entities": (length > 0) & ~told,
        "candidate without entities": ~has[FIRST + item],
        "news unseen in training": fresh[item],
    }
    kinds = reader_kinds(data)
    if kinds is not None:
        mine = kinds[log.user[owner]]
        out |= {driven_by(kind): mine == kind for kind in ("entity", "mixed", "topic")}
    return {name: mask for name, mask in out.items() if mask.any()}


def driven_by(kind: str) -> str:
    """The slice of a kind of planted readers."""
    return f"{kind}-driven readers" if kind != "mixed" else "readers driven by both"


def _owners(data: Prepared, rows: ScoredRows) -> Ints:
    """The impression [N] of each row."""
    owner = pc.index_in(rows.impression.values, value_set=data.impressions.ids).to_numpy()
    found: Ints = owner[rows.impression.codes]
    return found


def _looked_up(known: Ints, count: Ints, asked: Ints) -> Ints:
    place = np.minimum(np.searchsorted(known, asked), max(0, len(known) - 1))
    return np.where(known[place] == asked, count[place], 0) if len(known) else np.zeros_like(asked)


def _name(feature: ContextFeature, code: int) -> str:
    if code < FIRST:
        return "unknown"
    if feature.kind == "categorical":
        return feature.values[code - FIRST]
    return f"bucket {code - FIRST}"
