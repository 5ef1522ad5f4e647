"""What distillation costs: a thin student beside its teacher, compact beside masked training, two
workers beside one. Texts are drawn words, weights untrained: times only."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.homodistil_cell import texts_per_s
from raysys.data.loaders import import_dataset
from raysys.errors import ConfigError
from raysys.homodistil.begin import load_teacher
from raysys.homodistil.student import Student, targets
from raysys.llm.backbones import open_backbone
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.recipes.homodistil import HomoDistilRecipe
from raysys.recipes.registry import run as train
from raysys.tracking.metrics_log import METRICS_LOG, read_records

Figures = dict[str, Any]
AIMS = {
    "embeddings_ratio": "at least 2.2, at half the width",
    "compact_ratio": "at least 1.8, at a third of the width",
    "two_workers_ratio": "at least 0.85, at equal cores",
}
OWN = FreshModel(layers=6, width=192, heads=12, vocab=2048)
_WARM = 2  # steps that are not counted


def run(
    encoder: str = "wheel:minilm",
    teacher: str | None = None,
    texts: int = 400,
    words: int = 24,
    steps: int = 60,
    rounds: int = 3,
    threads: int = 1,
    max_tokens: int = 64,
    seed: int = 0,
    parts: tuple[str, ...] = ("embeddings", "compact", "workers"),
) -> Figures:
    """Ratios of medians over rounds in turns.

    embeddings: `encoder` and a student of half its width embed `texts` texts. compact: whole
    trainings of `steps` steps to a third of `teacher` (own: 6 layers, 192 wide), what is lost cut
    off or masked. workers: the same training by two workers of one thread and one of two.
    """
    torch.set_num_threads(threads)
    if unknown := set(parts) - {"embeddings", "compact", "workers"}:
        raise ConfigError(f"parts: no {min(unknown)}; there are embeddings, compact, workers")
    found: Figures = {"bench": "homodistil-cost", "aims": AIMS, "threads": threads}
    rng = np.random.default_rng(seed)
    drawn = [" ".join(_word(rng) for _ in range(words)) for _ in range(texts)]
    with tempfile.TemporaryDirectory(prefix="raysys-homodistil-cost-") as scratch:
        folder = Path(scratch)
        if "embeddings" in parts:
            found |= _embeddings(folder, encoder, drawn, rounds, max_tokens)
        if {"compact", "workers"} & set(parts):
            own = teacher or f"dir:{write_fresh_model(folder / 'own', OWN, drawn)}"
            data = _corpus(folder, drawn)
            base = {
                "data": str(data), "teacher": own, "ratio": 1 / 3, "batch_rows": 8, "held_rows": 8,
                "loss": {"attention": 0.0},
                "train": {"max_steps": steps, "epochs": 10_000, "log_every_steps": 1,
                          "workers": 0, "threads_per_worker": threads},
            }  # fmt: skip
            if "compact" in parts:
                arms: Figures = {mode: {**base, "mode": mode} for mode in ("compact", "hard")}
                speed = _trained(folder, arms, rounds)
                found["training_tokens_per_s"] = speed
                found["compact_ratio"] = speed["compact"] / speed["hard"]
            if "workers" in parts:
                arms = {
                    name: {
                        **base,
                        "train": {**base["train"], "workers": n, "threads_per_worker": t},
                    }
                    for name, n, t in (("one", 1, 2), ("two", 2, 1))
                }
                speed = _trained(folder, arms, rounds)
                found["workers_tokens_per_s"] = speed
                found["two_workers_ratio"] = speed["two"] / speed["one"]
    return found


def _word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnoprstuvw"), int(rng.integers(2, 8))))


def _corpus(folder: Path, texts: list[str]) -> Path:
    source = folder / "source"
    source.mkdir()
    for part, some in (("train", texts[20:]), ("valid", texts[:20])):
        (source / f"{part}.txt").write_text("\n\n".join(some), encoding="utf-8")
    import_dataset("corpus", source, folder / "data", {"unit": "paragraph"})
    return folder / "data"


def _embeddings(folder: Path, spec: str, texts: list[str], rounds: int, tokens: int) -> Figures:
    """Texts a second of both, through the engine that embeds."""
    backbone = open_backbone(spec)
    net = load_teacher(backbone)
    student = Student(net, net.config.hidden_size, "magnitude")  # type: ignore[union-attr, arg-type]
    student.prune(targets(net, 0.5), last=True)
    student.net.save_pretrained(folder / "thin")  # type: ignore[operator]
    backbone.tokenizer().save_pretrained(folder / "thin")
    encoders = {
        name: TextEncoder(EncoderSpec(backbone=which, max_tokens=tokens))
        for name, which in (("teacher", spec), ("student", f"dir:{folder / 'thin'}"))
    }
    rates = texts_per_s(encoders, texts, rounds)
    speed = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "embeddings_per_s": speed,
        "embeddings_ratio": speed["student"] / speed["teacher"],
        "embeddings_per_s_rounds": rates,
    }


def _trained(folder: Path, arms: Figures, rounds: int) -> dict[str, float]:
    """Real tokens a second of the steps of whole trainings, the first ones left out."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name, given in arms.items():
            out = folder / f"{name}-{turn}"
            config = HomoDistilRecipe.model_validate(given)
            train(config, out, show_progress=False)
            steps = [r for r in read_records(out / METRICS_LOG) if r["kind"] == "step"]
            first, last = steps[_WARM - 1], steps[-1]
            seconds = last["seconds"] - first["seconds"]
            rows = config.batch_rows * (last["step"] - first["step"])
            rates[name].append(rows * config.row_tokens / seconds)
    return {name: statistics.median(values) for name, values in rates.items()}
