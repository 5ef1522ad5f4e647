"""A small planted city, tiny `ctr/cofars` runs on it, and requests to them."""

from pathlib import Path

from raysys.data.dataset import Dataset
from raysys.data.mapping import LocalMapper
from raysys.data.requests import HistoryEvent, Request
from raysys.data.world import WorldConfig, make_world
from raysys.options import resolve
from raysys.recipes.cofars import CofarsRecipe
from raysys.recipes.registry import recipe_of

YAML = Path(__file__).parents[1] / "raysys" / "configs" / "ctr" / "cofars-small.yaml"
TINY = [
    "model.embedding_dim=4", "model.attention_hidden=[8]", "model.hidden=[16]", "batch_size=16",
    "train.epochs=1", "train.early_stopping=null", "cofars.lists.events=12",
    "cofars.encoder.dim=8", "cofars.encoder.hidden=[16]", "cofars.encoder.prototypes=4",
    "cofars.preferences.support=5", "selector.batch_size=16", "selector.warm_up.epochs=1",
]  # fmt: skip
FULL = [*TINY, "selector.train.epochs=2", "selector.train.early_stopping.metric=gauc"]


def small_world(out: Path) -> None:
    """60 users, 20 days of meals."""
    make_world(WorldConfig(kind="food", users=60, days=20, seed=3), out, LocalMapper())


def tiny(world: Path, *over: str) -> CofarsRecipe:
    config = resolve(recipe_of("ctr/cofars"), YAML, [*FULL, *over], {"data": str(world)})
    assert isinstance(config, CofarsRecipe)
    return config


def valid_requests(world: Path, count: int = 30) -> list[Request]:
    rows = Dataset(world).table("impressions").to_pylist()
    rows = [row for row in rows if row["split"] == "valid"][:count]
    return [
        Request(
            request_id=row["impression_id"],
            user_id=row["user_id"],
            ts=row["ts"],
            context=row["context"],
            candidates=tuple(row["candidates"]),
        )
        for row in rows
    ]


def inline(world: Path, requests: list[Request], limit: int | None = None) -> list[Request]:
    """The same requests, with their users' events sent along."""
    dataset = Dataset(world)
    kept = set(dataset.manifest.history_behaviours)
    events: dict[str, list[HistoryEvent]] = {}
    for row in dataset.table("events").to_pylist():
        if row["behaviour"] in kept:
            event = HistoryEvent(
                item_id=row["item_id"],
                ts=row["ts"],
                behaviour=row["behaviour"],
                context=row["context"],
            )
            events.setdefault(row["user_id"], []).append(event)
    out = []
    for request in requests:
        past = [e for e in events.get(request.user_id, []) if e.ts < request.ts]
        sent = tuple(past if limit is None else past[len(past) - min(limit, len(past)) :])
        out.append(request.model_copy(update={"history": sent}))
    return out
