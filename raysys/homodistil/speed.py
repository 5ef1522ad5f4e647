"""How fast a student is beside its teacher, on this machine."""

import statistics
import time
from typing import Any

import torch
from torch import nn

from raysys.homodistil.rows import Rows

_ROUNDS = 5


def speeds(teacher: nn.Module, student: nn.Module, rows: Rows) -> dict[str, Any]:
    """Forward passes over the same rows, in turns; medians of five rounds.

    Gives of teacher and student tokens_per_s, ms (of a row) and mib (of weights), and `ratio`, the
    student's tokens_per_s over the teacher's.
    """
    models = {"teacher": teacher.eval(), "student": student.eval()}
    device = next(student.parameters()).device
    given = dict(input_ids=rows.input_ids.to(device), attention_mask=rows.mask.long().to(device))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for turn in range(_ROUNDS + 1):
            for name, model in models.items():
                begin = time.perf_counter()
                model(**given)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - begin)
    found: dict[str, Any] = {}
    tokens, count = int(rows.mask.sum()), len(rows.input_ids)
    for name, model in models.items():
        taken = statistics.median(seconds[name])
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        found[name] = {
            "tokens_per_s": tokens / taken, "ms": 1000 * taken / count, "mib": size / 2**20,
        }  # fmt: skip
    ratio = found["student"]["tokens_per_s"] / found["teacher"]["tokens_per_s"]
    return {**found, "ratio": ratio}
