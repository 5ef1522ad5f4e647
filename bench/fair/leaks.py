"""Leak tests of a study: the suite on one arm, which is also trained again on shuffled labels."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.fair.arms import Arm, Point
from bench.fair.cell import Cell, scores_of
from bench.fair.study import Study, train_all
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.prepared import Prepared
from raysys.metrics.blocks import Floats
from raysys.metrics.leaks import Finding
from raysys.metrics.suite import Training, run_suite
from raysys.recipes.evaluate import audit_of, group_key
from raysys.recipes.split_scorer import SplitScorer

Ints = npt.NDArray[np.int64]
_SHUFFLES = 5


def leaks_of(
    name: str,
    arms: Sequence[Arm],
    base: dict[str, Any],
    data: Prepared,
    study: Study,
    out: Path,
    users: int,
    scores: Mapping[str, Floats],
) -> dict[str, Any]:
    """By test, what `leak_tests` finds on the arm `name`; the oracle is no feature to scan."""
    arm = next(arm for arm in arms if arm.name == name)
    rules = {rule: values for rule, values in scores.items() if rule != "oracle"}
    found = leak_tests(arm, base, data, study, out, users, rules)
    return {finding.test: finding.model_dump(exclude={"test"}) for finding in found}


def leak_tests(
    arm: Arm,
    base: dict[str, Any],
    data: Prepared,
    study: Study,
    out: Path,
    users: int,
    scores: Mapping[str, Floats],
) -> list[Finding]:
    """What the suite finds on the arm's run with seed 0.

    out: the study's folder; what is trained again is kept below it, as large as in tuning.
    scores: [N] of the cheap baselines on the test rows.
    """
    scorer = SplitScorer.of(
        str(out / "runs" / arm.name / "seed-0"), data, "test", lambda n: None, users
    )
    log = data.impressions
    rows = log.rows(np.sort(np.concatenate([log.of("train"), log.of("valid")])))
    labels = (log.click[rows] + log.order[rows]).astype(np.int64)

    numbers = itertools.count()

    def again(shuffled: npt.ArrayLike) -> Floats:
        number = next(numbers)
        folder = out / "shuffled" / f"data-{number}"
        if not folder.is_dir():
            write_labels(data.dataset, folder, np.asarray(shuffled))
        given: Point = {**study.tuning_size, "data": str(folder)}
        # Each with weights of its own: all of them begun alike would lean to the side to which
        # these happen to rank before they learn.
        config = arm.config(base, study.chosen[arm.name], number, given)
        cell = Cell(out / "shuffled" / f"{arm.name}-{number}", config, "test", users)
        train_all([cell], "shuffled labels")
        return scores_of(cell).score

    # Slates hold several clicks: how many would survive a shuffle within them.
    # One model may find a direction by chance, and where taste is strong it then ranks far from
    # 0.5 either way; a leak leads every shuffle to the same side.
    training = Training(
        again, labels, np.arange(len(labels)), repeats=_SHUFFLES, within_groups=False
    )
    audit = replace(audit_of(data, scorer, dict(scores)), training=training)
    return run_suite(scorer.rows, group_key(data), audit)


def write_labels(data: Dataset, out: Path, labels: Ints) -> None:
    """The data set with other labels in its training and validation parts, in `out`.

    labels [M], a row per candidate of these parts in table order: 0 nothing, 1 a click, 2 a click
    and an order.
    """
    manifest = data.manifest
    card = data.card.model_copy(update={"label_rule": f"{data.card.label_rule}; shuffled"})
    done = 0
    with DatasetWriter(out, contexts=dict(manifest.contexts)) as writer:
        for name in manifest.tables:
            for part in data.parts(name):
                if name == "impressions":
                    count = int(_rows(part)[1].sum())
                    part = _labelled(part, labels[done : done + count])
                    done += count
                writer.write(name, part)
        assert done == len(labels)
        writer.commit(
            card,
            history_behaviours=manifest.history_behaviours,
            kind=manifest.kind,
            candidates=manifest.candidates,
        )


def _rows(part: pa.Table) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Of an impressions table with N candidates: their impression [N]; whether to label them."""
    counts = part["candidates"].combine_chunks().value_lengths().to_numpy()
    owner = np.repeat(np.arange(len(part)), counts)
    asked = np.isin(part["split"].to_numpy(zero_copy_only=False).astype(str), ("train", "valid"))
    return owner, asked[owner]


def _labelled(part: pa.Table, labels: Ints) -> pa.Table:
    owner, asked = _rows(part)
    items = part["candidates"].combine_chunks().flatten()
    flat = np.zeros(len(owner), np.int64)
    flat[asked] = labels
    kept = np.repeat(False, len(part))
    kept[owner[asked]] = True
    for name, least in (("clicks", 1), ("orders", 2)):
        chosen = flat >= least
        offsets = np.searchsorted(owner[chosen], np.arange(len(part) + 1)).astype(np.int32)
        made = pa.ListArray.from_arrays(pa.array(offsets), items.filter(pa.array(chosen)))
        old = part[name].combine_chunks()
        # What is not labelled anew keeps its own.
        both = pa.chunked_array([made, old])
        row = np.arange(len(part))
        place = part.column_names.index(name)
        part = part.set_column(
            place, name, both.take(pa.array(np.where(kept, row, row + len(row))))
        )
    return part
