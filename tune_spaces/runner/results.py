"""What a sweep leaves behind: results.parquet, figures as JSON and PNG."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.metrics.seeds import t_interval
from raysys.tracking.draw import Scatter, heatmap_png, line_png, scatter_png
from raysys.tracking.figures import (
    FOLDER,
    Figure,
    HeatmapFigure,
    LineFigure,
    Series,
    TableFigure,
    write_figure,
)
from tune_spaces.runner.ledger import Trial
from tune_spaces.runner.objective import better
from tune_spaces.runner.space import Real, Scalar, Space, Whole

RESULTS = "results.parquet"


def winner(trials: list[Trial], space: Space, folder: Path) -> dict[str, Any] | None:
    """The parameters with the best mean over their seeds, among those all of whose trials
    completed: their run folders are whole. Where some have more seeds, only those count."""
    best: dict[str, Any] | None = None
    whole = [m for m in _arms(trials).values() if all(t.status == "completed" for t in m)]
    most = max(map(len, whole), default=0)
    for members in whole:
        if len(members) < most:
            continue
        kept = [trial.value for trial in members if trial.value is not None]
        mean = sum(kept) / len(kept)
        if best is None or better(mean, best[space.metric], space.mode):
            best = {
                "trials": [trial.id for trial in members],
                "parameters": members[0].parameters,
                space.metric: mean,
                "runs": [str(folder / trial.id) for trial in members],
            }
    return best


def write_results(out: Path, trials: list[Trial], space: Space) -> Path:
    """OUT/results.parquet, one row per trial: trial, status, seed, the parameters by key, the
    metric, epochs, seconds, run (relative to OUT; null if nothing was learned), message."""
    keys = sorted({key for trial in trials for key in trial.parameters})
    rows = [
        {
            "trial": trial.id,
            "status": trial.status,
            "seed": trial.seed,
            **{key: trial.parameters.get(key) for key in keys},
            space.metric: trial.value,
            "epochs": trial.epoch,
            "seconds": trial.seconds,
            "run": f"trials/{trial.id}" if (out / "trials" / trial.id).is_dir() else None,
            "message": trial.message,
        }
        for trial in trials
    ]
    typed = {
        "trial": pa.string(), "status": pa.string(), "seed": pa.int64(), space.metric: pa.float64(),
        "epochs": pa.int64(), "seconds": pa.float64(), "run": pa.string(), "message": pa.string(),
    }  # fmt: skip
    names = list(rows[0]) if rows else list(typed)
    columns = {name: pa.array([row[name] for row in rows], typed.get(name)) for name in names}
    scratch = out / f".{RESULTS}.{os.getpid()}"
    pq.write_table(pa.table(columns), scratch)
    os.replace(scratch, out / RESULTS)
    return out / RESULTS


def write_report(out: Path, trials: list[Trial], space: Space) -> list[Path]:
    """Figures of what has a value so far: OUT/report/NAME.json for the report, NAME.png to see."""
    valued = [trial for trial in trials if trial.value is not None and trial.status != "failed"]
    if not valued:
        return []
    figures: dict[str, Figure] = {"trials": _table(trials, space)}
    figures["objective"] = _objective(valued, space)
    if space.curve is not None and (curve := _curve(trials, space)) is not None:
        figures["curve"] = curve
    if space.map is not None and (plane := _map(trials, space)) is not None:
        figures["map"] = plane
    if space.front is not None and (front := _front(out, trials, space)) is not None:
        figures["front"] = front
    for name, figure in figures.items():
        write_figure(out, name, figure)
    folder = out / FOLDER
    images = {n: line_png(f, 6.4, 3.8) for n, f in figures.items() if isinstance(f, LineFigure)}
    images |= {n: heatmap_png(f) for n, f in figures.items() if isinstance(f, HeatmapFigure)}
    if space.search:
        images["parameters"] = scatter_png(
            [_scatter(key, _suggested(valued, space), space) for key in space.search],
            space.metric,
        )
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    return sorted(folder / f"{name}.png" for name in images)


def _table(trials: list[Trial], space: Space) -> TableFigure:
    keys = sorted({key for trial in trials for key in trial.parameters})
    best = winner(trials, space, Path("trials"))
    return TableFigure(
        title="Trials",
        caption=f"{space.metric} on the validation split, of the weights each trial kept.",
        columns=("trial", "status", "seed", *keys, space.metric, "epochs", "seconds"),
        rows=tuple(
            (t.id, t.status, t.seed, *(t.parameters.get(key) for key in keys), t.value, t.epoch,
             round(t.seconds, 1))
            for t in trials
        ),
        bold=tuple(n for n, t in enumerate(trials) if best and t.id in best["trials"]),
    )  # fmt: skip


def _objective(trials: list[Trial], space: Space) -> LineFigure:
    values = [trial.value or 0.0 for trial in trials]
    pick = max if space.mode == "max" else min
    steps = tuple(float(number) for number in range(1, len(values) + 1))
    best = tuple(pick(values[: number + 1]) for number in range(len(values)))
    return LineFigure(
        title="Objective over trials",
        caption="In the order of suggestion; stopped trials with the value at their end.",
        x_label="trial",
        y_label=space.metric,
        series=(
            Series(name="best so far", x=steps, y=best),
            Series(name="trial", x=steps, y=tuple(values)),
        ),
    )


def _curve(trials: list[Trial], space: Space) -> LineFigure | None:
    """For each value of the curve's parameter the arm with the best mean over its seeds."""
    assert space.curve is not None
    found = _best_at((space.curve,), trials, space)
    if not found:
        return None
    at = {place: values for (place,), values in found.items()}
    places = sorted(at)
    least = min(len(values) for values in at.values())
    spans = [t_interval(at[place]) for place in places] if least > 1 else None
    several = len({trial.point for trial in trials}) > 1
    caption = f"Mean over {least} seed{'s' if least > 1 else ''}"
    caption += ", with 95 % t-intervals." if spans else "; an interval needs two or more."
    caption += " Of each value the best suggestion, which flatters them all." if several else ""
    caption += " All else as in the best suggestion." if space.at_best else ""
    return LineFigure(
        title=f"{space.metric} over {space.curve}",
        caption=caption,
        x_label=space.curve,
        y_label=f"{space.metric} (validation)",
        series=(
            Series(
                name="mean",
                x=tuple(places),
                y=tuple(_mean(at[place]) for place in places),
                low=tuple(span.low for span in spans) if spans else None,
                high=tuple(span.high for span in spans) if spans else None,
            ),
        ),
    )


def _map(trials: list[Trial], space: Space) -> HeatmapFigure | None:
    """The means over the plane of two grid keys; cells without a whole arm stay empty."""
    assert space.map is not None
    found = _best_at(space.map, trials, space)
    if not found:
        return None
    rows, columns = (sorted(map(float, space.grid[key])) for key in space.map)
    values = tuple(
        tuple(_mean(found[row, column]) if (row, column) in found else None for column in columns)
        for row in rows
    )
    seeds = min(len(kept) for kept in found.values())
    caption = f"Mean over {seeds} seed{'s' if seeds > 1 else ''}, on the validation split."
    caption += " All else as in the best suggestion." if space.at_best else ""
    return HeatmapFigure(
        title=f"{space.metric} over {' and '.join(space.map)}",
        caption=caption,
        x=tuple(f"{value:g}" for value in columns),
        y=tuple(f"{value:g}" for value in rows),
        values=values,
        x_label=space.map[1].split(".")[-1],
        y_label=space.map[0].split(".")[-1],
        value_label=space.metric,
    )


def _front(out: Path, trials: list[Trial], space: Space) -> LineFigure | None:
    """The metric over what the runs say it costs, and the trials that no other one beats."""
    assert space.front is not None
    points = []
    for trial in trials:
        file = out / "trials" / trial.id / "metrics.json"
        if trial.status == "completed" and trial.value is not None and file.is_file():
            cost: Any = json.loads(file.read_text(encoding="utf-8"))
            for part in space.front.split("."):
                cost = cost.get(part) if isinstance(cost, dict) else None
            if cost is not None:
                points.append((float(cost), trial.value))
    if not points:
        return None
    points.sort()
    kept: list[tuple[float, float]] = []
    for cost, value in points:
        if not kept or better(value, kept[-1][1], space.mode):
            kept.append((cost, value))
    return LineFigure(
        title=f"{space.metric} over {space.front}",
        caption="Each completed trial; the cost as its own run measured it, which is noisy.",
        x_label=space.front,
        y_label=f"{space.metric} (validation)",
        series=tuple(
            Series(
                name=name, x=tuple(x for x, _ in found), y=tuple(y for _, y in found), points=loose
            )
            for name, found, loose in (("trials", points, True), ("front", kept, False))
        ),
    )


def _best_at(
    keys: tuple[str, ...], trials: list[Trial], space: Space
) -> dict[tuple[float, ...], list[float]]:
    """For each place of the grid keys the values by seed of the best arm that came to its end."""
    at: dict[tuple[float, ...], list[float]] = {}
    trials = [trial for trial in trials if {*keys} <= trial.parameters.keys()]
    for members in _arms(trials).values():
        kept = [t.value for t in members if t.status == "completed" and t.value is not None]
        if len(kept) < len(members):
            continue
        place = tuple(float(members[0].parameters[key]) for key in keys)
        old = at.get(place)
        if old is None or better(_mean(kept), _mean(old), space.mode):
            at[place] = kept
    return at


def _scatter(key: str, trials: list[Trial], space: Space) -> Scatter:
    domain = space.search[key]
    log = isinstance(domain, Real | Whole) and domain.log
    return Scatter(
        name=key,
        x=[_plain(trial.parameters[key]) for trial in trials],
        y=[trial.value or 0.0 for trial in trials],
        muted=[trial.status != "completed" for trial in trials],
        log=log,
    )


def _suggested(trials: list[Trial], space: Space) -> list[Trial]:
    """The trials that the search has suggested, without those of its best one's grid."""
    if not space.at_best:
        return trials
    return [trial for trial in trials if not trial.parameters.keys() & space.grid.keys()]


def _plain(value: Scalar) -> float | str:
    return str(value) if isinstance(value, bool | str) else float(value)


def _arms(trials: list[Trial]) -> Mapping[str, list[Trial]]:
    """Trials that differ in their seed only."""
    arms: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        arms[f"{trial.point} {sorted(trial.parameters.items())}"].append(trial)
    return arms


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
