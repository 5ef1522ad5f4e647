"""Write a data set in the layout that FuxiCTR's LongCTR loader reads.

`user_info.parquet` holds each user's events once, `item_info.parquet` one row of codes per item,
`train.parquet` and `valid.parquet` a pointer (user row, history length) per sample, and
`feature_map.json` the features with their vocabulary sizes. Code 0 of every feature is padding:
FuxiCTR embeds it as a zero vector that is never trained.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data.files import new_folder
from raysys.errors import DataError

Ints = npt.NDArray[np.integer[Any]]

DATASET_ID = "data"
# Columns that FuxiCTR's loader gathers with and that the model never sees.
POINTERS = ("user_index", "item_index", "seq_len")
GROUP = "group_id"


@dataclass(frozen=True)
class Rows:
    """R samples of one split.

    user [R]: row of the user, −1 for a user without events; end [R]: exclusive end of the
    history, an index into the event list of all users; item [R] item rows; label [R] 0/1;
    context: codes [R] per feature; group [R]: group of the grouped AUC, optional.
    """

    user: Ints
    end: Ints
    item: Ints
    label: Ints
    context: Mapping[str, Ints] = field(default_factory=dict)
    group: Ints | None = None


def write_fuxictr_dataset(
    out: Path,
    history_start: Ints,
    history_item: Ints,
    item_features: Mapping[str, Ints],
    splits: Mapping[str, Rows],
    vocab_sizes: Mapping[str, int],
) -> None:
    """Write folder `out`, which must not exist.

    Args:
        out: the folder to make.
        history_start: [U + 1]; user u owns history_item[history_start[u]:history_start[u + 1]].
        history_item: item rows [N], oldest first; row 0 is padding and must not occur.
        item_features: codes [I] per feature and item row, row 0 all zeros; at least one. The item
            row itself is a feature only if it is listed.
        splits: `train` and optionally `valid`; all with the same context features.
        vocab_sizes: rows of the embedding table of each item and context feature.

    Raises:
        DataError: a code outside its vocabulary, a history that is not the user's, no samples,
            or `out` exists.
    """
    columns = {name: _sample_columns(name, rows, history_start) for name, rows in splits.items()}
    context = list(splits["train"].context)
    _check_codes(item_features, vocab_sizes, "item")
    for name, rows in splits.items():
        if list(rows.context) != context:
            raise DataError(f"split {name!r} has context features {list(rows.context)}")
        _check_codes(rows.context, vocab_sizes, name)
    items = len(next(iter(item_features.values())))
    for name, values in [("histories", history_item)] + [
        (name, rows.item) for name, rows in splits.items()
    ]:
        if len(values) and not (values.min() > 0 and values.max() < items):
            raise DataError(f"{name}: item rows must lie between 1 and {items - 1}")

    with new_folder(out) as folder:
        user_info = _user_info(history_start, history_item)
        pq.write_table(user_info, folder / "user_info.parquet")
        item_info = pa.table({"item_index": np.arange(items), **_wide(item_features)})
        pq.write_table(item_info, folder / "item_info.parquet")
        for name, table in columns.items():
            pq.write_table(pa.table(table), folder / f"{name}.parquet")
        grouped = any(rows.group is not None for rows in splits.values())
        hidden = [*POINTERS, GROUP] if grouped else list(POINTERS)
        feature_map = _feature_map(hidden, context, list(item_features), vocab_sizes)
        text = json.dumps(feature_map, indent=2)
        (folder / "feature_map.json").write_text(text, encoding="utf-8")


def _sample_columns(name: str, rows: Rows, history_start: Ints) -> dict[str, Ints]:
    if not len(rows.label):
        raise DataError(f"split {name!r} has no samples")
    users = len(history_start) - 1
    # A user without events points at one more, empty history.
    user = np.where(rows.user < 0, users, rows.user).astype(np.int64)
    start = _with_nobody(history_start)
    length = np.where(user == users, 0, rows.end - start[user])
    wrong = np.flatnonzero((length < 0) | (length > start[user + 1] - start[user]))
    if len(wrong):
        raise DataError(f"split {name!r}, row {wrong[0]}: the history end is not the user's")
    pointers = dict(zip(POINTERS, (user, rows.item, length), strict=True))
    group = {} if rows.group is None else {GROUP: rows.group}
    # FuxiCTR stacks all columns into one array: a single float column would turn the indices
    # into floats and break its gather.
    return _wide({**pointers, **rows.context, **group, "label": rows.label})


def _wide(columns: Mapping[str, Ints]) -> dict[str, Ints]:
    return {name: np.asarray(values).astype(np.int64) for name, values in columns.items()}


def _check_codes(columns: Mapping[str, Ints], vocab_sizes: Mapping[str, int], where: str) -> None:
    for name, codes in columns.items():
        if name not in vocab_sizes:
            raise DataError(f"feature {name!r} has no vocabulary size")
        if len(codes) and not (codes.min() >= 0 and codes.max() < vocab_sizes[name]):
            raise DataError(f"{where}: a code of {name!r} is not below {vocab_sizes[name]}")


def _with_nobody(start: Ints) -> Ints:
    """`start` with an empty history behind the last user."""
    return np.append(start, start[-1:]).astype(np.int64)


def _user_info(start: Ints, item: Ints) -> pa.Table:
    sequences = pa.LargeListArray.from_arrays(_with_nobody(start), pa.array(item, pa.int64()))
    return pa.table({"user_index": np.arange(len(sequences)), "full_item_seq": sequences})


def _feature_map(
    hidden: list[str],
    context: list[str],
    item_features: list[str],
    vocab_sizes: Mapping[str, int],
) -> dict[str, Any]:
    """The description FuxiCTR's own preprocessing would write for already encoded features."""
    features: list[dict[str, Any]] = [{name: {"type": "meta"}} for name in hidden]
    for source, names in (("", context), ("item", item_features)):
        for name in names:
            features.append(
                {
                    name: {
                        "source": source,
                        "type": "categorical",
                        "padding_idx": 0,
                        "vocab_size": vocab_sizes[name],
                    }
                }
            )
    fields = context + item_features
    return {
        "dataset_id": DATASET_ID,
        "num_fields": len(fields),
        "total_features": sum(vocab_sizes[name] for name in fields),
        "input_length": len(fields) + len(hidden),
        "labels": ["label"],
        "features": features,
    }
