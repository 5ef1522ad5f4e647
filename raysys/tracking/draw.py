"""Drawing with matplotlib: functions return a data URI of an SVG image, or the bytes of a PNG.

As an image a drawing cannot run anything and its ids cannot clash with another's.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from raysys.tracking.figures import GraphFigure, HeatmapFigure, LineFigure, Series

Floats = npt.NDArray[np.float64]

INK = "#1f2933"
MUTED = "#8a94a0"
ACCENT = "#c2410c"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000"]
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "svg.hashsalt": "raysys",  # the same numbers give the same bytes
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}
_TICK = 40  # letters of a name beside a map
_MARGIN = 0.12  # around a graph, of its width and height
_HEAT_CELLS = 400  # up to here every cell has its number written in it


@dataclass(frozen=True)
class Bar:
    """A named value with the ends of its interval, if it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    strong: bool = False


def line(figure: LineFigure, width: float = 5.2, height: float = 3.0) -> str:
    """All series of a line figure."""
    with matplotlib.rc_context(_STYLE):
        return _uri(_lines(figure, width, height))


def line_png(figure: LineFigure, width: float = 5.2, height: float = 3.0) -> bytes:
    """`line` with its title, as a file of its own."""
    with matplotlib.rc_context(_STYLE):
        canvas = _lines(figure, width, height)
        canvas.axes[0].set_title(figure.title)
        return _png(canvas)


def _lines(figure: LineFigure, width: float, height: float) -> Canvas:
    canvas, axes = _canvas(width, height)
    for colour, series in zip(_cycle(len(figure.series)), figure.series, strict=True):
        _series(axes, series, colour)
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    for axis, log in ((axes.xaxis, figure.log_x), (axes.yaxis, figure.log_y)):
        if log:
            # A log scale brings labels in mathematical markup, which is switched off.
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    if len(figure.series) > 1 or figure.series[0].name:
        axes.legend(fontsize=8)
    return canvas


@dataclass(frozen=True)
class Scatter:
    """y over x, [n] each; x may be words; muted [n]: points to draw hollow."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    muted: Sequence[bool]
    log: bool = False


def scatter_png(parts: Sequence[Scatter], label: str) -> bytes:
    """One panel per part over a shared y axis named `label`."""
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(3.0 * columns + 0.4, 2.4 * rows), layout="constrained")
        grid = list(canvas.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for axes, part in zip(grid, parts, strict=False):
            words = any(isinstance(value, str) for value in part.x)
            names = sorted({str(value) for value in part.x}) if words else []
            x = [names.index(str(v)) if words else float(v) for v in part.x]
            faces = ["none" if muted else COLOURS[0] for muted in part.muted]
            axes.scatter(x, part.y, s=22, facecolors=faces, edgecolors=COLOURS[0], zorder=3)
            if words:
                axes.set_xticks(range(len(names)), [_short(name) for name in names])
                axes.margins(x=0.3)
            elif part.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(part.name)
        for axes in grid[len(parts) :]:
            axes.set_axis_off()
        canvas.supylabel(label, fontsize=9)
        return _png(canvas)


def _series(axes: Axes, series: Series, colour: str) -> None:
    marker = "o" if series.points or len(series.x) <= 30 else None
    style = "none" if series.points else "-"
    axes.plot(series.x, series.y, color=colour, marker=marker, ms=3, lw=1.4, ls=style,
              label=series.name)  # fmt: skip
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, lw=0)


def heatmap(figure: HeatmapFigure) -> str:
    """Cells by colour; around zero if values of both signs occur."""
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        return _uri(_cells(figure))


def heatmap_png(figure: HeatmapFigure) -> bytes:
    """The same as a PNG file."""
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        return _png(_cells(figure))


def _cells(figure: HeatmapFigure) -> Canvas:
    values = np.array([[np.nan if v is None else v for v in row] for row in figure.values])
    low, high = _ends(values)
    both = low < 0 < high
    limit = max(-low, high)
    names = 0.055 * min(_TICK, max(map(len, (*figure.x, *figure.y))))
    # Cells that differ by little are told apart by more digits.
    told = "{:.2g}" if high - low > 0.1 * max(abs(low), abs(high)) else "{:.4f}"
    cell = (0.42 if told == "{:.2g}" else 0.6) if values.size <= _HEAT_CELLS else 0.2
    size = (1 + names + cell * len(figure.x), 0.6 + names + 0.2 * len(figure.y))
    canvas, axes = _canvas(min(size[0], 12), min(size[1], 12))
    image = axes.imshow(
        values,
        aspect="auto",
        cmap="RdBu_r" if both else "viridis",
        vmin=-limit if both else low,
        vmax=limit if both else high,
    )
    axes.set_xticks(range(len(figure.x)), [_short(name, _TICK) for name in figure.x])
    axes.set_yticks(range(len(figure.y)), [_short(name, _TICK) for name in figure.y])
    axes.tick_params(axis="x", labelrotation=60)
    for label in axes.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    if values.size <= _HEAT_CELLS:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = image.to_rgba(value)
                bright = 0.3 * red + 0.59 * green + 0.11 * blue
                colour = "white" if bright < 0.5 else INK
                axes.text(column, row, told.format(value), ha="center", va="center", size=7,
                          color=colour)  # fmt: skip
    canvas.colorbar(image, ax=axes, fraction=0.05, label=figure.value_label)
    return canvas


def graph(figure: GraphFigure) -> str:
    """Nodes placed by springs along their edges, the same way each time."""
    place = {node.id: row for row, node in enumerate(figure.nodes)}
    ends = np.array([[place[e.source], place[e.target]] for e in figure.edges], int).reshape(-1, 2)
    weights = np.array([edge.weight for edge in figure.edges])
    at = spring_layout(len(figure.nodes), ends, weights)
    groups = sorted({node.group for node in figure.nodes})
    lines = sorted({edge.group for edge in figure.edges} - {""})
    colours = _cycle(len(groups) + len(lines))
    colour_of = dict(zip(groups, colours, strict=False))
    line_of = {"": MUTED} | dict(zip(lines, colours[len(groups) :], strict=True))
    heaviest = max((node.weight for node in figure.nodes), default=1.0) or 1.0
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        canvas, axes = _canvas(*((7, 5) if len(figure.nodes) <= 12 else (11, 8)))
        for (source, target), edge in zip(ends, figure.edges, strict=True):
            axes.annotate(
                "", xy=at[target], xytext=at[source],
                arrowprops={
                    "arrowstyle": "-|>" if figure.directed else "-",
                    "color": line_of[edge.group],
                    "lw": 0.4 + 2.2 * edge.weight / max(weights.max(), 1e-12),
                    "shrinkA": 6, "shrinkB": 6, "alpha": 0.7,
                },
            )  # fmt: skip
        for group in groups:
            mine = [row for row, node in enumerate(figure.nodes) if node.group == group]
            sizes = [30 + 170 * figure.nodes[row].weight / heaviest for row in mine]
            axes.scatter(at[mine, 0], at[mine, 1], sizes, color=colour_of[group], zorder=3,
                         label=group or None, edgecolors="white", linewidths=0.6)  # fmt: skip
        names = [_short(node.label or node.id, _TICK) for node in figure.nodes]
        points = 72 / (1 + 2 * _MARGIN) * canvas.get_size_inches()
        spread = np.maximum(np.ptp(at, axis=0), 1e-9)
        for name, spot, shift in zip(
            names, at, label_shifts(at / spread * points, [len(n) for n in names]), strict=True
        ):
            axes.annotate(name, spot, (0, shift), zorder=4, size=7, ha="center", va="center",
                          textcoords="offset points",
                          bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.4})  # fmt: skip
        for group in lines:
            axes.plot([], [], color=line_of[group], label=group)
        if groups != [""] or lines:
            axes.legend(fontsize=8)
        axes.set_axis_off()
        axes.margins(_MARGIN)
        return _uri(canvas)


def label_shifts(spots: Floats, letters: Sequence[int]) -> list[float]:
    """How far above its spot each label goes so that none lies on another, in points.

    spots [N, 2] in points; letters [N] of the labels. The first free place counts, above before
    below; where none is free it is the first.
    """
    width, height = 3.9, 9.0  # of a letter of size 7
    taken = np.zeros((0, 3))  # x, y and half the width of the labels so far
    shifts = []
    for (x, y), count in zip(spots.tolist(), letters, strict=True):
        half = width * count / 2
        chosen = 11.0
        for shift in (11.0, -11.0, 20.0, -20.0, 29.0, -29.0):
            beside = np.abs(taken[:, 0] - x) < taken[:, 2] + half
            if not (beside & (np.abs(taken[:, 1] - y - shift) < height)).any():
                chosen = shift
                break
        shifts.append(chosen)
        taken = np.vstack([taken, [x, y + chosen, half]])
    return shifts


def spring_layout(nodes: int, edges: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """Places [nodes, 2] by attraction along edges [E, 2] and repulsion between all nodes
    (Fruchterman and Reingold 1991), starting on a circle."""
    angle = 2 * np.pi * np.arange(nodes) / nodes
    at = np.stack([np.cos(angle), np.sin(angle)], 1)
    distance = 2.0 / np.sqrt(nodes)
    pull = np.zeros((nodes, nodes))
    scaled = weights / weights.max() if weights.size and weights.max() > 0 else weights
    np.add.at(pull, (edges[:, 0], edges[:, 1]), 0.3 + 0.7 * scaled)
    pull = np.maximum(pull, pull.T)
    for heat in np.linspace(0.2, 0.002, 150):
        gap = at[:, None] - at[None]
        length = np.maximum(np.linalg.norm(gap, axis=-1), 1e-6)
        # A faint pull to the middle keeps parts that no edge connects on the page.
        push = (distance / length) ** 2 - pull * length / distance
        np.fill_diagonal(push, 0)
        force = (gap * push[..., None]).sum(1) - 0.3 * at
        norm = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        at = at + force / norm * np.minimum(norm, heat)
    return at


def bars(rows: Sequence[Bar], label: str, zero: bool = False) -> str:
    """Values from the top down with their intervals; `zero` draws the line of no difference."""
    with matplotlib.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        return _uri(_bars(rows, label, zero))


def bars_png(rows: Sequence[Bar], label: str, zero: bool = False) -> bytes:
    """`bars` as a file of its own."""
    with matplotlib.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        return _png(_bars(rows, label, zero))


def _bars(rows: Sequence[Bar], label: str, zero: bool) -> Canvas:
    canvas, axes = _canvas(5.2, 0.9 + 0.27 * len(rows))
    spots = np.arange(len(rows))[::-1]
    for spot, row in zip(spots, rows, strict=True):
        colour = ACCENT if row.strong else COLOURS[0]
        axes.plot(row.value, spot, "o", color=colour, ms=5)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [spot, spot], color=colour, lw=2, alpha=0.6)
        axes.annotate(f"{row.value:+.4f}" if zero else f"{row.value:.4f}", (1.01, spot),
                      xycoords=("axes fraction", "data"), va="center", size=8)  # fmt: skip
    if zero:
        axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(spots, [_short(row.name, 34) for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=6)
    return canvas


@dataclass(frozen=True)
class Reliability:
    """Mean prediction and observed rate by bin of equal mass, [bins] each."""

    name: str
    predicted: Floats
    observed: Floats


def calibration(curves: Sequence[Reliability]) -> str:
    """Observed against predicted rates; the diagonal is perfect."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(3.6, 3.3)
        top = max(float(max(c.predicted.max(), c.observed.max())) for c in curves) * 1.05
        axes.plot([0, top], [0, top], color=MUTED, lw=1, ls="--")
        for colour, curve in zip(_cycle(len(curves)), curves, strict=True):
            axes.plot(curve.predicted, curve.observed, "o-", ms=4, lw=1, color=colour,
                      label=curve.name)  # fmt: skip
        axes.set(xlabel="mean predicted probability", ylabel="observed rate",
                 xlim=(0, top), ylim=(0, top))  # fmt: skip
        axes.legend(fontsize=8)
        return _uri(canvas)


def gap(baseline: float, model: float, oracle: float, low: float, high: float) -> str:
    """Where the model stands between a baseline and the oracle; low, high: ends of the share."""
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        canvas, axes = _canvas(5.2, 1.1)
        span = oracle - baseline
        axes.plot([baseline, oracle], [0, 0], color="#e4e7eb", lw=9, solid_capstyle="butt")
        axes.plot([baseline, model], [0, 0], color=COLOURS[0], lw=9, solid_capstyle="butt")
        interval = [baseline + low * span, baseline + high * span]
        axes.plot(interval, [0, 0], color=ACCENT, lw=2)
        axes.plot(model, 0, "o", color=ACCENT, ms=5)
        marks = [(baseline, "baseline"), (model, "model"), (oracle, "oracle")]
        for place, (value, name) in enumerate(marks):
            below = place == 1
            axes.annotate(f"{name} {value:.4f}", (value, 0), (0, -14 if below else 9), size=8,
                          textcoords="offset points", ha="center",
                          va="top" if below else "bottom")  # fmt: skip
        axes.set_ylim(-1, 1)
        axes.margins(x=0.12)
        axes.set_axis_off()
        return _uri(canvas)


def _canvas(width: float, height: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    return canvas, canvas.add_subplot()


def _uri(canvas: Canvas) -> str:
    out = io.BytesIO()
    canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _png(canvas: Canvas) -> bytes:
    out = io.BytesIO()
    canvas.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _ends(values: Floats) -> tuple[float, float]:
    real = values[np.isfinite(values)]
    return (float(real.min()), float(real.max())) if real.size else (0.0, 1.0)


def _short(text: str, width: int = 24) -> str:
    return textwrap.shorten(text, width, placeholder="…") or text[:width]
