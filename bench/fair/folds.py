"""One study over the folds of one log: each fold is tuned and trained by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fair.arms import Arm
from bench.fair.results import Scores
from bench.fair.study import Sizes, Study, merged
from raysys.data.prepared import Prepared


@dataclass(frozen=True)
class Fold:
    """One folder of a study, trained and scored.

    base: the config its arms have in common; arms: all there are, `study` may hold fewer; scores:
    of the cheap baselines on its test rows.
    """

    data: Prepared
    where: Path
    base: dict[str, Any]
    arms: list[Arm]
    study: Study
    scores: Scores

    def runs(self, arm: str) -> list[Path]:
        """The run folders of an arm, one a seed."""
        return [self.where / "runs" / arm / f"seed-{s}" for s in self.study.systems[arm].rows]


Train = Callable[[str, Path, Sizes], Fold]  # from a data set folder, where to keep it, how much


@dataclass(frozen=True)
class Folds:
    """The folds by name; a single one has none."""

    by_name: dict[str, Fold]

    @property
    def first(self) -> Fold:
        """The one by which what concerns all is looked up."""
        return next(iter(self.by_name.values()))

    @property
    def study(self) -> Study:
        """All of them as one."""
        return merged({name: fold.study for name, fold in self.by_name.items()})

    @property
    def scores(self) -> dict[str, Scores]:
        """Of the cheap baselines, by fold."""
        return {name: fold.scores for name, fold in self.by_name.items()}


def run_folds(train: Train, folders: str, where: Path, sizes: Sizes) -> Folds:
    """Train every fold.

    folders: data set folders, parted by commas. sizes: of each fold, but for the core hours, which
    the folds share.
    """
    each = folders.split(",")
    names = [f"fold-{n}" for n in range(len(each))] if len(each) > 1 else [""]
    share = sizes.model_copy(update={"max_core_hours": sizes.max_core_hours / len(each)})
    return Folds(
        {n: train(folder, where / n, share) for n, folder in zip(names, each, strict=True)}
    )
