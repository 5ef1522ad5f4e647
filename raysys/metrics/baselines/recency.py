"""How old an item is at the time of a request."""

import numpy as np

from raysys.data.contexts import FIRST
from raysys.data.histories import UNKNOWN_TS
from raysys.data.prepared import Prepared
from raysys.metrics.baselines.counts import Counts
from raysys.metrics.baselines.rows import Rows
from raysys.metrics.blocks import Floats

_US_PER_DAY = 86_400e6
_NEVER = np.iinfo(np.int64).max


def item_age_days(data: Prepared, rows: Rows, counts: Counts, split: str) -> Floats | None:
    """[R] days since `created_at`, or since the item was first seen where that is unknown.

    First seen means shown or used: with frozen counts before the first request of `split`, and an
    item not seen by then has age 0; with streaming counts at any time up to the request. Without
    request times the newest item has age 0. None where the data set tells no time at all.
    """
    born = _created(data)
    timed = rows.ts != UNKNOWN_TS
    unknown = np.isnan(born)
    unknown[:FIRST] = True
    born[unknown] = _first_seen(data, counts, split)[unknown]
    if not np.isfinite(born).any():
        return None
    now = np.where(timed, rows.ts, np.nanmax(np.where(np.isfinite(born), born, np.nan)))
    age: Floats = np.maximum(now - np.minimum(born[rows.item], now), 0.0) / _US_PER_DAY
    return age


def _created(data: Prepared) -> Floats:
    column = data.dataset.table("items", ["created_at"])["created_at"]
    return np.concatenate([np.full(FIRST, np.nan), column.to_numpy().astype(np.float64)])


def _first_seen(data: Prepared, counts: Counts, split: str) -> Floats:
    """[2 + items] µs; infinite where never seen before the cut."""
    log, history = data.impressions, data.histories
    cut = _NEVER
    if counts == "frozen":
        times = log.ts[log.of(split)]
        cut = int(times[times != UNKNOWN_TS].min(initial=_NEVER))
    first = np.full(FIRST + len(data.item_ids), np.inf)
    shown_at = np.repeat(log.ts, np.diff(log.offsets))
    for item, ts in ((log.item, shown_at), (history.item, history.ts)):
        seen = (ts != UNKNOWN_TS) & (ts < cut)
        np.minimum.at(first, item[seen], ts[seen].astype(np.float64))
    return first
