"""Batch scoring: a file of requests to one row per candidate, in parts, through the Predictor.

Parts are of fixed size, so the same command submitted again keeps the parts that are there and
makes the missing ones. The whole file is validated before anything is written.

OUT/_plan.json    what the parts belong to: model, requests, part size
OUT/part-NNNNN.parquet
OUT/_report.json  counts, written last

Readers of a Parquet folder pass over names that begin with an underscore.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import read_config, read_fit, verify_run
from raysys.data.dataset import part_name
from raysys.data.files import sha256_file, write_text
from raysys.data.mapping import Mapper
from raysys.errors import ConfigError
from raysys.recipes.request_file import RequestSlice, cut, read

REQUESTS_PER_PART = 4_000
_PLAN = "_plan.json"
_REPORT = "_report.json"


class ScoreReport(BaseModel):
    """What a batch came to. kept: parts found complete; unknown: see `Predictor`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    model_id: str
    data_card_id: str
    requests: int
    rows: int
    parts: int
    kept: int
    unknown: dict[str, int]


@dataclass(frozen=True)
class Task:
    """One part: a slice of the request file, and the file it becomes."""

    run: Path
    requests: RequestSlice
    target: Path


def score(
    run: Path,
    requests: Path,
    out: Path,
    mapper: Mapper,
    *,
    per_part: int = REQUESTS_PER_PART,
) -> ScoreReport:
    """Score every request of a .jsonl or .parquet file into OUT/part-NNNNN.parquet.

    Rows: request_id, item_id, score, p_click, p_order, in request and candidate order. Histories
    come with the requests (JSONL only) or from the run's snapshot.

    Raises:
        ArtifactError: the run folder is unfinished or damaged, or gave a non-finite score.
        DataError: a malformed request, named by its line or row.
        ConfigError: `out` holds the parts of another run or other requests.
    """
    run, requests, out = run.resolve(), requests.resolve(), out.resolve()
    verify_run(run)
    config = read_config(run)
    slices = cut(requests, per_part, read_fit(run))
    tasks = [Task(run, part, out / part_name(index)) for index, part in enumerate(slices)]
    plan: dict[str, str | int] = {
        "model_id": config.model_id,
        "requests": sha256_file(requests),
        "requests_per_part": per_part,
    }
    unknown: Counter[str] = Counter()
    with _claimed(out, plan):
        missing = [task for task in tasks if not task.target.is_file()]
        for counted in mapper(score_part, missing, label="scoring"):
            unknown.update(counted)
    rows = sum(pq.read_metadata(task.target).num_rows for task in tasks)
    report = ScoreReport(
        out=str(out),
        model_id=config.model_id,
        data_card_id=config.data_card_id,
        requests=sum(part.count for part in slices),
        rows=rows,
        parts=len(tasks),
        kept=len(tasks) - len(missing),
        unknown=dict(unknown),
    )
    write_text(out / _REPORT, report.model_dump_json(indent=1) + "\n")
    return report


def score_part(task: Task) -> dict[str, int]:
    """Score one part and write it under its name; returns how much was unknown, see `Predictor`."""
    predictor = _predictor(task.run)
    before = Counter(predictor.unknown)
    scores = predictor.score(read(task.requests, predictor.fit))
    target = task.target
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            pq.write_table(scores, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return dict(Counter(predictor.unknown) - before)


@lru_cache(maxsize=1)
def _predictor(run: Path) -> Predictor:
    """Loaded once per worker process."""
    return Predictor.load(run)


@contextmanager
def _claimed(out: Path, plan: dict[str, str | int]) -> Iterator[None]:
    """`out`, made, or begun with the same run and requests.

    An error in the block that comes before the first part leaves `out` as it was found.
    """
    path = out / _PLAN
    found = out.exists()
    begun = path.is_file()
    if begun:
        if json.loads(path.read_text(encoding="utf-8")) != plan:
            raise ConfigError(
                f"{out} holds scores of another run, other requests or another part size; "
                "choose another --out"
            )
    elif found and any(out.iterdir()):
        raise ConfigError(f"{out} exists and holds no scores; choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(plan, indent=1) + "\n")
    try:
        yield
    except BaseException:
        if not begun and not any(out.glob("part-*")):
            path.unlink(missing_ok=True)
            if not found:  # a worker that is not done yet may still write
                shutil.rmtree(out, ignore_errors=True)
        raise
