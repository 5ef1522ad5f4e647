"""What a report shows of a distillation: how thin it became when, and what was learned for what."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysys.homodistil.plan import Event, Sizes
from raysys.tracking.figures import Figure, LineFigure, Series, TableFigure

_TOLD = {"residual": "width", "ffn": "neurons of a layer", "attn": "heads of a layer"}


def widths(whole: Sizes, begun: Sizes, planned: Sequence[Event], steps: int) -> Figure:
    """What is left of each kind of group, as a share of the teacher's, over the steps."""
    series = []
    for kind, told in _TOLD.items():
        size = whole[kind]  # type: ignore[index]
        x, y = [0.0], [begun[kind] / size]  # type: ignore[index]
        for event in planned:
            x += [float(event.step)] * 2
            y += [y[-1], event.sizes[kind] / size]  # type: ignore[index]
        series.append(Series(name=told, x=(*x, float(steps)), y=(*y, y[-1])))
    return LineFigure(
        title="What is left of the teacher",
        caption="Share of its width, neurons and heads over the steps; all layers alike.",
        x_label="step",
        y_label="share of the teacher's",
        series=tuple(series),
    )


def losses(log: Sequence[Mapping[str, Any]], spent: Callable[[int], float]) -> dict[str, Figure]:
    """Training loss and held-out measures over what had been computed by then.

    log: records of the metrics log. spent: counted FLOPs of a training of so many steps.
    """
    found: dict[str, Figure] = {}
    steps = [record for record in log if record["kind"] == "step"]
    epochs = [record for record in log if record["kind"] == "epoch"]
    caption = "Over counted FLOPs: the teacher's forward pass and three times the student's."
    if steps:
        x = tuple(spent(record["step"]) for record in steps)
        y = tuple(record["loss"] for record in steps)
        found["loss-flops"] = LineFigure(
            title="Loss of training", caption=caption, x_label="FLOPs", y_label="L",
            series=(Series(name="all terms, weighted", x=x, y=y),),
        )  # fmt: skip
    if epochs:
        x = tuple(spent(record["step"]) for record in epochs)
        names = ("loss", "kl", "similarity", "hidden")
        found["held-flops"] = LineFigure(
            title="Held out, by epoch",
            caption=f"{caption} The student becomes thinner on the way: early values are of a "
            "bigger model.",
            x_label="FLOPs",
            y_label="held out",
            series=tuple(
                Series(name=name, x=x, y=tuple(record[f"val/{name}"] for record in epochs))
                for name in names
                if f"val/{name}" in epochs[0]
            ),
        )
    return found


def speed_table(speed: Mapping[str, Any]) -> Figure:
    """Teacher and student beside each other."""
    columns = ("tokens_per_s", "ms", "mib")
    return TableFigure(
        title="Speed and size here",
        caption="Forward passes over held-out rows, in turns, medians; ms of a row. The student "
        f"is {speed['ratio']:.2f} times as fast.",
        columns=("model", "tokens/s", "ms", "weights, MiB"),
        rows=tuple(
            (name, *(round(speed[name][column], 3) for column in columns))
            for name in ("teacher", "student")
        ),
    )
