"""One training of a study: a run folder, its validation and, where asked for, its test scores."""

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fair.kept import Record, read_record, write_record
from raysys.data.dataset import Dataset
from raysys.data.prepared import prepare
from raysys.metrics import ScoredRows
from raysys.recipes.ranker import RankerRecipe
from raysys.recipes.registry import run as train
from raysys.recipes.split_scorer import SplitScorer


class Trained(Record):
    """validation: the recipe's headline there. seconds: of one core, for training and scoring."""

    validation: float
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Cell:
    """folder: of the run. split: scored after training, None: nothing is. users: whose rows."""

    folder: Path
    config: RankerRecipe
    split: str | None = None
    users: int | None = None

    @property
    def scores(self) -> Path:
        """Where the scores are."""
        return self.folder / "scores" / f"{self.split}.parquet"

    def finished(self) -> Trained | None:
        """What an earlier call left here, if it came to the end.

        Raises:
            ConfigError: see `read_record`.
        """
        return read_record(self.folder, Trained, self._sha256())

    def _sha256(self) -> str:
        told = self.config.model_dump_json(context={"identity": True})
        data = Dataset(self.config.data).manifest.hash
        return hashlib.sha256(f"{told} {data} {self.split} {self.users}".encode()).hexdigest()


def run_cell(cell: Cell) -> Trained:
    """Train and score, or go on where an earlier call stopped; the record is written last."""
    begin = time.process_time()
    result: dict[str, Any] = train(cell.config, cell.folder, show_progress=False).result
    if cell.split is not None:
        data = prepare(Dataset(cell.config.data))
        scorer = SplitScorer.of(str(cell.folder), data, cell.split, lambda n: None, cell.users)
        scorer.rows.write_parquet(cell.scores)
    seconds = time.process_time() - begin
    done = Trained(
        config_sha256=cell._sha256(),
        validation=result["validation"]["gauc"],
        epochs=result["epochs"],
        seconds=seconds,
    )
    write_record(cell.folder, done)
    # Many runs lie side by side; what is only needed to go on takes the most room.
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
    return done


def scores_of(cell: Cell) -> ScoredRows:
    """The test scores of a finished cell."""
    return ScoredRows.read_parquet(cell.scores)
