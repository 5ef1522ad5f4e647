"""A frozen ranker as one `torch.export` program: runs wherever torch does, without raysys.

FILE.pt2        the program, catalogue inside; inputs and outputs by name
FILE.json       what it is, its inputs, and the vocabularies that turn a request into them
FILE.arrow      item_id -> row, in Arrow IPC

The program is opened with `torch.export.load` only. Its archive may hold pickled constants, so
open no file that you, or someone you trust, did not write; FILE.json has the sha256 of both.
"""

import copy
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from raysys.artifacts.ranker import Ranker
from raysys.artifacts.run import LoadedRun, load_run
from raysys.data.batch import Batch
from raysys.data.contexts import FIRST, ContextCodec
from raysys.data.files import fsync_tree, scratch_folder, sha256_file
from raysys.data.histories import Histories
from raysys.data.schema import BEHAVIOURS
from raysys.errors import ArtifactError

FORMAT = 1
TOLERANCE = 1e-5
# Axes of each input, and its dtype. Masks are not among them: a slot is real if its row is not 0.
INPUTS: dict[str, tuple[tuple[str, ...], torch.dtype]] = {
    "context": (("B", "F"), torch.int64),
    "history_items": (("B", "L"), torch.int64),
    "history_context": (("B", "L", "F"), torch.int64),
    "history_behaviour": (("B", "L"), torch.int64),
    "history_age_s": (("B", "L"), torch.float32),
    "history_length": (("B",), torch.int64),
    "candidates": (("B", "C"), torch.int64),
}
_DYNAMIC = ("B", "L", "C")
_MEANING = {
    "context": "codes of the request's context features, see contexts",
    "history_items": "rows of the items of past events, see events; 0 pads, 1 is unknown",
    "history_context": "codes of the context of each past event; 0 in padding",
    "history_behaviour": "place of the event's kind in behaviours; 0 in padding",
    "history_age_s": "seconds from the event to the request; 0 if unknown and in padding",
    "history_length": "number of past events before the choice of L",
    "candidates": "rows of the items to rank; 0 pads, 1 is unknown",
}


class Input(BaseModel):
    """One input of the program."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[str, ...]
    dtype: str
    meaning: str


class Exported(BaseModel):
    """`FILE.json`. Axes: B requests, L past events (at most `history_length`), C candidates, all
    of any size from 1; F context features.

    outputs are [B, C] float32 each: score to sort by, and p_click, p_order where the model gives
    probabilities; what they hold in padding means nothing. `events`: the L past events, newest
    first, are the newest of a history, or chosen from all of it by a selector that is not in the
    program (see `raysys.data.batch.Selector`), but the caller's business. `sizes` are the
    (B, L, C) on which the program as written and the run differ by at most `max_difference`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    model_id: str
    model: str
    data_card_id: str
    torch: str
    program_sha256: str
    items_sha256: str
    items: int
    history_length: int
    events: Literal["newest", "chosen"]
    inputs: dict[str, Input]
    outputs: tuple[str, ...]
    contexts: ContextCodec
    behaviours: tuple[str, ...] = BEHAVIOURS
    sizes: tuple[tuple[int, int, int], ...]
    max_difference: float


def export_run(run: Path | str, out: Path) -> Exported:
    """Write the ranker of a run folder as `out`, with its two companions.

    The program is compared with the run as it is loaded back from its own bytes, before
    anything appears under its name.

    Raises:
        ArtifactError: a damaged run, one that reads dated features, a name that does not end in
            .pt2, or scores that differ.
        StorageFullError: the disk is full; nothing is kept.
    """
    if out.suffix != ".pt2":
        raise ArtifactError(f"{out}: the name of an exported program ends in .pt2")
    loaded = load_run(run)
    if loaded.features.tables:
        raise ArtifactError(
            f"{run}: reads dated features of users, which a program cannot look up; "
            "score with raysys, or train without features.tables"
        )
    loaded.model.freeze()
    # torch.export.save ends the process on a full disk; a write of ours raises instead.
    archive = io.BytesIO()
    torch.export.save(_trace(loaded), archive)
    program, metadata, items = (out.with_suffix(end) for end in (".pt2", ".json", ".arrow"))
    with scratch_folder(out) as scratch:
        (scratch / program.name).write_bytes(archive.getvalue())
        outputs, difference = _compare(scratch / program.name, loaded)
        _write_items(scratch / items.name, loaded.catalogue.item_ids)
        exported = Exported(
            model_id=loaded.config.model_id,
            model=loaded.config.model,
            data_card_id=loaded.config.data_card_id,
            torch=torch.__version__,
            program_sha256=sha256_file(scratch / program.name),
            items_sha256=sha256_file(scratch / items.name),
            items=len(loaded.catalogue.item_ids),
            history_length=loaded.model.history_length,
            events=_events(loaded),
            inputs={
                name: Input(
                    shape=axes, dtype=str(dtype).removeprefix("torch."), meaning=_MEANING[name]
                )
                for name, (axes, dtype) in INPUTS.items()
            },
            outputs=outputs,
            contexts=loaded.features.contexts,
            sizes=tuple(_sizes(loaded.model.history_length)),
            max_difference=difference,
        )
        text = json.dumps(exported.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (scratch / metadata.name).write_text(text + "\n", encoding="utf-8")
        fsync_tree(scratch)
        for path in (program, items, metadata):
            os.replace(scratch / path.name, path)
    return exported


def check_export(run: Path | str, out: Path) -> Exported:
    """Compare an exported program that is there with its run; nothing is written.

    Raises:
        ArtifactError: a file is missing or damaged, belongs to another model, or scores differ.
    """
    metadata = out.with_suffix(".json")
    for path in (out, metadata, out.with_suffix(".arrow")):
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; export the run without --check first")
    try:
        exported = Exported.model_validate_json(metadata.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{metadata}: damaged or of another format ({error})") from error
    sums = {out: exported.program_sha256, out.with_suffix(".arrow"): exported.items_sha256}
    for path, digest in sums.items():
        if sha256_file(path) != digest:
            raise ArtifactError(f"{path}: its sha256 is not the one in {metadata}; export again")
    loaded = load_run(run)
    if exported.model_id != loaded.config.model_id:
        raise ArtifactError(
            f"{out} is model {exported.model_id}, {run} is {loaded.config.model_id}; export again"
        )
    loaded.model.freeze()
    return exported.model_copy(update={"max_difference": _compare(out, loaded)[1]})


def _events(run: LoadedRun) -> Literal["newest", "chosen"]:
    codec = run.features.contexts
    return (
        "newest" if run.model.collator(Histories.empty(codec), codec).selector is None else "chosen"
    )


class _ItemTable(nn.Module):
    """The frozen rows of an item encoder, without what they were made from."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.width = table.shape[1]
        self.table: Tensor
        self.register_buffer("table", table)

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.embedding(rows, self.table)


class _Program(nn.Module):
    """The ranker with the inputs and outputs of the exported program."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(
        self,
        context: Tensor,
        history_items: Tensor,
        history_context: Tensor,
        history_behaviour: Tensor,
        history_age_s: Tensor,
        history_length: Tensor,
        candidates: Tensor,
    ) -> dict[str, Tensor]:
        batch = Batch(
            context=context,
            history_items=history_items,
            history_mask=history_items != 0,
            history_context=history_context,
            history_behaviour=history_behaviour,
            history_age_s=history_age_s,
            history_length=history_length,
            candidates=candidates,
            candidate_mask=candidates != 0,
        )
        scores = self.ranker(batch)._asdict()
        return {name: values for name, values in scores.items() if values is not None}


def _trace(run: LoadedRun) -> ExportedProgram:
    assert run.model.items.table is not None
    ranker = copy.deepcopy(run.model)
    ranker.items = cast(Any, _ItemTable(run.model.items.table))
    sizes = {name: Dim(name, min=1) for name in _DYNAMIC}
    return torch.export.export(
        _Program(ranker),
        (),
        # Sizes that differ from each other and from 1, so that none is taken for a constant.
        _random_inputs(run, (3, 5, 7), np.random.default_rng(0)),
        dynamic_shapes={
            name: {i: sizes[axis] for i, axis in enumerate(axes) if axis in sizes}
            for name, (axes, _) in INPUTS.items()
        },
    )


def _sizes(length: int) -> Iterator[tuple[int, int, int]]:
    """(B, L, C) to compare on: a single cell, odd shapes, a usual batch, a long list."""
    yield from ((1, 1, 1), (2, length, 3), (7, (length + 1) // 2, 1), (32, length, 20), (1, 1, 500))


def _random_inputs(
    run: LoadedRun, size: tuple[int, int, int], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Requests with histories of 0..L events and 1..C candidates, unknown items among them."""
    batch, length, candidates = size
    items = FIRST + len(run.catalogue.item_ids)
    cardinalities = np.array(run.features.context_cardinalities, np.int64)
    past = rng.integers(0, length, batch, endpoint=True)
    real = np.arange(length) < past[:, None]
    shown = rng.integers(1, candidates, batch, endpoint=True)
    arrays = {
        "context": rng.integers(0, cardinalities, (batch, len(cardinalities))),
        "history_items": rng.integers(1, items, (batch, length)) * real,
        "history_context": rng.integers(0, cardinalities, (batch, length, len(cardinalities)))
        * real[..., None],
        "history_behaviour": rng.integers(0, len(BEHAVIOURS), (batch, length)) * real,
        "history_age_s": rng.exponential(1e5, (batch, length)) * real,
        "history_length": past,
        "candidates": rng.integers(1, items, (batch, candidates))
        * (np.arange(candidates) < shown[:, None]),
    }
    return {name: torch.from_numpy(a).to(INPUTS[name][1]) for name, a in arrays.items()}


def _compare(program: Path, run: LoadedRun) -> tuple[tuple[str, ...], float]:
    """Names of the outputs, and the largest difference between program and run.

    Raises:
        ArtifactError: a difference above `TOLERANCE`, or scores that are not finite.
    """
    opened = torch.export.load(program).module()
    eager = _Program(run.model)
    rng = np.random.default_rng(1)
    worst = 0.0
    names: tuple[str, ...] = ()
    for size in _sizes(run.model.history_length):
        inputs = _random_inputs(run, size, rng)
        with torch.inference_mode():
            expected, got = eager(**inputs), opened(**inputs)
        names = tuple(expected)
        if tuple(got) != names:
            raise ArtifactError(f"{program.name}: gives {', '.join(got)}, not {', '.join(names)}")
        for name in names:
            # max() of a NaN difference would be lost in a comparison, so ask for what is good.
            difference = float((expected[name] - got[name]).abs().max())
            if not difference <= TOLERANCE:
                raise ArtifactError(
                    f"{program.name}: {name} differs from the run by {difference:g} on a batch of "
                    f"(B, L, C) = {size}; at most {TOLERANCE:g} is allowed, so nothing is exported"
                )
            worst = max(worst, difference)
    return names, worst


def _write_items(path: Path, item_ids: pa.Array) -> None:
    rows = pa.array(np.arange(FIRST, FIRST + len(item_ids)))
    batch = pa.record_batch({"item_id": item_ids, "row": rows})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
