"""`make_world`: from a config to a data set folder with its truth."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from raysys.data.dataset import Dataset, DatasetWriter, write_part
from raysys.data.files import sha256_file
from raysys.data.manifest import DataCard, Manifest, canonical_json
from raysys.data.mapping import Mapper
from raysys.data.world.config import WorldConfig
from raysys.data.world.food import FoodCity
from raysys.data.world.law import sigmoid, solve_offset
from raysys.data.world.lexicon import CUISINES
from raysys.data.world.news import Newspaper
from raysys.data.world.people import users_table
from raysys.data.world.scene import CONTEXT_COUNT, FEATURES, context_array, contexts_table
from raysys.data.world.simulate import Life, Offsets, World, build_world, live_shard
from raysys.data.world.tables import (
    events_table,
    impressions_table,
    truth_requests,
    truth_rows,
    truth_users,
)
from raysys.errors import ConfigError

VERSION = "1"
CALIBRATION_SHARDS = 4


@dataclass(frozen=True)
class ShardTask:
    """One shard to live and, if `root` is given, to write below it."""

    config: WorldConfig
    shard: int
    root: str
    offsets: Offsets
    news: tuple[str, str] = ("", "")  # folder of the articles, hash of its manifest


def first_requests(task: ShardTask) -> tuple[np.ndarray, np.ndarray]:
    """(click logits with position, order logits) of all candidates of first requests, before b0.

    Nobody clicks on the way, because the first list of a user cannot depend on clicks on lists.
    """
    world = build_world(task.config, *task.news)
    life = Life(world, task.shard, Offsets(np.inf, np.inf))
    asked: np.ndarray = np.zeros(len(life.people), dtype=bool)
    logits: list[tuple[np.ndarray, np.ndarray]] = []
    for day in range(task.config.days):
        life.live(day)
        log = life.requests.joined(("user", "ts"))
        life.requests.blocks.clear()
        user = log["user"]
        first = np.flatnonzero(~asked[user] & (np.diff(user, prepend=-1) != 0))
        asked[user] = True
        real = log["items"][first] >= 0
        bias = world.law.position * np.arange(real.shape[1])
        logits.append(((log["logit"][first] + bias)[real], log["order_logit"][first][real]))
    click, order = (np.concatenate(parts) for parts in zip(*logits, strict=True))
    return click, order


def solve_offsets(config: WorldConfig, mapper: Mapper, news: tuple[str, str] = ("", "")) -> Offsets:
    """b0 and d0 by bisection on the first requests of the first `CALIBRATION_SHARDS` shards."""
    nobody = Offsets(np.inf, np.inf)
    tasks = [
        ShardTask(config, shard, "", nobody, news)
        for shard in range(min(config.shards, CALIBRATION_SHARDS))
    ]
    parts = list(mapper(first_requests, tasks, label="solving click rates"))
    click, order = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if not len(click):
        return Offsets(0.0, 0.0)
    weights = config.food if config.kind == "food" else config.news
    b0 = solve_offset(click, weights.click_rate)
    if config.kind != "food":
        return Offsets(b0, 0.0)
    return Offsets(b0, solve_offset(order, config.food.order_rate, sigmoid(click - b0)))


def write_shard(task: ShardTask) -> dict[str, int]:
    """Live one shard and write its parts; returns row counts."""
    world = build_world(task.config, *task.news)
    lived = live_shard(world, task.shard, task.offsets)
    tables = {
        "users": users_table(world.scene, lived.people),
        "events": events_table(world, lived),
        "impressions": impressions_table(world, lived),
        "truth/rows": truth_rows(world, lived),
        "truth/requests": truth_requests(world, lived),
        "truth/users": truth_users(lived),
    }
    for name, table in tables.items():
        write_part(Path(task.root) / name, task.shard, table)
    return {
        **{name: len(table) for name, table in tables.items()},
        "clicks": int(lived.requests["clicked"].sum()),
        "orders": int(lived.requests["ordered"].sum()),
    }


def _write_laws(world: World, root: Path) -> None:
    """truth/map (all worlds) and truth/prototypes (food): the hidden map and laws."""
    context = np.arange(CONTEXT_COUNT)
    columns: dict[str, pa.Array] = {"code": pa.array(context.astype(np.int16))}
    described = context_array(context, np.full(len(context), -1))
    for name in FEATURES:
        columns[name] = described.field(name)
    columns["prototype"] = pa.array(world.scene.prototype.astype(np.int16))
    write_part(root / "truth" / "map", 0, pa.table(columns))
    if isinstance(world.law, FoodCity):
        laws = world.law.prototypes
        rows = [
            {"prototype": k, "field": name, "value": value, "probability": float(p)}
            for name, law, values in (
                ("cuisine", laws.cuisine, CUISINES),
                ("price_band", laws.price, [str(i) for i in range(5)]),
                ("quality", laws.quality, [str(i) for i in range(4)]),
                ("delivery", laws.delivery, [str(i) for i in range(4)]),
            )
            for k in range(len(law))
            for value, p in zip(values, law[k], strict=True)
        ]
        write_part(root / "truth" / "prototypes", 0, pa.Table.from_pylist(rows))


def _config_hash(config: WorldConfig) -> str:
    """What the tables depend on; the whole config is in the manifest under `world`."""
    text = canonical_json(config.model_dump(mode="json", exclude={"truth_terms"}))
    return hashlib.sha256(text.encode()).hexdigest()


def _data_card(world: World, source: DataCard | None) -> DataCard:
    config, scene = world.config, world.scene

    def local(day: int) -> str:
        moment = datetime.combine(config.start, datetime.min.time(), UTC)
        moment += timedelta(days=day, minutes=-config.tz_offset_min)
        return moment.isoformat()

    return DataCard(
        dataset=f"world-{config.kind}",
        version=VERSION,
        reader=f"raysys.data.world@{VERSION}",
        label_rule="click or not, drawn once per listed item from the planted law",
        split_rule="by request time at local midnights",
        split_bounds={"valid": local(scene.valid_from), "test": local(scene.test_from)},
        group_key="user" if config.kind == "food" else "impression",
        history_cut="events with ts < request ts",
        time_span=(local(0), local(config.days)),
        licence=(
            f"readers are generated, no real person; articles: {source.licence}"
            if source
            else "CC0-1.0; generated, no real person"
        ),
        notes={"config_sha256": _config_hash(config), **(_simulated(source) if source else {})},
    )


def _simulated(source: DataCard) -> dict[str, str]:
    """What a card must say where real articles meet invented readers."""
    return {
        "simulation": "clicks are drawn from the planted law; texts and entities are real, and "
        "articles keep their order, but are published evenly over the period",
        "news": f"{source.dataset} {source.version}, data card {source.id}",
    }


def make_world(
    config: WorldConfig,
    out: Path | str,
    mapper: Mapper,
    *,
    news: Path | str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write the planted world of `config` into the data set folder `out`.

    A world of kind `readers` needs `news`, the data set folder whose items they read.

    Shards of users are lived and written by `mapper`; the same config gives the same bytes
    whatever the mapper. Constants that were solved for, and the checksums of the truth files,
    are in the manifest under `world`.

    Raises:
        ConfigError: `news` without readers, or readers without `news`.
        DataError: `out` exists and `overwrite` is false; `news` has too few usable articles.
        StorageFullError: no space left; nothing is kept.
    """
    if (config.kind == "readers") != (news is not None):
        raise ConfigError("a world of kind readers, and no other, reads the articles of `news`")
    source = Dataset(news) if news is not None else None
    articles = (str(Path(source.path).absolute()), source.manifest.hash) if source else ("", "")
    with DatasetWriter(out, contexts=dict(FEATURES), overwrite=overwrite) as writer:
        world = build_world(config, *articles)
        offsets = solve_offsets(config, mapper, articles)
        writer.write("contexts", contexts_table())
        writer.write("items", world.law.items())
        vectors = world.law.entities() if isinstance(world.law, Newspaper) else None
        if vectors is not None:
            writer.write("entities", vectors)
        _write_laws(world, writer.root)
        tasks = [
            ShardTask(config, shard, str(writer.root), offsets, articles)
            for shard in range(config.shards)
        ]
        counts = list(mapper(write_shard, tasks, label=f"living {config.users} users"))
        truth = {
            path.relative_to(writer.root).as_posix(): sha256_file(path)
            for path in sorted((writer.root / "truth").rglob("*.parquet"))
        }
        return writer.commit(
            _data_card(world, source.card if source else None),
            history_behaviours=("click", "order") if config.kind == "food" else ("click",),
            world={
                "config": config.model_dump(mode="json"),
                "b0": offsets.click,
                "d0": offsets.order,
                "offsets_from": f"first requests of the first {CALIBRATION_SHARDS} user shards",
                "clicks": sum(count["clicks"] for count in counts),
                "orders": sum(count["orders"] for count in counts),
                "truth": truth,
            },
        )
