"""One training of HomoDistil's fair test, and what its student is worth."""

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.fair.kept import Record, read_record, write_record
from raysys.data.dataset import Dataset
from raysys.homodistil.probes import agreement, retrieval
from raysys.llm.backbones import open_backbone
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.recipes.homodistil import HomoDistilRecipe
from raysys.recipes.registry import run as train
from raysys.tracking.metrics_log import METRICS_LOG, read_records

PROBED = 300  # documents of a part


class Trained(Record):
    """metrics: of the run. probes: of its vectors. seconds: of one core, in the last call. wall: of
    the training loop, all calls."""

    metrics: dict[str, Any]
    probes: dict[str, float]
    seconds: float
    wall: float


@dataclass(frozen=True)
class Cell:
    """folder: of the run. probed: the part by which its vectors are looked at, if they are."""

    folder: Path
    config: HomoDistilRecipe
    probed: Literal["valid", "test"] | None

    def finished(self) -> Trained | None:
        """What an earlier call left here, if it came to the end.

        Raises:
            ConfigError: see `read_record`.
        """
        return read_record(self.folder, Trained, self._sha256())

    def _sha256(self) -> str:
        told = self.config.model_dump_json(context={"identity": True})
        data = Dataset(self.config.data).manifest.hash
        return hashlib.sha256(f"{told} {data} {self.probed}".encode()).hexdigest()


def run_cell(cell: Cell) -> Trained:
    """Train and probe, or go on where an earlier call stopped; the record is written last."""
    begin = time.process_time()
    result: dict[str, Any] = train(cell.config, cell.folder, show_progress=False).result
    seconds = time.process_time() - begin
    probes: dict[str, float] = {}
    if cell.probed:
        student = f"dir:{cell.folder / 'hf'}"
        probes = probe(student, cell.config.teacher, cell.config.data, cell.probed)
    done = Trained(
        config_sha256=cell._sha256(),
        metrics=result["metrics"],
        probes=probes,
        seconds=seconds,
        wall=read_records(cell.folder / METRICS_LOG)[-1]["seconds"],
    )
    write_record(cell.folder, done)
    # Many runs lie side by side; what is only needed to go on takes the most room.
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
    return done


def probe(student: str, teacher: str, data: str, part: str = "test") -> dict[str, float]:
    """Titles that find their texts among those of a part (r@1, mrr), and Spearman of the cosines
    with the teacher's."""
    documents = Dataset(data).table("documents", ["split", "title", "text"]).to_pylist()
    test = [row for row in documents if row["split"] == part]
    titled = [row for row in test if row["title"]][:PROBED]
    encoder = _encoder(student)
    found: dict[str, float] = {}
    if titled:
        titles, texts = ([row[name] for row in titled] for name in ("title", "text"))
        asked = retrieval(titles, texts, encoder)
        found = {"r@1": asked["r@1"], "mrr": asked["mrr"]}
    texts = [row["text"] for row in test[:PROBED]]
    own, other = (np.asarray(encode(texts)) for encode in (encoder, _encoder(teacher)))
    found["spearman"] = agreement(own, other)
    return found


def _encoder(spec: str) -> TextEncoder:
    longest = min(128, open_backbone(spec).max_positions or 128)
    return TextEncoder(EncoderSpec(backbone=spec, max_tokens=longest))


def texts_per_s(
    encoders: Mapping[str, TextEncoder], texts: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """Texts a second of each encoder by round; they take turns, and the first round warms up."""
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(rounds + 1):
        for name, encoder in encoders.items():
            begin = time.perf_counter()
            encoder(list(texts))
            if turn:
                rates[name].append(len(texts) / (time.perf_counter() - begin))
    return rates
