"""Figures as data, their drawing, and the training log."""

import base64
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raysys.errors import ArtifactError, ConfigError
from raysys.tracking import draw
from raysys.tracking.figures import (
    Edge,
    Figure,
    GraphFigure,
    HeatmapFigure,
    LineFigure,
    Node,
    Series,
    TableFigure,
    read_figures,
    write_figure,
)
from raysys.tracking.metrics_log import Curve, curves, read_records
from raysys.tracking.tensorboard import mirror

FIGURES: dict[str, Figure] = {
    "cost": LineFigure(
        title="Cost", x_label="ms", y_label="$gauc$", log_x=True,
        series=(Series(name="a & <b>", x=(1, 10), y=(0.5, 0.6), low=(0.4, 0.5), high=(0.6, 0.7)),
                Series(name="c", x=(2, 20), y=(0.5, 0.4))),
    ),
    "arms": TableFigure(title="Arms", columns=("arm", "gauc"), rows=(("full", 0.7), ("no", None))),
    "map": HeatmapFigure(title="Map", x=("p0", "p1"), y=("rain",), values=((0.1, None),)),
    "both-signs": HeatmapFigure(title="Map", x=("p0", "p1"), y=("sun",), values=((-1.0, 0.5),)),
    "graph": GraphFigure(
        title="Graph", directed=True,
        nodes=(Node(id="a", group="x"), Node(id="b", weight=3), Node(id="alone")),
        edges=(Edge(source="a", target="b", weight=2),),
    ),
}  # fmt: skip
DRAWN = {"line": draw.line, "heatmap": draw.heatmap, "graph": draw.graph}


def svg(uri: str) -> str:
    head, _, body = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    text = base64.b64decode(body).decode()
    ElementTree.fromstring(text)
    return text


def test_figures_survive_the_folder(tmp_path: Path) -> None:
    for name, figure in FIGURES.items():
        write_figure(tmp_path, name, figure)
    assert read_figures(tmp_path) == FIGURES
    assert read_figures(tmp_path / "nothing here") == {}


@pytest.mark.parametrize("name", [n for n, f in FIGURES.items() if f.kind in DRAWN])
def test_drawings_are_svg_and_the_same_each_time(name: str) -> None:
    figure = FIGURES[name]
    first = svg(DRAWN[figure.kind](figure))
    assert first == svg(DRAWN[figure.kind](figure))


def test_other_drawings() -> None:
    rows = [draw.Bar("a", 0.5, 0.4, 0.6, strong=True), draw.Bar("b", 0.2)]
    svg(draw.bars(rows, "gauc"))
    svg(draw.bars(rows, "difference", zero=True))
    svg(draw.gap(0.6, 0.7, 0.8, 0.4, 0.6))
    half = np.array([0.1, 0.5])
    svg(draw.calibration([draw.Reliability("click", half, half)]))


@pytest.mark.parametrize("nodes", [1, 2, 7, 60])
def test_layout_keeps_nodes_apart_and_on_the_page(nodes: int) -> None:
    ring = np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes], 1)[: nodes - 1]
    at = draw.spring_layout(nodes, ring, np.ones(len(ring)))
    assert np.isfinite(at).all()
    assert np.abs(at).max() < 20
    gaps = np.linalg.norm(at[:, None] - at[None], axis=-1)[~np.eye(nodes, dtype=bool)]
    assert gaps.size == 0 or gaps.min() > 0.01


# Whole numbers: sums of them are exact, so that test and code agree about labels that just touch.
WHOLE = st.integers(0, 300)


@given(st.lists(st.tuples(WHOLE, WHOLE, st.integers(1, 40)), max_size=8))
def test_labels_lie_on_each_other_only_where_no_place_is_free(
    labels: list[tuple[int, int, int]],
) -> None:
    spots = np.array([label[:2] for label in labels], float).reshape(-1, 2)
    shifts = draw.label_shifts(spots, [count for *_, count in labels])
    boxes: list[tuple[float, float, float]] = []

    def free(x: float, y: float, half: float) -> bool:
        return all(abs(x - a) >= half + w or abs(y - b) >= 9 for a, b, w in boxes)

    for (x, y, count), shift in zip(labels, shifts, strict=True):
        half = 3.9 * count / 2
        places = [s for s in (11, -11, 20, -20, 29, -29) if free(x, y + s, half)]
        assert shift == (places[0] if places else 11)
        boxes.append((x, y + shift, half))


def test_a_graph_names_the_kinds_of_its_edges() -> None:
    nodes = (Node(id="a"), Node(id="b"))
    edges = (Edge(source="a", target="b"), Edge(source="b", target="a", group="back"))
    plain = svg(draw.graph(GraphFigure(title="t", nodes=nodes, edges=edges[:1])))
    named = svg(draw.graph(GraphFigure(title="t", nodes=nodes, edges=edges)))
    assert "legend" not in plain and "legend" in named
    # The line of the legend, and the arrow that it stands for.
    assert draw.COLOURS[1] not in plain
    legend = named[named.index('id="legend') :]
    assert named.count(draw.COLOURS[1]) > legend.count(draw.COLOURS[1]) > 0


def test_a_map_names_what_its_colours_are() -> None:
    figure = FIGURES["map"].model_copy(update={"value_label": "likeness"})
    assert "<!-- likeness -->" in svg(draw.heatmap(figure))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"kind": "pie"}, "tag"),
        ({"kind": "table", "title": "t", "columns": ["a"], "rows": [[1, 2]]}, "row 0 has 2 cells"),
        ({"kind": "table", "title": "t", "columns": ["a"], "rows": [], "colour": 1}, "colour"),
        (
            {"kind": "line", "title": "t", "x_label": "x", "y_label": "y",
             "series": [{"name": "s", "x": [1, 2], "y": [1]}]},
            "y has 1 values",
        ),
        (
            {"kind": "heatmap", "title": "t", "x": ["a"], "y": ["b"], "values": [[1, 2]]},
            "1 rows of 1 numbers",
        ),
        (
            {"kind": "graph", "title": "t", "nodes": [{"id": "a"}],
             "edges": [{"source": "a", "target": "z"}]},
            "unknown node 'z'",
        ),
    ],
)  # fmt: skip
def test_faulty_figure_files_are_named(tmp_path: Path, body: dict, message: str) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "x.json").write_text(json.dumps(body))
    with pytest.raises(ArtifactError, match=rf"x\.json: .*{message}"):
        read_figures(tmp_path)


def test_figure_names_stay_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="figure name"):
        write_figure(tmp_path, "../x", FIGURES["arms"])


def test_log_is_read_but_for_a_torn_last_line(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    step = {"kind": "step", "step": 1, "epoch": 0, "loss": 0.5, "lr": 0.1, "rows": 8}
    epoch = {"kind": "epoch", "step": 1, "loss": 0.5, "val/auc": 0.6, "finished": None}
    log.write_text(json.dumps(step) + "\n" + json.dumps(epoch) + '\n{"kind": "st')
    records = read_records(log)
    assert records == [step, epoch]
    found = curves(records)
    assert set(found) == {"step/loss", "step/lr", "epoch/loss", "epoch/val/auc"}
    assert found["epoch/val/auc"] == Curve([1], [0.6])
    log.write_text('{"kind": "st\n' + json.dumps(step) + "\n")
    with pytest.raises(ArtifactError, match="line 1"):
        read_records(log)


@given(st.integers(0, 50), st.integers(1, 20))
def test_thinned_curves_keep_the_mean(length: int, points: int) -> None:
    curve = Curve(list(range(length)), [float(i % 7) for i in range(length)])
    thin = curve.thinned(points)
    assert len(thin.step) <= points or length <= points
    assert thin.step == sorted(set(thin.step))
    size = -(-length // points)
    for row, value in enumerate(thin.value):
        assert value == pytest.approx(np.mean(curve.value[row * size : (row + 1) * size]))


def test_tensorboard_mirrors_the_log(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no training was logged"):
        mirror(tmp_path)
    lines = [{"kind": "step", "step": i, "loss": 1 / i} for i in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for _ in range(2):  # a second mirror replaces the first
        folder = mirror(tmp_path)
    events = EventAccumulator(str(folder)).Reload().Scalars("step/loss")
    assert [(e.step, round(e.value, 4)) for e in events] == [(1, 1.0), (2, 0.5), (3, 0.3333)]
