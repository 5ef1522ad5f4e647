"""What is known of a planted world: the oracle, which is the click probability without the effect
of position, and what drives its readers."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.data.prepared import Prepared, item_rows
from raysys.data.world.truth import read_truth
from raysys.errors import DataError
from raysys.metrics.baselines.rows import Rows
from raysys.metrics.blocks import Floats, Ints


def oracle_scores(data: Prepared, split: str) -> Floats | None:
    """[R] for every candidate row of `split` in table order; None for a log of real behaviour.

    Raises:
        DataError: a candidate of the split is missing from the truth.
    """
    dataset = data.dataset
    if not dataset.manifest.world:
        return None
    truth = read_truth(dataset.path).rows()
    rows = Rows.of(data, data.impressions.of(split))
    impression = _numpy(
        pc.index_in(truth["impression_id"], value_set=data.impressions.ids).fill_null(-1)
    )
    told = _keys(data, impression, item_rows(data.item_ids, truth["item_id"]))
    wanted = _keys(data, rows.impression, rows.item)
    order = np.argsort(told)
    place = order[np.minimum(np.searchsorted(told[order], wanted), told.size - 1)]
    missing = np.flatnonzero(told[place] != wanted)
    if missing.size:
        where = data.impressions.ids[int(rows.impression[missing[0]])]
        raise DataError(
            f"{dataset.path}/truth: no row for a candidate of impression {where}; "
            "make the world again"
        )
    return _numpy(truth["oracle"])[place].astype(np.float64)


def reader_kinds(data: Prepared) -> NDArray[Any] | None:
    """[users] what drives each reader of a planted newspaper: entity, topic or mixed; None for
    other data."""
    dataset = data.dataset
    if dataset.manifest.world.get("config", {}).get("kind") not in ("news", "readers"):
        return None
    truth = read_truth(dataset.path).users()
    place = _numpy(pc.index_in(truth["user_id"], value_set=data.histories.users).fill_null(-1))
    kinds = np.full(len(data.histories.users), "", dtype=object)
    kinds[place[place >= 0]] = _numpy(truth["reader"])[place >= 0]
    return kinds


def _keys(data: Prepared, impression: NDArray[Any], item: NDArray[Any]) -> Ints:
    keys: Ints = impression.astype(np.int64) * (len(data.item_ids) + 2) + item
    return keys


def _numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    values: NDArray[Any] = column.to_numpy()
    return values
