"""One step of HKFR's fair test: an arm tried or trained with a seed; its record is written last."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from bench.fair.kept import Record, read_record, write_record
from bench.hkfr_arms import HEURISTICS, SEQUENCES, Arm, Text, language_arms
from bench.hkfr_data import Study, instructions, questions, swapped, texts
from bench.hkfr_lm import ask, pretrain, tune
from raysys.data.dataset import Dataset
from raysys.hkfr.next_task import full_ranking
from raysys.hkfr.rivals.arms import rivals, tuned
from raysys.hkfr.rivals.neural import SequenceConfig
from raysys.llm.parts import replaced
from raysys.metrics.blocks import Floats

METRICS = ("hr@5~full", "hr@10~full", "ndcg@5", "ndcg@10")
_VALUES = "values.parquet"
Settings = dict[str, Any]


class Done(Record):
    """settings: chosen or given. value: NDCG@10 on validation. seconds: of one core, of which
    scoring: asking the test questions."""

    settings: Settings
    value: float | None = None
    seconds: float
    scoring: float = 0.0


class Cell(BaseModel):
    """root: of the study. step: try settings on validation, or test a seed; texts: what prompts
    say; base: the pretrained model. samples: training questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    study: Study
    step: Literal["texts", "base", "try", "test"]
    arm: str = ""
    settings: Settings = {}
    seed: int = 0
    samples: int = 0

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        place = {
            "texts": self.arm,
            "base": "",
            "try": f"{self.arm}/" + "-".join(map(str, self.settings.values())),
            "test": f"{self.arm}/seed-{self.seed}",
        }[self.step]
        return self.root / self.step / place.replace(" ", "-").replace("'", "")

    def finished(self) -> Done | None:
        """What an earlier call left here, if it came to the end.

        Raises:
            ConfigError: see `read_record`.
        """
        return read_record(self.folder, Done, self.sha256())

    def sha256(self) -> str:
        """Of all that its outcome depends on; where files lie is not of it."""
        told = self.model_dump(mode="json", exclude={"root": True, "study": {"data", "fused"}})
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        digest.update(Dataset(self.study.data).manifest.hash.encode())
        if self.study.fused is not None:
            for manifest in sorted(Path(self.study.fused).glob("date=*/manifest.json")):
                digest.update(manifest.read_bytes())
        return digest.hexdigest()

    def values(self) -> dict[str, Floats]:
        """METRICS of each test question [Q]."""
        table = pq.read_table(self.folder / _VALUES)
        return {name: table[name].to_numpy() for name in METRICS}


def run_cell(cell: Cell) -> Done:
    """Do it, or go on where an earlier call stopped."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    begin = time.process_time()
    match cell.step:
        case "texts":
            _write_texts(cell)
            found: Settings = {}
        case "base":
            _pretrained(cell)
            found = {}
        case _ if cell.arm in (*HEURISTICS, *SEQUENCES):
            found = _rival(cell)
        case _:
            found = _language(cell)
    seconds = time.process_time() - begin
    told = {"settings": cell.settings, "seconds": seconds, **found}
    done = Done(config_sha256=cell.sha256(), **told)
    write_record(cell.folder, done)
    # Many runs lie side by side; of most of it nothing is needed any more.
    for part in ("checkpoints", "fresh", "samples", "run/checkpoints"):
        shutil.rmtree(cell.folder / part, ignore_errors=True)
    return done


def _rival(cell: Cell) -> Settings:
    study, asked = cell.study, questions(cell.study)
    rival = rivals(study.area, SequenceConfig(length=study.events))[cell.arm]
    train, valid = asked.of("train", cell.samples), asked.of("valid")
    if cell.step == "try":
        best = tuned(rival, train, valid, cell.seed)
        return {"settings": best.settings, "value": best.value}
    ranker = rival.build(**cell.settings)
    ranker.fit(train, valid, cell.seed)
    begin = time.process_time()
    _keep(cell, ranker.scores(asked.of("test")))
    return {"scoring": time.process_time() - begin}


def _language(cell: Cell) -> Settings:
    study, asked = cell.study, questions(cell.study)
    arm = language_arms(fused=True)[cell.arm]
    told = _read_texts(cell, arm.text)
    if arm.placebo == "knowledge":
        told = [told[row] for row in swapped(asked, cell.seed)]
    found: Settings = {}
    if arm.weights == "own":
        found["value"] = tune(
            study, asked, told, instructions(asked, study.task.target, cell.seed),
            answers(cell, arm), cell.root / "base" / "hf", cell.folder,
            samples=cell.samples, lr=cell.settings["lr"], seed=cell.seed,
        )  # fmt: skip
    if cell.step == "test":
        begin = time.process_time()
        rows = asked.rows("test").tolist()
        plain = instructions(asked, study.task.target)
        # An empty line in its place: a prompt is never without a token.
        wordings = [plain[row] if arm.instructed else "\n" for row in rows]
        _keep(cell, ask(study, _weights(cell, arm), [told[r] for r in rows], wordings, asked.names))
        found["scoring"] = time.process_time() - begin
    return found


def answers(cell: Cell, arm: Arm) -> list[str]:
    """[Q] names; those of training permuted for the placebo, "" where none is right."""
    asked = questions(cell.study)
    target = asked.task.target.copy()
    if arm.placebo == "labels":
        rows = asked.rows("train")
        target[rows] = np.random.default_rng(cell.seed).permutation(target[rows])
    return [asked.names[place] if place >= 0 else "" for place in target.tolist()]


def _weights(cell: Cell, arm: Arm) -> Path:
    if arm.weights == "base":
        return cell.root / "base" / "hf"
    owner = cell if arm.weights == "own" else cell.model_copy(update={"arm": arm.weights})
    return owner.folder / "run" / "hf"


def _keep(cell: Cell, scores: Floats) -> None:
    target = questions(cell.study).of("test").target
    with replaced(cell.folder / _VALUES) as scratch:
        pq.write_table(pa.table(full_ranking(scores, target)), scratch)


def _write_texts(cell: Cell) -> None:
    kind: Any = cell.arm
    with replaced(cell.folder / "texts.parquet") as scratch:
        pq.write_table(pa.table({"text": texts(cell.study, kind)}), scratch, compression="zstd")


def _read_texts(cell: Cell, kind: Text) -> list[str]:
    if kind == "nothing":
        return texts(cell.study, kind)
    found: list[str] = pq.read_table(cell.root / "texts" / kind / "texts.parquet")[0].to_pylist()
    return found


def _pretrained(cell: Cell) -> None:
    """On what any arm may say of the users of training questions."""
    rows = questions(cell.study).rows("train").tolist()
    kinds = sorted(path.parent.name for path in (cell.root / "texts").glob("*/texts.parquet"))
    every: list[str] = []
    for kind in kinds:
        told = _read_texts(cell, kind)  # type: ignore[arg-type]
        every += [told[row] for row in rows]
    pretrain(cell.study, list(dict.fromkeys(every)), cell.folder)
