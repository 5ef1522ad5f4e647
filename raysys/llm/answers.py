"""A generation job: rows of a file to a folder of Parquet parts, resumed where it was killed.

OUT/_job.json                      what the job is; another one is refused in its place
OUT/part-BEGIN-END.parquet         answers to rows BEGIN to END (exclusive) of the input
OUT/.lock                          held by the one writer
"""

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from raysys.data.files import full_disk, write_text
from raysys.data.manifest import canonical_json
from raysys.errors import DataError, ResumeError
from raysys.llm.adapters import adapter_sha256
from raysys.llm.backbones import open_backbone
from raysys.llm.engine import Engine, GenerateSpec, Resources, generate
from raysys.llm.engine.generate import Answer
from raysys.llm.progress import TextProgress
from raysys.llm.rows import PromptRows

JOB = "_job.json"
# A part is committed when it has this many rows or its first one is this old.
ROWS_PER_PART = 4096
SECONDS_PER_PART = 60.0
_PART = re.compile(r"part-(\d{12})-(\d{12})\.parquet")

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("error", pa.string()),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("new_tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("finished", pa.bool_(), nullable=False),
    ]
)


class GenerateReport(BaseModel):
    """What a job did.

    rows: of the input; resumed: of these, answered by an earlier run; failed, truncated: of all
    rows, without an answer and with a cut prompt; new_tokens: generated in this run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    rows: int
    resumed: int
    llm_calls: int
    failed: int
    truncated: int
    new_tokens: int
    seconds: float


def generate_rows(
    rows: PromptRows,
    out: Path | str,
    spec: GenerateSpec,
    *,
    engine: Engine = "auto",
    resources: Resources | None = None,
    rows_per_part: int = ROWS_PER_PART,
    seconds_per_part: float = SECONDS_PER_PART,
) -> GenerateReport:
    """Answer every row's prompt into the folder `out`; goes on where an earlier run ended.

    Raises:
        ResumeError: `out` holds another job's answers.
        DataError: another process is writing there, or parts are missing.
        ConfigError, ArtifactError, RaysysError: as `generate`.
    """
    started = time.monotonic()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    total = len(rows.prompts)
    try:
        with FileLock(out / ".lock", timeout=0):
            _claim(out, _job(rows, spec))
            done = _committed(out)
            if done < total:
                _answer(rows, out, spec, done, engine, resources, rows_per_part, seconds_per_part)
            written = answers(out)
    except Timeout as error:
        raise DataError(f"{out}: another process is writing there; wait for it to end") from error
    new = written.slice(done)
    return GenerateReport(
        out=str(out),
        rows=total,
        resumed=done,
        llm_calls=sum(tokens > 0 for tokens in new["new_tokens"].to_pylist()),
        failed=len(written) - written["error"].null_count,
        truncated=sum(written["truncated"].to_pylist()),
        new_tokens=sum(new["new_tokens"].to_pylist()),
        seconds=round(time.monotonic() - started, 3),
    )


def answers(out: Path | str) -> pa.Table:
    """All answers in the folder `out`, in the order of their rows.

    Raises:
        DataError: parts are missing or damaged.
    """
    out = Path(out)
    _committed(out)
    try:
        tables = [pq.ParquetFile(path).read() for path, _, _ in _parts(out)]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{out}: a part is damaged ({error}); delete it and those after it and run again"
        ) from error
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def _answer(
    rows: PromptRows,
    out: Path,
    spec: GenerateSpec,
    done: int,
    engine: Engine,
    resources: Resources | None,
    rows_per_part: int,
    seconds_per_part: float,
) -> None:
    total = len(rows.prompts)
    pending: list[Answer] = []
    begin, opened = done, time.monotonic()
    chunks = generate(spec, rows.prompts[done:], first_row=done, engine=engine, resources=resources)
    with TextProgress(out.name, total, verb="generate", done=done) as progress:
        try:
            for chunk in chunks:
                pending += chunk
                old = time.monotonic() - opened >= seconds_per_part
                if old or len(pending) >= rows_per_part:
                    begin = _commit(out, begin, pending, rows.ids)
                    pending, opened = [], time.monotonic()
                progress.update(begin + len(pending))
        finally:
            # Also what a dying engine, or a user who interrupts, leaves behind.
            begin = _commit(out, begin, pending, rows.ids)
    if begin != total:
        raise DataError(f"{out}: the engine gave {begin} answers of {total}")


def _commit(out: Path, begin: int, given: list[Answer], ids: list[str | None] | None) -> int:
    """Write one part, which is there as a whole or not at all; the row that follows it."""
    if not given:
        return begin
    end = begin + len(given)
    columns: dict[str, Any] = {
        name: [getattr(answer, name) for answer in given] for name in SCHEMA.names[2:]
    }
    columns |= {"row": range(begin, end), "id": ids[begin:end] if ids else [None] * len(given)}
    table = pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
    temporary = out / ".part.tmp"
    message = (
        f"no space left on the disk of {out}: the parts committed so far are kept; free some "
        "space and run the same command again"
    )
    with full_disk(message):
        try:
            pq.write_table(table, temporary, compression="zstd")
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, out / f"part-{begin:012d}-{end:012d}.parquet")
        finally:
            temporary.unlink(missing_ok=True)
    return end


def _parts(out: Path) -> list[tuple[Path, int, int]]:
    found = [(path, _PART.fullmatch(path.name)) for path in sorted(out.glob("part-*.parquet"))]
    return [(path, int(match[1]), int(match[2])) for path, match in found if match]


def _committed(out: Path) -> int:
    """Rows answered so far."""
    done = 0
    for path, begin, end in _parts(out):
        if begin != done:
            raise DataError(
                f"{out}: rows {done} to {begin} are missing before {path.name}; delete the parts "
                "from there on and run again"
            )
        done = end
    return done


def _job(rows: PromptRows, spec: GenerateSpec) -> dict[str, Any]:
    """All that an answer depends on beside its prompt, and which prompts."""
    asked = hashlib.sha256()
    for value in [*rows.prompts, *(rows.ids or [])]:
        asked.update(repr(value).encode("utf-8", "backslashreplace") + b"\n")
    return {
        **spec.model_dump(mode="json"),
        "adapter": adapter_sha256(spec.adapter) if spec.adapter else None,
        "weights": open_backbone(spec.backbone).sha256,
        "rows": len(rows.prompts),
        "prompts": asked.hexdigest(),
    }


def _claim(out: Path, job: dict[str, Any]) -> None:
    """Mark the folder as this job's."""
    file = out / JOB
    if not file.is_file():
        if _parts(out):
            raise DataError(f"{out}: it holds parts but no {JOB}; choose another --out")
        write_text(file, json.dumps(job, indent=2) + "\n")
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error}); choose another --out") from error
    if canonical_json(there) != canonical_json(job):
        other = [name for name in job if there.get(name) != job[name]]
        raise ResumeError(
            f"{out} holds the answers of a job with other {', '.join(other)}; choose another "
            "--out, or delete that folder"
        )
