"""One self-contained HTML page about runs: curves, tables with intervals, calibration, figures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, ValidationError

from raysys.artifacts.run import read_config
from raysys.data.dataset import Dataset
from raysys.data.files import write_text
from raysys.data.manifest import DataCard
from raysys.errors import ArtifactError, MetricError
from raysys.metrics import GapShare, MetricValue, ScoredRows
from raysys.metrics.bootstrap import Interval
from raysys.metrics.leaks import Finding
from raysys.metrics.names import parse
from raysys.metrics.pointwise import BINS, Tally
from raysys.tracking import draw
from raysys.tracking.explain import Examples, explain_run
from raysys.tracking.figures import (
    Figure,
    GraphFigure,
    HeatmapFigure,
    LineFigure,
    Series,
    TableFigure,
    read_figures,
)
from raysys.tracking.metrics_log import METRICS_LOG, Curve, curves, read_records

METRICS = "metrics.json"
_POINTS = 600  # of a curve: more than a screen can show, few enough for a small page


class Evaluated(BaseModel):
    """What the page reads of an evaluation; the first metric of `model` is the headline."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    summary: str = ""
    split: str = ""
    data_card_id: str = ""
    groups: dict[str, str | int] = {}
    model: dict[str, MetricValue]
    baselines: dict[str, dict[str, MetricValue]] = {}
    intervals: dict[str, dict[str, Interval]] = {}
    oracle: dict[str, MetricValue] = {}
    oracle_gap: dict[str, GapShare] = {}
    findings: list[Finding] = []
    warnings: list[str] = []

    @property
    def headline(self) -> str:
        """Name of the first metric."""
        return next(iter(self.model))

    @property
    def ranked_baselines(self) -> list[str]:
        """Baselines that have the headline, the best first; those without probabilities lack
        the metrics of probabilities."""
        name = self.headline
        values = {b: table[name].value for b, table in self.baselines.items() if name in table}
        falling = parse(name).higher_is_better is not False
        return sorted(values, key=lambda base: values[base], reverse=falling)


@dataclass(frozen=True)
class Picture:
    """A figure ready for the page: an image (data URI) or a table."""

    title: str
    caption: str = ""
    image: str = ""
    table: TableFigure | None = None


@dataclass(frozen=True)
class RunView:
    """Everything the page says of one run."""

    name: str
    facts: dict[str, str]
    card: str
    evaluated: Evaluated | None
    numbers: dict[str, float]
    training: list[Picture]
    evaluation: list[Picture]
    own: list[Picture]
    examples: Examples | None
    notes: list[str] = field(default_factory=list)


def write_report(
    out: Path,
    runs: Sequence[Path],
    data: Path | Sequence[Path] | None = None,
    *,
    extra: Sequence[Figure] = (),
    examples: int = 3,
) -> Path:
    """Write the page about `runs` to `out`, atomically; returns `out`.

    runs: run folders, or folders of seed-N run folders. data: data sets to show; the one a run
    was trained on gives its explanation examples. extra: further figures. A run may be
    unfinished or not evaluated; the page says so.

    Raises:
        ArtifactError: no run folder, or a damaged file in one; names the file.
        DataError: `data` is no data set folder.
    """
    paths = [data] if isinstance(data, str | Path) else list(data or [])
    cards = [Dataset(path).card for path in paths]
    known = {card.id: path for card, path in zip(cards, paths, strict=True)}
    views = [view_run(folder, known, examples) for folder in run_folders(runs)]
    environment = Environment(
        loader=PackageLoader("raysys.tracking"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["number"] = number
    page = environment.get_template("report.html").render(
        views=views,
        data=[_data_facts(card) for card in cards],
        extra=[picture(figure) for figure in extra],
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Every run folder among `paths`; a folder of seed-N run folders gives all of them.

    Raises:
        ArtifactError: neither the one nor the other.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise ArtifactError(f"{path}: no such run folder")
        seeds = [seed for seed in path.glob("seed-*") if seed.is_dir()]
        if (path / "config.json").is_file() or (path / METRICS_LOG).is_file():
            found.append(path)
        elif seeds:
            found += sorted(seeds, key=lambda seed: (len(seed.name), seed.name))
        else:
            raise ArtifactError(f"{path} is no run folder: neither config.json nor a log is there")
    return found


def view_run(run: Path, data: dict[str, Path], examples: int) -> RunView:
    """Read one run folder. data: data card id -> data set folder. Raises as `write_report`."""
    notes: list[str] = []
    facts = _facts(run, notes)
    card = run / "README.md"
    evaluated, numbers = _read_metrics(run / METRICS)
    if evaluated is None and not numbers:
        notes.append("Not evaluated yet: raysys evaluate RUN --data DIR writes metrics.json.")
    log = run / METRICS_LOG
    training = _training(curves(read_records(log))) if log.is_file() else []
    explained = None
    trained_on = facts.get("trained on data")
    if trained_on in data and examples:
        explained = explain_run(run, data[trained_on], count=examples)
    elif trained_on and data and examples:
        notes.append(f"No explained rankings: data {trained_on} was not given to the report.")
    return RunView(
        name=f"{run.parent.name}/{run.name}" if run.name.startswith("seed-") else run.name,
        facts=facts,
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
        evaluated=evaluated,
        numbers=numbers,
        training=training,
        evaluation=[*_compared(evaluated), *_calibration(run)],
        own=[picture(figure) for figure in read_figures(run).values()],
        examples=explained,
        notes=notes,
    )


def _facts(run: Path, notes: list[str]) -> dict[str, str]:
    if not (run / "config.json").is_file():
        notes.append("Training has not finished here.")
        return {}
    config = read_config(run)
    facts = {
        "recipe": config.recipe,
        "model": config.model,
        "model id": config.model_id,
        "trained on data": config.data_card_id,
    }
    for name, spec in config.vectors.items():
        words = [str(spec[key]) for key in ("backbone", "pooling", "licence") if key in spec]
        facts[f"vectors of {name}"] = ", ".join(words) or "unnamed encoder"
    return facts


def _read_metrics(path: Path) -> tuple[Evaluated | None, dict[str, float]]:
    """An evaluation, or the plain numbers that other recipes write."""
    if not path.is_file():
        return None, {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and "model" in raw and "baselines" in raw:
            return Evaluated.model_validate(raw), {}
        return None, {name: float(v) for name, v in raw.items() if isinstance(v, int | float)}
    except (json.JSONDecodeError, ValidationError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path}: damaged ({reason}); evaluate the run again") from error


def _training(found: dict[str, Curve]) -> list[Picture]:
    """The training loss, then every validation metric over the steps."""
    steps, ends = found.get("step/loss"), found.get("epoch/loss")
    series = [
        _series(name, curve)
        for name, curve in (("at a step", steps), ("mean of an epoch", ends))
        if curve is not None
    ]
    figures = []
    if series:
        figures.append(
            LineFigure(title="Training loss", x_label="step", y_label="loss", series=tuple(series))
        )
    for name, curve in found.items():
        if name.startswith("epoch/val/"):
            metric = name.removeprefix("epoch/val/")
            title = f"Validation {metric}"
            one = (_series("", curve),)
            figures.append(LineFigure(title=title, x_label="step", y_label=metric, series=one))
    return [picture(figure) for figure in figures]


def _series(name: str, curve: Curve) -> Series:
    thin = curve.thinned(_POINTS)
    return Series(name=name, x=tuple(thin.step), y=tuple(thin.value))


def _compared(result: Evaluated | None) -> list[Picture]:
    """The headline of everything, the differences with intervals, the gap to the oracle."""
    if result is None:
        return []
    name = result.headline
    order = result.ranked_baselines
    values = [draw.Bar("model", result.model[name].value, strong=True)]
    values += [draw.Bar(base, result.baselines[base][name].value) for base in order]
    if name in result.oracle:
        values.insert(0, draw.Bar("oracle", result.oracle[name].value))
    words = {True: "higher is better", False: "lower is better", None: "1 is best"}
    title = f"{name}, {words[parse(name).higher_is_better]}"
    found = [Picture(title, image=draw.bars(values, name))]
    known = [(base, result.intervals.get(base, {}).get(name)) for base in order]
    differences = [
        draw.Bar(b, i.delta, i.low, i.high, not i.excludes_zero()) for b, i in known if i
    ]
    if differences:
        caption = (
            "Model minus baseline with 95 % intervals over users; an interval that holds 0 "
            "(marked) shows no difference."
        )
        image = draw.bars(differences, f"difference in {name}", zero=True)
        found.append(Picture(f"Model minus baseline, {name}", caption, image))
    for base, gap in result.oracle_gap.items():
        caption = (
            f"The model closes {gap.share:.3f} [{gap.users.low:.3f}, {gap.users.high:.3f}] of the "
            f"gap from {base} to the oracle in {gap.metric}."
        )
        image = draw.gap(gap.baseline, gap.model.mean, gap.oracle, gap.users.low, gap.users.high)
        found.append(Picture(f"Share of the gap closed, from {base}", caption, image))
    return found


def _calibration(run: Path) -> list[Picture]:
    """Reliability by split, from the scored rows, in the bins that `ece` uses."""
    found = []
    for path in sorted((run / "scores").glob("*.parquet")):
        try:
            rows = ScoredRows.read_parquet(path)
        except MetricError as error:
            raise ArtifactError(str(error)) from error
        pairs = (("click", rows.p_click, rows.click), ("order", rows.p_order, rows.order))
        lines = [_reliability(n, p, y) for n, p, y in pairs if p is not None and y.any()]
        if lines:
            caption = f"{BINS} bins of equal mass over {len(rows):,} scored rows."
            found.append(Picture(f"Calibration on {path.stem}", caption, draw.calibration(lines)))
    return found


def _reliability(name: str, predicted: Any, label: Any) -> draw.Reliability:
    tally = Tally.of(predicted, label)
    middle = (np.cumsum(tally.weight) - 0.5 * tally.weight) / tally.weight.sum()
    index = np.minimum((middle * BINS).astype(int), BINS - 1)
    mass = np.bincount(index, tally.weight, BINS)
    used = mass > 0
    mean = np.bincount(index, tally.weight * tally.value, BINS)[used] / mass[used]
    rate = np.bincount(index, tally.positives, BINS)[used] / mass[used]
    return draw.Reliability(name, mean, rate)


def picture(figure: Figure) -> Picture:
    """Draw a figure of any kind."""
    match figure:
        case TableFigure():
            return Picture(figure.title, figure.caption, table=figure)
        case LineFigure():
            return Picture(figure.title, figure.caption, draw.line(figure))
        case HeatmapFigure():
            return Picture(figure.title, figure.caption, draw.heatmap(figure))
        case GraphFigure():
            return Picture(figure.title, figure.caption, draw.graph(figure))


def _data_facts(card: DataCard) -> dict[str, str]:
    facts = {
        "data set": f"{card.dataset} {card.version}",
        "data card": card.id,
        "read by": card.reader,
        "label": card.label_rule,
        "split": card.split_rule,
        "negatives": card.negative_policy,
        "group key": card.group_key,
        "licence": card.licence,
    }
    facts |= {name: f"{count:,}" for name, count in sorted(card.counts.items())}
    if card.time_span:
        facts["time span"] = " to ".join(card.time_span)
    return facts


def number(value: str | int | float | None) -> str:
    """A table cell in words: four decimals, or three significant digits of tiny and huge ones;
    whole numbers from 2 on are counts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (abs(value) >= 2 and value == int(value)):
        return f"{int(value):,}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
