"""Reading batches by random access from mapped columns beside reading them through Ray Data.

Both gather histories with the same collator. Ray Data streams the impressions' pointers from
Parquet through its own shuffle; it gives no way back to the middle of an epoch.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.equal_data import FEATURES
from raysys.data.batch import Batch, Collator, Pointers, pad_rows
from raysys.data.dataset import Dataset
from raysys.data.features import fit_features
from raysys.data.prepared import Prepared, prepare
from raysys.data.sampling import ImpressionLoader
from raysys.dist import ensure_ray


def mapped(data: Prepared, collator: Collator, impressions: int) -> Iterator[Batch]:
    """One epoch by random access."""
    loader = ImpressionLoader(data, collator, batch_size=impressions, seed=0)
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(0, step)
        assert batch is not None
        yield batch


def streamed(data: Prepared, collator: Collator, impressions: int, folder: Path) -> Iterator[Batch]:
    """One epoch through Ray Data, shuffled within a buffer of ten batches."""
    import ray.data  # Ray reads its authentication mode when it is imported

    dataset = ray.data.read_parquet(str(folder))
    for part in dataset.iter_batches(
        batch_size=impressions,
        batch_format="numpy",
        local_shuffle_buffer_size=10 * impressions,
        local_shuffle_seed=0,
    ):
        counts = np.array([len(row) for row in part["item"]])
        clicks = pad_rows(np.concatenate(part["click"]).astype(np.float32), counts)
        yield collator(
            Pointers(
                start=part["start"],
                end=part["end"],
                ts=part["ts"],
                context=np.stack(part["context"]),
                codec=data.codec,
                candidates=pad_rows(np.concatenate(part["item"]).astype(np.int64), counts),
                clicks=clicks,
                orders=np.zeros_like(clicks),
            )
        )


def write_pointers(data: Prepared, folder: Path) -> None:
    """The training impressions as one Parquet file of pointers."""
    rows = data.impressions
    chosen = rows.of("train")
    flat = rows.rows(chosen)
    offsets = np.concatenate([[0], np.cumsum(np.diff(rows.offsets)[chosen])]).astype(np.int32)
    lists = pa.ListArray.from_arrays
    context = rows.context[chosen]
    widths = np.arange(len(chosen) + 1, dtype=np.int32) * context.shape[1]
    columns = {name: getattr(rows, name)[chosen] for name in ("start", "end", "ts")}
    table = pa.table(
        {
            **columns,
            "context": lists(widths, context.reshape(-1)),
            "item": lists(offsets, rows.item[flat]),
            "click": lists(offsets, rows.click[flat]),
        }
    )
    pq.write_table(table, folder / "part-00000.parquet")


def speed(batches: Iterator[Batch]) -> float:
    """Rows per second after the first batch."""
    next(batches)
    begin, rows = time.perf_counter(), 0
    for batch in batches:
        rows += int(batch.candidate_mask.sum())
    return rows / (time.perf_counter() - begin)


def main() -> None:
    """DATA IMPRESSIONS LENGTH: print rows per second of both as one JSON line."""
    data, impressions, length = prepare(Dataset(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    collator = Collator(data.histories, fit_features(data, FEATURES).contexts, length)
    with tempfile.TemporaryDirectory() as scratch:
        write_pointers(data, Path(scratch))
        figures = {"mapped": speed(mapped(data, collator, impressions))}
        ensure_ray()
        figures["ray_data"] = speed(streamed(data, collator, impressions, Path(scratch)))
    print(json.dumps({"samples_per_s": figures}))
