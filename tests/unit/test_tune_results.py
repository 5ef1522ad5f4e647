"""What a sweep is judged by, and what it leaves: table, winner, curve, images, progress lines."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from raysys.errors import ConfigError
from raysys.tracking.figures import HeatmapFigure, LineFigure, read_figures
from raysys.training import EarlyStopping
from tune_spaces.runner.ledger import Book, Trial
from tune_spaces.runner.objective import Objective
from tune_spaces.runner.progress import Progress
from tune_spaces.runner.results import winner, write_report, write_results
from tune_spaces.runner.space import Choice, Real, Space

SPACE = Space(
    recipe="ctr/din",
    metric="gauc",
    mode="max",
    grid={"model.history_length": (5, 10, 20)},
    curve="model.history_length",
)
SEARCH = Space(
    recipe="ctr/din",
    metric="logloss",
    mode="min",
    search={
        "train.lr": Real(low=1e-4, high=1, log=True),
        "model.match": Choice(values=(False, True)),
    },
)


def records(values: list[float], name: str = "gauc") -> list[dict[str, object]]:
    return [
        {"kind": "epoch", "epoch": n, f"val/{name}": v, "val/other": -v, "seconds": 2.0 * n,
         "finished": "completed" if n == len(values) else None}
        for n, v in enumerate(values, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (None, [0.5, 0.7, 0.6, 0.65]),
        (EarlyStopping(metric="gauc"), [0.5, 0.7, 0.7, 0.7]),
        (EarlyStopping(metric="gauc", min_delta=0.3), [0.5, 0.5, 0.5, 0.5]),
        # Kept by another measure, the value is of the epoch that measure prefers.
        (EarlyStopping(metric="other"), [0.5, 0.5, 0.5, 0.5]),
        (EarlyStopping(metric="other", mode="min"), [0.5, 0.7, 0.7, 0.7]),
    ],
)
def test_the_value_is_that_of_the_weights_kept(
    rule: EarlyStopping | None, kept: list[float]
) -> None:
    objective = Objective("gauc", rule)
    told = [objective(record) for record in records([0.5, 0.7, 0.6, 0.65])]
    assert [epoch["value"] for epoch in told] == kept
    assert [epoch["finished"] for epoch in told] == [False, False, False, True]
    assert [(epoch["epoch"], epoch["seconds"]) for epoch in told][-1] == (4, 8.0)


def test_a_metric_that_validation_does_not_give() -> None:
    with pytest.raises(ConfigError, match="looks at auc, but validation gives gauc, other"):
        Objective("auc", None)(records([0.5])[0])


def grid_trials() -> list[Trial]:
    rng = np.random.default_rng(0)
    return [
        Trial(f"p000-g{cell}-s{seed}", 0, {"model.history_length": length}, seed, "completed",
              3, round(0.5 + length / 100 + rng.normal() / 100, 4), 1.5)
        for cell, length in enumerate((5, 10, 20)) for seed in range(4)
    ]  # fmt: skip


def test_the_curve_is_mean_and_t_interval_over_seeds(tmp_path: Path) -> None:
    trials = grid_trials()
    images = write_report(tmp_path, trials, SPACE)
    curve = read_figures(tmp_path)["curve"]
    assert isinstance(curve, LineFigure)
    line = curve.series[0]
    assert line.x == (5.0, 10.0, 20.0)
    for place, mean, low, high in zip(line.x, line.y, line.low or (), line.high or (), strict=True):
        y = [t.value for t in trials if t.parameters["model.history_length"] == place]
        span = stats.t.interval(0.95, len(y) - 1, np.mean(y), stats.sem(y))
        np.testing.assert_allclose((mean, low, high), (np.mean(y), *span), atol=1e-9)
    assert [path.name for path in images] == ["curve.png", "objective.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in images)


def test_a_failed_seed_leaves_its_value_out_of_curve_and_competition(tmp_path: Path) -> None:
    trials = grid_trials()
    trials[-1].status, trials[-1].value = "failed", 0.9
    write_report(tmp_path, trials, SPACE)
    curve = read_figures(tmp_path)["curve"]
    assert isinstance(curve, LineFigure)
    assert curve.series[0].x == (5.0, 10.0)
    best = winner(trials, SPACE, tmp_path / "trials")
    assert best is not None
    assert best["parameters"] == {"model.history_length": 10}
    assert best["gauc"] == pytest.approx(np.mean([t.value for t in trials[4:8]]))
    assert best["runs"] == [str(tmp_path / "trials" / f"p000-g1-s{s}") for s in range(4)]


def test_the_grid_of_the_best_gives_curve_and_winner(tmp_path: Path) -> None:
    """A suggestion trained once, however good, does not win over means over seeds."""
    space = SPACE.model_copy(update={"at_best": True, "search": SEARCH.search})
    best = {"train.lr": 0.1, "model.match": True}
    alone = [
        Trial(f"p{n:03d}", n, {**best, "train.lr": lr}, 0, "completed", 3, 0.99 - lr, 1.0)
        for n, lr in enumerate((0.1, 0.3))
    ]
    grid = grid_trials()
    for trial in grid:
        trial.point, trial.parameters = 2, {**best, **trial.parameters}
    images = write_report(tmp_path, [*alone, *grid], space)
    assert [path.name for path in images] == ["curve.png", "objective.png", "parameters.png"]
    curve = read_figures(tmp_path)["curve"]
    assert isinstance(curve, LineFigure)
    assert curve.series[0].x == (5.0, 10.0, 20.0)
    assert curve.series[0].low is not None
    assert "as in the best suggestion" in curve.caption
    found = winner([*alone, *grid], space, tmp_path)
    assert found is not None
    assert found["parameters"] == {**best, "model.history_length": 20}
    # Cut short before the grid, the best suggestion is what there is.
    found = winner(alone, space, tmp_path)
    assert found is not None
    assert found["trials"] == ["p000"]
    assert [path.name for path in write_report(tmp_path / "alone", alone, space)] == [
        "objective.png", "parameters.png",
    ]  # fmt: skip


def test_the_map_shows_the_mean_of_each_cell_of_two_grids(tmp_path: Path) -> None:
    keys = ("model.history_length", "train.lr")
    lengths, rates = (5, 10), (0.001, 0.01, 0.1)
    grid = {keys[0]: lengths, keys[1]: rates}
    space = Space(recipe="ctr/din", metric="gauc", mode="max", grid=grid, map=keys)
    trials = [
        Trial(f"t{row}{column}{seed}", 0, {keys[0]: length, keys[1]: rate}, seed, "completed", 1,
              0.6 + 0.01 * row + 0.002 * column + 0.0004 * seed, 1.0)
        for row, length in enumerate(lengths)
        for column, rate in enumerate(rates)
        for seed in range(2)
    ]  # fmt: skip
    trials[-1].status = "failed"  # a cell with a seed missing is none
    images = write_report(tmp_path, trials, space)
    assert (tmp_path / "report" / "map.png") in images
    plane = read_figures(tmp_path)["map"]
    assert isinstance(plane, HeatmapFigure)
    assert (plane.y, plane.x) == (("5", "10"), ("0.001", "0.01", "0.1"))
    assert np.array(plane.values[0]) == pytest.approx([0.6002, 0.6022, 0.6042])
    assert plane.values[1][2] is None
    assert space.fixed({"train.lr": 0.1}).map is None
    with pytest.raises(ValueError, match=r"map=train\.lr: give it numbers in grid"):
        Space(recipe="ctr/din", metric="gauc", mode="max", grid={keys[0]: lengths}, map=keys)


def search_trials() -> list[Trial]:
    def point(lr: float, match: bool) -> dict[str, bool | int | float | str]:
        return {"train.lr": lr, "model.match": match}

    return [
        Trial("p000", 0, point(0.01, True), 0, "completed", 3, 0.4, 1.0),
        Trial("p001", 1, point(0.10, False), 0, "stopped", 1, 0.2, 1.0),
        Trial("p002", 2, point(0.90, True), 0, "failed", 0, None, 0.0, "the loss is nan"),
        Trial("p003", 3, point(0.02, False), 0, "completed", 3, 0.3, 1.0),
    ]


def test_the_table_has_a_row_per_trial_and_a_column_per_parameter(tmp_path: Path) -> None:
    (tmp_path / "trials" / "p000").mkdir(parents=True)
    trials = search_trials()
    rows = pq.read_table(write_results(tmp_path, trials, SEARCH)).to_pylist()
    assert [row["trial"] for row in rows] == ["p000", "p001", "p002", "p003"]
    assert rows[2] == {
        "trial": "p002", "status": "failed", "seed": 0, "train.lr": 0.9, "model.match": True,
        "logloss": None, "epochs": 0, "seconds": 0.0, "run": None, "message": "the loss is nan",
    }  # fmt: skip
    assert rows[0]["run"] == "trials/p000"
    assert [path.name for path in tmp_path.iterdir()].count("results.parquet") == 1
    best = winner(trials, SEARCH, tmp_path)
    # Less is better; p001 is lower still, but was stopped and has no whole run folder.
    assert best is not None
    assert best["trials"] == ["p003"]


def test_the_figures_of_a_search(tmp_path: Path) -> None:
    images = write_report(tmp_path, search_trials(), SEARCH)
    assert [path.name for path in images] == ["objective.png", "parameters.png"]
    objective = read_figures(tmp_path)["objective"]
    assert isinstance(objective, LineFigure)
    best, each = objective.series
    assert each.y == (0.4, 0.2, 0.3)
    assert best.y == (0.4, 0.2, 0.2)


def test_nothing_of_value_gives_no_figure(tmp_path: Path) -> None:
    assert write_report(tmp_path, [search_trials()[2]], SEARCH) == []
    assert not (tmp_path / "report").exists()


def test_progress_tells_each_change_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = Book.open(tmp_path / "ledger")
    parameters = {"train.lr": 0.0123456}
    book.write(
        {"kind": "suggest", "trial": "p000", "point": 0, "parameters": parameters, "seed": 3}
    )
    with Progress(book, "gauc", "max", 1) as show:
        report = {"kind": "report", "trial": "p000", "value": 0.61, "seconds": 1.0, "stop": False}
        for epoch in (1, 2):
            book.write({**report, "epoch": epoch})
            show.update()
            show.update()
        book.write({"kind": "end", "trial": "p000", "status": "failed", "message": "nan"})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "p000 running  epoch 1  gauc 0.6100  best 0.6100 (p000)",
        "p000 running  epoch 2  gauc 0.6100  best 0.6100 (p000)",
        "p000 failed  epoch 2  gauc 0.6100  nan",
    ]
    assert json.loads((tmp_path / "ledger").read_text().splitlines()[0])["parameters"] == parameters


def test_a_front_holds_what_no_other_trial_beats_in_both(tmp_path: Path) -> None:
    space = Space(recipe="llm/homodistil", metric="loss", mode="min", grid={"ratio": (0.5,)},
                  front="speed.student.ms")  # fmt: skip
    points = [(3.0, 1.0), (1.0, 4.0), (2.0, 2.0), (2.5, 3.0), (4.0, 1.5)]
    trials = [
        Trial(f"p{n}", 0, {"ratio": 0.5}, n, "completed", 1, loss, 1.0)
        for n, (_, loss) in enumerate(points)
    ]
    for trial, (cost, _) in zip(trials, points, strict=True):
        run = tmp_path / "trials" / trial.id
        run.mkdir(parents=True)
        told = {"speed": {"student": {"ms": cost}}} if trial.id != "p4" else {"speed": {}}
        (run / "metrics.json").write_text(json.dumps(told))
    assert tmp_path / "report" / "front.png" in write_report(tmp_path, trials, space)
    front = read_figures(tmp_path)["front"]
    assert isinstance(front, LineFigure)
    every, kept = front.series
    assert list(zip(every.x, every.y, strict=True)) == sorted(points[:4])
    assert list(zip(kept.x, kept.y, strict=True)) == [(1.0, 4.0), (2.0, 2.0), (3.0, 1.0)]
    assert every.points and not kept.points
