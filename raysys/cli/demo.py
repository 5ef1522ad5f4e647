"""`raysys demo`: the whole road on a small planted world, from logs to explained answers."""

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from raysys.artifacts.predictor import Predictor
from raysys.data.dataset import Dataset
from raysys.data.mapping import LocalMapper
from raysys.data.requests import Request
from raysys.data.world import WorldConfig, make_world
from raysys.errors import ConfigError, RaysysError
from raysys.options import resolve
from raysys.recipes.evaluate import evaluate
from raysys.recipes.registry import recipe_of, run
from raysys.tracking.report import write_report
from serve_apps.client import Client
from serve_apps.config import Family, Model, Models, ServeConfig
from serve_apps.schemas import RankAnswer
from serve_apps.server import running

# Per family: kind of world, recipe, and what keeps the run short.
_ROADS: dict[Family, tuple[str, str, list[str]]] = {
    "ctr": (
        "food",
        "ctr/din",
        ["features.min_count=2", "model.embedding_dim=8", "model.attention_hidden=[32,16]",
         "model.attention_softmax=true",
         "model.hidden=[64,32]", "batch_size=64", "train.epochs=6", "train.lr=2e-3"],
    ),
    "news": ("news", "news/nrms", ["model.width=128", "model.heads=4", "train.epochs=6"]),
}  # fmt: skip


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path(
        "demo_out"
    ),
    users: Annotated[int, typer.Option(min=50, help="People of the small world.")] = 400,
    days: Annotated[int, typer.Option(min=14, help="Days of the small world.")] = 40,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers.")] = 2,
    seed: Annotated[int, typer.Option(help="Of world and training.")] = 7,
    requests: Annotated[int, typer.Option(min=1, help="HTTP requests per ranker.")] = 50,
) -> None:
    """Make a world, train both rankers on Ray, evaluate, serve over HTTP, write report.html."""
    console = Console(stderr=True)
    started = time.monotonic()

    def step(text: str) -> None:
        console.rule(f"[bold]{text}[/]  {time.monotonic() - started:.0f} s", align="left")

    data: dict[Family, Path] = {}
    runs: dict[Family, Path] = {}
    for family, (kind, recipe, overrides) in _ROADS.items():
        data[family] = out / f"world-{kind}"
        runs[family] = out / f"run-{family}"
        step(f"{kind}: a world of {users} users over {days} days")
        config = WorldConfig(kind=kind, users=users, days=days, seed=seed)
        if not data[family].exists():
            make_world(config, data[family], LocalMapper())
        elif Dataset(data[family]).manifest.world.get("config") != config.model_dump(mode="json"):
            raise ConfigError(f"{data[family]} is a world of other options; choose another --out")
        step(f"{recipe}: training on {workers} Ray Train workers")
        given = [*overrides, f"train.workers={workers}", f"train.seed={seed}"]
        where = {"data": str(data[family].resolve())}
        run(resolve(recipe_of(recipe), None, given, where), runs[family])
        step(f"{recipe}: evaluation against baselines and oracle")
        console.print(evaluate(runs[family], data[family], replicates=500).summary)
    step("serving both rankers")
    models = {family: Model(run=path.resolve()) for family, path in runs.items()}
    config = ServeConfig(models=Models(**models))
    with running(config) as url, Client(url) as client:
        for family in _ROADS:
            _ask(console, client, family, runs[family], data[family], requests)
    step("report")
    page = write_report(out / "report.html", list(runs.values()), list(data.values()))
    console.print(f"Open [bold]{page}[/]. Run again, and worlds and models in {out} are kept.")


def _ask(
    console: Console, client: Client, family: Family, run: Path, data: Path, count: int
) -> None:
    """Send the first test requests; prints one answer and the difference to the Predictor."""
    asked = _requests(data, count)
    predictor = Predictor.load(run)
    gap, latencies = 0.0, []
    answer: RankAnswer | None = None
    for request in asked:
        begin = time.perf_counter()
        answer = client.rank(family, request, explain=True)
        latencies.append(time.perf_counter() - begin)
        if answer.fallback is not None:
            raise RaysysError(f"{family}: the server fell back on {answer.fallback}; see its log")
        table = predictor.score([request])
        own = dict(zip(table["item_id"].to_pylist(), table["score"].to_pylist(), strict=True))
        gap = max(gap, *(abs(own[item.item_id] - item.score) for item in answer.items))
    assert answer is not None
    middle = sorted(latencies)[len(latencies) // 2] * 1e3
    console.print(
        f"POST /v1/{family}/rank: {len(asked)} answers, median {middle:.0f} ms, largest "
        f"difference to the Predictor {gap:.1e}"
    )
    names = _names(data)
    table = Table("item", "name", "score", "because of", title=f"{family}: {asked[-1].user_id}")
    for item in answer.items[:5]:
        events = Counter(event.item_id for event in item.explanation or [])
        because = [names.get(i, i) + (f" (×{n})" if n > 1 else "") for i, n in events.items()]
        table.add_row(item.item_id, names[item.item_id], f"{item.score:.3f}", "; ".join(because))
    console.print(table)


def _requests(data: Path, count: int) -> list[Request]:
    columns = ["impression_id", "user_id", "ts", "tz_offset_min", "context", "candidates", "split"]
    rows = Dataset(data).table("impressions", columns).to_pylist()
    test = [row for row in rows if row.pop("split") == "test"][:count]
    return [
        Request(
            request_id=row["impression_id"],
            user_id=row["user_id"],
            ts=row["ts"],
            tz_offset_min=row["tz_offset_min"] or 0,
            context=row["context"] or {},
            candidates=tuple(row["candidates"]),
        )
        for row in test
    ]


def _names(data: Path) -> dict[str, str]:
    items = Dataset(data).table("items", ["item_id", "name", "title"]).to_pylist()
    return {row["item_id"]: row["name"] or row["title"] or row["item_id"] for row in items}
