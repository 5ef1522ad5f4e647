"""A student beside its teacher: GLUE tasks, titles that find their texts, and speed."""

import statistics
from pathlib import Path
from typing import Any

import torch

from bench.homodistil_cell import probe, texts_per_s
from raysys.data.dataset import Dataset
from raysys.errors import ConfigError
from raysys.homodistil.folder import read_pruning
from raysys.homodistil.probes import glue as glue_tasks
from raysys.llm.backbones import open_backbone
from raysys.llm.encoder import EncoderSpec, TextEncoder

Figures = dict[str, Any]


def run(
    student: str,
    teacher: str = "wheel:minilm",
    glue: str | None = None,
    data: str | None = None,
    train_rows: int = 3000,
    texts: int = 500,
    rounds: int = 5,
    threads: int = 1,
    max_tokens: int = 128,
) -> Figures:
    """Figures of both and the share that the student keeps.

    student, teacher: backbone specs. glue: a folder of GLUE tasks. data: a corpus; titles of its
    test part find their texts, and texts are embedded for the speed, in turns over `rounds`.

    Raises:
        ConfigError: neither glue nor data.
        RaysysError: a student of another teacher, a backbone that does not load, or
            a folder without its files.
    """
    torch.set_num_threads(threads)
    if glue is None and data is None:
        raise ConfigError("bench homodistil-probes: give glue=FOLDER, data=CORPUS or both")
    read_pruning(open_backbone(student), open_backbone(teacher))
    encoders = {
        name: TextEncoder(EncoderSpec(backbone=spec, max_tokens=max_tokens))
        for name, spec in (("teacher", teacher), ("student", student))
    }
    found: Figures = {"bench": "homodistil-probes", "teacher": teacher}
    if glue is not None:
        tasks = {name: glue_tasks(Path(glue), enc, train_rows) for name, enc in encoders.items()}
        found["glue"] = {
            task: {
                "metric": told["metric"],
                "rows": told["rows"],
                **_kept(told["value"], tasks["student"][task]["value"]),
            }
            for task, told in tasks["teacher"].items()
        }
    if data is not None:
        both = {name: probe(spec, teacher, data) for name, spec in
                (("teacher", teacher), ("student", student))}  # fmt: skip
        found["retrieval"] = {
            name: _kept(value, both["student"][name]) for name, value in both["teacher"].items()
        }
        found |= _speed(encoders, data, texts, rounds)
    return found


def _kept(teacher: float, student: float) -> dict[str, float]:
    return {"teacher": teacher, "student": student, "kept": student / teacher if teacher else 0.0}


def _speed(encoders: dict[str, TextEncoder], data: str, count: int, rounds: int) -> Figures:
    documents = Dataset(data).table("documents", ["text"])["text"].to_pylist()[:count]
    rates = texts_per_s(encoders, documents, rounds)
    speed = {name: statistics.median(values) for name, values in rates.items()}
    return {"texts_per_s": speed, "speed_ratio": speed["student"] / speed["teacher"]}
