"""Training speed of our DIN beside FuxiCTR's, under Ray Train beside bare, two workers beside one.

Same rows, model, sizes, batch, optimiser and threads; the loader is part of the time. Each run
is a process of its own, and the runs of both sides alternate.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from bench.equal_data import ITEM_FIELDS, data_sizes, fuxictr_data, planted_world
from bench.equal_run import Job
from bench.peers.environment import FUXICTR, peer_python
from bench.processes import figures_of
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.training import TrainConfig

PEER_SCRIPT = Path(__file__).parent / "peers" / "fuxictr_longctr.py"
LR, CLIP_NORM = 1e-3, 10.0
_TRIAL_STEPS = 4  # enough to choose the number of loader processes
NOTE = (
    "One sample is one candidate with its user's history. Ours reads whole impressions and gathers "
    "each history once for all their candidates; FuxiCTR gathers it for every candidate. "
    "ratio_single_candidate makes every row an impression of its own, so that nothing is shared."
)
Figures = dict[str, Any]


def run(
    users: int = 2000,
    days: int = 60,
    history_lengths: Sequence[int] = (50, 100),
    repeats: int = 3,
    warmup_steps: int = 3,
    steps: int = 12,
    ray_repeats: int = 5,
    ray_warmup_steps: int = 8,
    ray_steps: int = 20,
    batch_size: int = 8192,
    embedding_dim: int = 64,
    attention_units: Sequence[int] = (64,),
    hidden: Sequence[int] = (500, 500, 500),
    threads: int = 2,
    loader_processes: Sequence[int] = (0, 1, 2),
    seed: int = 0,
) -> Figures:
    """Samples per second of ours over FuxiCTR's with the best of `loader_processes`.

    Default sizes are those of FuxiCTR's own DIN configuration; the data is a planted world.
    `ratio` is of medians at the first of `history_lengths`. `ray_overhead` is one Ray Train
    worker over the bare loop. `scaling` is two workers with one core each over twice one worker
    with one core, all on the same global batch. Both are of medians of `ray_repeats` rounds and
    count from `ray_warmup_steps` on, when Ray's own processes have started. `same_losses` trains
    both sides from the same weights on the same rows in the same order. `loaders` reads an epoch
    without training, from mapped columns and through Ray Data. `busy_before` is the CPU share of
    others in the second before each run.
    """
    data = prepare(Dataset(planted_world(users, days, seed)))
    sizes = Sizes(
        warmup_steps,
        steps,
        batch_size,
        embedding_dim,
        tuple(attention_units),
        tuple(hidden),
        threads,
    )
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(Path(scratch), data, sizes, seed)
        same = bench.same_losses(history_lengths[0])
        beside = {
            length: bench.beside(length, repeats, loader_processes) for length in history_lengths
        }
        longer = replace(sizes, warmup_steps=ray_warmup_steps, steps=ray_steps)
        ray = bench.under_ray(history_lengths[0], ray_repeats, longer)
        loaders = bench.loaders(history_lengths[0])
    main = beside[history_lengths[0]]
    return {
        "bench": "ctr-train",
        "ratio": main["ratio"],
        "ratio_single_candidate": main["ratio_single_candidate"],
        "ray_overhead": ray["ray_overhead"],
        "scaling": ray["scaling"],
        "same_losses": same,
        "by_history_length": {str(length): figures for length, figures in beside.items()},
        "ray": ray,
        "loaders": loaders,
        "data": {"users": users, "days": days, "seed": seed, **data_sizes(data)},
        "sizes": {**asdict(sizes), "item_fields": ITEM_FIELDS, "lr": LR, "clip_norm": CLIP_NORM},
        "cpus": psutil.cpu_count(),
        "busy_before": bench.busy,
        "note": NOTE,
    }


@dataclass(frozen=True)
class Sizes:
    """What both sides train, and for how many steps."""

    warmup_steps: int
    steps: int
    batch_size: int
    embedding_dim: int
    attention_units: tuple[int, ...]
    hidden: tuple[int, ...]
    threads: int


class _Bench:
    """Runs on one data set with one set of sizes."""

    def __init__(self, scratch: Path, data: Prepared, sizes: Sizes, seed: int) -> None:
        self.scratch, self.data, self.sizes, self.seed = scratch, data, sizes, seed
        self.theirs = fuxictr_data(data)
        self.python = peer_python(*FUXICTR)
        self.busy: list[float] = []
        self._console = Console(stderr=True)
        self._runs = 0

    def same_losses(self, length: int) -> Figures:
        """Both from FuxiCTR's first weights, on the same rows in the same order."""
        weights = self.scratch / "weights.npz"
        first = self.fuxictr(length, 0, shuffle=False, weights=weights)
        second = self.raysys(length, single=True, shuffle=False, weights=str(weights))
        gaps = np.abs(np.array(first["losses"]) - np.array(second["losses"]))
        valid = {"raysys": second["valid"], "fuxictr": first["valid"]}
        return {"steps": len(gaps), "max_difference": float(gaps.max()), "valid": valid}

    def beside(self, length: int, repeats: int, loader_processes: Sequence[int]) -> Figures:
        """Ours and theirs in turns; theirs with the fastest number of loader processes."""
        trials = {
            n: self.fuxictr(length, n, steps=_TRIAL_STEPS)["samples_per_s"]
            for n in loader_processes
        }
        best = max(trials, key=lambda n: trials[n])
        runs: dict[str, list[Figures]] = {
            "raysys": [],
            "raysys_single_candidate": [],
            "fuxictr": [],
        }
        for repeat in range(repeats):
            seed = self.seed + repeat
            runs["fuxictr"].append(self.fuxictr(length, best, seed=seed))
            runs["raysys"].append(self.raysys(length, seed=seed))
            runs["raysys_single_candidate"].append(self.raysys(length, single=True, seed=seed))
        median = {name: _median(figures) for name, figures in runs.items()}
        return {
            "ratio": median["raysys"] / median["fuxictr"],
            "ratio_single_candidate": median["raysys_single_candidate"] / median["fuxictr"],
            "samples_per_s": median,
            "runs": {name: _speeds(figures) for name, figures in runs.items()},
            "valid": {name: [f["valid"] for f in figures] for name, figures in runs.items()},
            "fuxictr_loader_processes": {"best": best, "trials": trials},
            "n_params": {name: figures[0]["n_params"] for name, figures in runs.items()},
        }

    def under_ray(self, length: int, repeats: int, sizes: Sizes) -> Figures:
        """The bare loop, Ray Train on one worker, one pinned worker, two pinned workers."""
        ways: dict[str, Figures] = {
            "bare": dict(workers=0),
            "one_worker": dict(workers=1),
            "one_core": dict(workers=1, threads=1, pin=True),
            "two_cores": dict(workers=2, threads=1, pin=True),
        }
        runs: dict[str, list[Figures]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, options in ways.items():
                runs[way].append(self.raysys(length, sizes=sizes, **options))
        median = {way: _median(figures) for way, figures in runs.items()}
        return {
            "ray_overhead": median["one_worker"] / median["bare"],
            "scaling": median["two_cores"] / (2 * median["one_core"]),
            "samples_per_s": median,
            "runs": {way: _speeds(figures) for way, figures in runs.items()},
        }

    def loaders(self, length: int) -> Figures:
        """Rows per second of our loader and of one through Ray Data, nothing else running."""
        sizes = data_sizes(self.data)
        impressions = round(self.sizes.batch_size / sizes["candidates_per_impression"])
        code = "from bench.equal_loaders import main; main()"
        given = [str(self.data.dataset.path), str(impressions), str(length)]
        figures = self._run([sys.executable, "-c", code, *given], None, f"loaders L={length}")
        speeds = figures["samples_per_s"]
        return {
            "samples_per_s": speeds,
            "mapped_vs_ray_data": speeds["mapped"] / speeds["ray_data"],
        }

    def raysys(
        self,
        length: int,
        *,
        single: bool = False,
        shuffle: bool = True,
        weights: str | None = None,
        seed: int | None = None,
        workers: int = 0,
        threads: int | None = None,
        pin: bool = False,
        sizes: Sizes | None = None,
    ) -> Figures:
        """One run of ours."""
        sizes = sizes or self.sizes
        job = Job(
            data=str(self.data.dataset.path),
            batch_size=sizes.batch_size,
            embedding_dim=sizes.embedding_dim,
            attention_units=sizes.attention_units,
            hidden=sizes.hidden,
            history_length=length,
            warmup_steps=sizes.warmup_steps,
            single=single,
            shuffle=shuffle,
            weights=weights,
            pin=pin,
            train=TrainConfig(
                max_steps=sizes.warmup_steps + sizes.steps,
                seed=self.seed if seed is None else seed,
                lr=LR,
                clip_norm=CLIP_NORM,
                log_every_steps=1,
                checkpoint_every_seconds=None,
                workers=workers,
                threads_per_worker=threads or sizes.threads,
                device="cpu",
            ),
        )
        path, out = self._new("job"), self._new("run")
        path.write_text(job.model_dump_json(), encoding="utf-8")
        code = "from bench.equal_run import main; main()"
        label = f"raysys L={length} single={single} workers={workers}"
        return self._run([sys.executable, "-c", code, str(path), str(out)], threads, label)

    def fuxictr(
        self,
        length: int,
        processes: int,
        *,
        shuffle: bool = True,
        weights: Path | None = None,
        seed: int | None = None,
        steps: int | None = None,
    ) -> Figures:
        """One run of FuxiCTR's; `weights` is written with its first weights."""
        sizes = self.sizes
        given = {
            "steps": steps or sizes.steps,
            "warmup_steps": sizes.warmup_steps,
            "embedding_dim": sizes.embedding_dim,
            "attention_hidden_units": sizes.attention_units,
            "dnn_hidden_units": sizes.hidden,
            "max_len": length,
            "batch_size": sizes.batch_size,
            "learning_rate": LR,
            "num_workers": processes,
            "threads": sizes.threads,
            "shuffle": shuffle,
            "seed": self.seed if seed is None else seed,
            "evaluate": steps is None,
        }
        path = self._new("sizes")
        path.write_text(json.dumps(given), encoding="utf-8")
        extra = ["--weights-before", str(weights)] if weights else []
        command = [str(self.python), str(PEER_SCRIPT), str(self.theirs), str(path), *extra]
        figures = self._run(command, None, f"fuxictr L={length} loader processes={processes}")
        valid = figures.get("valid", {})
        return {**figures, "valid": {name.lower(): value for name, value in valid.items()}}

    def _new(self, name: str) -> Path:
        self._runs += 1
        return self.scratch / f"{name}-{self._runs}"

    def _run(self, command: list[str], threads: int | None, label: str) -> Figures:
        """The last line that `command` prints, which is JSON."""
        self.busy.append(psutil.cpu_percent(interval=1.0))
        figures = figures_of(command, threads or self.sizes.threads, label)
        self._console.print(f"{label}: {json.dumps(figures['samples_per_s'])} samples/s")
        return figures


def _median(figures: list[Figures]) -> float:
    return statistics.median(_speeds(figures))


def _speeds(figures: list[Figures]) -> list[float]:
    return [run["samples_per_s"] for run in figures]
