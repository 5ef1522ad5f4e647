"""The runs of `longctr`, ours and FuxiCTR's, each a process of its own and kept in a folder."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from bench.equal_data import FEATURES, fuxictr_data, impressions_of
from bench.equal_longctr import EqualLongCTR, LongSizes
from bench.equal_run import EqualTask, Job, model_of
from bench.peers.environment import FUXICTR, peer_python
from bench.processes import figures_of
from raysys.data.batch import Collator
from raysys.data.features import fit_features
from raysys.data.files import write_text
from raysys.data.prepared import Prepared
from raysys.training import TrainConfig

PEER_SCRIPT = Path(__file__).parent / "peers" / "fuxictr_longctr.py"
CLIP_NORM = 10.0
SAME_LOGITS = 1e-4
Figures = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What both sides train; bits are those of ETA's signatures, group bits of SDIM's buckets."""

    window: int
    k: int
    short: int
    batch_size: int
    embedding_dim: int
    attention_units: tuple[int, ...]
    attention_dim: int
    hidden: tuple[int, ...]
    bits: int
    groups: int
    group_bits: int
    lr: float
    threads: int


class Runs:
    """Runs on one data set with one set of sizes, kept in a folder."""

    def __init__(self, data: Prepared, sizes: Sizes, out: Path) -> None:
        self.data, self.sizes, self.out = data, sizes, out
        self.python = peer_python(*FUXICTR)
        self.out.mkdir(parents=True, exist_ok=True)
        self._console = Console(stderr=True)
        self._console.print(f"runs are kept in {out}")

    def seeds(self, model: str, least: int, steps: int, count: int) -> dict[str, list[Figures]]:
        """Quality on validation of both sides in turns, each with seeds of its own.

        least: only rows with that many past events.
        """
        runs: dict[str, list[Figures]] = {"raysys": [], "fuxictr": []}
        for seed in range(count):
            runs["fuxictr"].append(self.fuxictr(model, least, steps, seed)["valid"])
            runs["raysys"].append(self.raysys(model, least, steps, seed)["valid"])
        return runs

    def equal_weights(self, model: str, steps: int) -> Figures:
        """Losses from FuxiCTR's first weights, logits from its last ones.

        Rows with a full short window, as FuxiCTR needs in every batch; of SIM with a full window.
        """
        least = self.sizes.window if model == "SIM" else self.sizes.short
        stem = self.out / f"weights-{model}-{self._hash(model, least, steps)}"
        before, after, scores = (Path(f"{stem}-{name}") for name in ("0.npz", "1.npz", "p.npy"))
        written = {"--weights-before": before, "--weights-after": after, "--scores": scores}
        theirs = self.fuxictr(model, least, steps, 0, shuffle=False, written=written)
        ours = self.raysys(model, least, steps, 0, shuffle=False, weights=before)
        losses = np.abs(np.array(theirs["losses"]) - np.array(ours["losses"]))
        p = np.load(scores)
        logits, certain = self._logits(self._job(model, least, 1, 0, weights=after))
        gaps = np.abs(logits - (np.log(p) - np.log1p(-p)))
        largest = float(gaps[certain].max())
        return {
            "steps": len(losses),
            "max_loss_difference": float(losses.max()),
            "rows": len(gaps),
            "certain_rows": int(certain.sum()),
            "max_logit_difference": largest,
            "max_logit_difference_of_ties": float(gaps.max()),
            "sd_of_logits": float(logits.std()),
            "same": largest <= SAME_LOGITS,
        }

    def _logits(self, job: Job) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Logits of the validation rows, and which FuxiCTR must agree with."""
        features = fit_features(self.data, FEATURES)
        model = model_of(job, self.data, features).eval()
        collator = Collator(self.data.histories, features.contexts, job.history_length)
        task = EqualTask(model, self.data, collator, job.least)
        logits, certain = [], []
        with torch.no_grad():
            for batch in task.batches(impressions_of(self.data, "valid", job.least)):
                real = batch.candidate_mask
                logits.append(model(batch).score[real].double().numpy())
                sure = torch.ones_like(real)
                if isinstance(model, EqualLongCTR):
                    sure = model.certain(batch)
                certain.append(sure[real].numpy())
        return np.concatenate(logits), np.concatenate(certain)

    def raysys(
        self,
        model: str,
        least: int,
        steps: int,
        seed: int,
        *,
        shuffle: bool = True,
        weights: Path | None = None,
    ) -> Figures:
        """One run of ours."""
        job = self._job(model, least, steps, seed, shuffle=shuffle, weights=weights)
        given = job.model_dump_json()
        stem = self.out / f"raysys-{model}-{self._hash(given)}"

        def trained() -> Figures:
            write_text(Path(f"{stem}-job.json"), given)
            code = "from bench.equal_run import main; main()"
            command = [sys.executable, "-c", code, f"{stem}-job.json", f"{stem}-run"]
            return figures_of(command, self.sizes.threads, stem.name)

        return self._kept(stem, trained)

    def _job(
        self,
        model: str,
        least: int,
        steps: int,
        seed: int,
        *,
        shuffle: bool = True,
        weights: Path | None = None,
    ) -> Job:
        sizes = self.sizes
        longctr = None
        if model != "DIN":
            longctr = LongSizes.model_validate(
                dict(
                    model=model,
                    short=sizes.short,
                    width=sizes.attention_dim,
                    k=sizes.k,
                    bits=sizes.group_bits if model == "SDIM" else sizes.bits,
                    groups=sizes.groups,
                )
            )
        row_count = len(self.data.impressions.rows(impressions_of(self.data, "train", least)))
        return Job(
            data=str(self.data.dataset.path),
            batch_size=sizes.batch_size,
            embedding_dim=sizes.embedding_dim,
            attention_units=sizes.attention_units,
            hidden=sizes.hidden,
            history_length=sizes.window,
            warmup_steps=1,
            longctr=longctr,
            single=True,
            passes=-(-steps // -(-row_count // sizes.batch_size)),
            least=least,
            shuffle=shuffle,
            weights=None if weights is None else str(weights),
            train=TrainConfig(
                max_steps=steps,
                seed=seed,
                lr=sizes.lr,
                clip_norm=CLIP_NORM,
                log_every_steps=1,
                checkpoint_every_seconds=None,
                workers=0,
                threads_per_worker=sizes.threads,
                device="cpu",
            ),
        )

    def fuxictr(
        self,
        model: str,
        least: int,
        steps: int,
        seed: int,
        *,
        shuffle: bool = True,
        written: dict[str, Path] | None = None,
    ) -> Figures:
        """One run of FuxiCTR's; files to write by the option that names them."""
        sizes, files = self.sizes, written or {}
        given = {
            "model": model,
            "warmup_steps": 1,
            "steps": steps - 1,
            "embedding_dim": sizes.embedding_dim,
            "attention_hidden_units": sizes.attention_units,
            "dnn_hidden_units": sizes.hidden,
            "short_seq_len": sizes.short,
            "attention_dim": sizes.attention_dim,
            "topk": sizes.k,
            "hash_bits": sizes.group_bits if model == "SDIM" else sizes.bits,
            "num_hashes": sizes.groups,
            "l2_norm": True,
            "max_len": sizes.window,
            "batch_size": sizes.batch_size,
            "learning_rate": sizes.lr,
            "num_workers": 0,
            "threads": sizes.threads,
            "shuffle": shuffle,
            # No seed of ours: nothing may be alike by chance.
            "seed": 1000 + seed,
            "evaluate": True,
        }
        text = json.dumps(given)
        data = fuxictr_data(self.data, least)
        stem = self.out / f"fuxictr-{model}-{self._hash(text, data, *files.values())}"

        def trained() -> Figures:
            write_text(Path(f"{stem}-sizes.json"), text)
            extra = [word for option, path in files.items() for word in (option, str(path))]
            command = [str(self.python), str(PEER_SCRIPT), str(data), f"{stem}-sizes.json", *extra]
            return figures_of(command, sizes.threads, stem.name)

        figures = self._kept(stem, trained)
        return {**figures, "valid": {k.lower(): v for k, v in figures["valid"].items()}}

    def _kept(self, stem: Path, trained: Callable[[], Figures]) -> Figures:
        """The figures of a run, which is not repeated."""
        path = Path(f"{stem}.json")
        if not path.is_file():
            write_text(path, json.dumps(trained()))
        figures: Figures = json.loads(path.read_text(encoding="utf-8"))
        self._console.print(f"{stem.name}: {json.dumps(figures['valid'])}", soft_wrap=True)
        return figures

    def _hash(self, *parts: Any) -> str:
        text = json.dumps([asdict(self.sizes), self.data.dataset.manifest.hash, *map(str, parts)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]
