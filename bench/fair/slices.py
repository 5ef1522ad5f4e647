"""Parts of the test rows in which arms are compared once more."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from raysys.cofars.fit import training_stop
from raysys.data.attribute_counts import event_keys, rows_before
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import FIRST, ContextFeature
from raysys.data.features import fit_contexts
from raysys.data.prepared import Prepared
from raysys.metrics import ScoredRows

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_LENGTHS = (100, 1000)
UNSEEN = "context unseen"


def slices(data: Prepared, rows: ScoredRows, contexts: Sequence[str], rare: int) -> dict[str, Mask]:
    """Rows [N] by name: history length, contexts by how often training met them, and the values
    of the first context feature.

    contexts: the features that make a context. rare: fewer events than this before the end of
    training, and more than none.
    """
    log = data.impressions
    owner = pc.index_in(rows.impression.values, value_set=log.ids).to_numpy()
    owner = owner[rows.impression.codes]
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


def _looked_up(known: Ints, count: Ints, asked: Ints) -> Ints:
    place = np.minimum(np.searchsorted(known, asked), max(0, len(known) - 1))
    return np.where(known[place] == asked, count[place], 0) if len(known) else np.zeros_like(asked)


def _name(feature: ContextFeature, code: int) -> str:
    if code < FIRST:
        return "unknown"
    if feature.kind == "categorical":
        return feature.values[code - FIRST]
    return f"bucket {code - FIRST}"
