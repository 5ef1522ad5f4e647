"""Figures as data: what a program writes to RUN/report/NAME.json and the report draws."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from raysys.data.files import write_text
from raysys.errors import ArtifactError, ConfigError

FOLDER = "report"
MAX_NODES = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Cell = str | int | float | None


class _Figure(BaseModel):
    """title: a heading; caption: what the reader should see, and how it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str
    caption: str = ""


class TableFigure(_Figure):
    """columns: [C] names; rows: [R][C] cells, None for an empty one; bold: rows to stress."""

    kind: Literal["table"] = "table"
    columns: tuple[str, ...] = Field(min_length=1)
    rows: tuple[tuple[Cell, ...], ...]
    bold: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells, not {len(self.columns)}")
        return self


class Series(BaseModel):
    """y over x, [n] each; low, high: ends of an interval around y, [n]; points: no line between."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    x: tuple[float, ...] = Field(min_length=1)
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    points: bool = False

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.x):
                raise ValueError(f"series {self.name}: {name} has {len(values)} values, "
                                 f"x has {len(self.x)}")  # fmt: skip
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.name}: low and high come together")
        return self


class LineFigure(_Figure):
    """One or more series over a shared axis; log_x, log_y: logarithmic axes."""

    kind: Literal["line"] = "line"
    x_label: str
    y_label: str
    series: tuple[Series, ...] = Field(min_length=1)
    log_x: bool = False
    log_y: bool = False


class HeatmapFigure(_Figure):
    """values: [len(y)][len(x)], None where there is no value; x, y: names of columns and rows;
    value_label: what the values are."""

    kind: Literal["heatmap"] = "heatmap"
    x: tuple[str, ...] = Field(min_length=1)
    y: tuple[str, ...] = Field(min_length=1)
    values: tuple[tuple[float | None, ...], ...]
    x_label: str = ""
    y_label: str = ""
    value_label: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        shape = (len(self.values), {len(row) for row in self.values})
        if shape != (len(self.y), {len(self.x)}):
            raise ValueError(f"values must be {len(self.y)} rows of {len(self.x)} numbers")
        return self


class Node(BaseModel):
    """group gives the colour, weight (≥ 0) the size."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str
    label: str = ""
    group: str = ""
    weight: float = Field(default=1.0, ge=0)


class Edge(BaseModel):
    """source, target: node ids; weight (≥ 0) gives the width, group the colour."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    target: str
    weight: float = Field(default=1.0, ge=0)
    group: str = ""


class GraphFigure(_Figure):
    """Nodes and edges, laid out by the report; at most 200 nodes can be told apart."""

    kind: Literal["graph"] = "graph"
    nodes: tuple[Node, ...] = Field(min_length=1, max_length=MAX_NODES)
    edges: tuple[Edge, ...] = ()
    directed: bool = False

    @model_validator(mode="after")
    def _known_nodes(self) -> Self:
        known = {node.id for node in self.nodes}
        if len(known) < len(self.nodes):
            raise ValueError("a node id occurs twice")
        for edge in self.edges:
            for end in (edge.source, edge.target):
                if end not in known:
                    raise ValueError(f"an edge names the unknown node {end!r}")
        return self


Figure = Annotated[
    TableFigure | LineFigure | HeatmapFigure | GraphFigure, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[Figure] = TypeAdapter(Figure)


def write_figure(run: Path, name: str, figure: Figure) -> Path:
    """Write RUN/report/NAME.json atomically; returns its path.

    Raises:
        ConfigError: a name that is no plain file name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"figure name {name!r}: use letters, digits, '_', '-' and '.'")
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figure.model_dump(mode="json"), ensure_ascii=False, indent=1)
    write_text(folder / f"{name}.json", text + "\n")
    return folder / f"{name}.json"


def read_figures(run: Path) -> dict[str, Figure]:
    """name -> figure for every RUN/report/NAME.json, by name.

    Raises:
        ArtifactError: a file that is no figure; names the file and the field.
    """
    found: dict[str, Figure] = {}
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            found[path.stem] = _ADAPTER.validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ArtifactError(f"{path}: {where}: {first['msg']}") from error
    return found
