"""The same trained news ranker over the news, entities and histories of a newer data set."""

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

from raysys.artifacts.run import load_run, save_run
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST
from raysys.data.dataset import Dataset
from raysys.data.files import fsync_tree, new_folder, scratch_folder
from raysys.data.prepared import prepare
from raysys.errors import ArtifactError, ConfigError
from raysys.llm.embed import embed_items
from raysys.news.base import NewsRanker
from raysys.options import validate
from raysys.perconet.ranker import Perconet
from raysys.recipes.ranker import RankerRecipe, encoded, table_path
from raysys.recipes.registry import recipe_of


class CatalogueReport(BaseModel):
    """What was built. news, new: items of the new run, and those of them the old one lacks;
    texts, llm_calls: of them, and how many had no vector yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    model_id: str
    news: int
    new: int
    users: int
    texts: int
    llm_calls: int
    seconds: float


def build_catalogue(
    run: Path, data: Path, out: Path, vector_table: Path | None = None
) -> CatalogueReport:
    """Write a run folder with the weights of `run` and the snapshot of `data`.

    Nothing is trained: it is the same model, with the same id, that now knows newer news and what
    users have read since. Entities that it was not trained with are left out.

    vector_table: of the text vectors, so that only new texts are encoded; by default one of the
    data set.

    Raises:
        ArtifactError: `run` is unfinished or damaged.
        ConfigError: no news ranker, a placebo, or another encoder than it was trained with.
        DataError: `out` exists, or `data` is no data set folder.
    """
    begin = time.monotonic()
    loaded = load_run(run, indexes=False)
    model = loaded.model
    if not isinstance(model, NewsRanker):
        raise ConfigError(
            f"{run}: the catalogue of {loaded.config.recipe} cannot be renewed, only those of "
            "news/… can; train again"
        )
    given = {"data": str(data)} | ({"vector_table": str(vector_table)} if vector_table else {})
    kind = recipe_of(loaded.config.recipe)
    config = validate(kind, {**loaded.config.recipe_options, **given}, f"{run}/config.json")
    assert isinstance(config, RankerRecipe)
    prepared = prepare(Dataset(data))
    texts = calls = 0
    if config.features.vectors:
        table = table_path(config, prepared.dataset)
        report = embed_items(prepared.dataset, table, config.encoder, config.features.vectors)
        texts, calls = report.texts, report.llm_calls
    vectors, specs = encoded(config, prepared)
    if specs != loaded.config.vectors:
        raise ConfigError(
            f"{run} was trained on vectors of another encoder than {config.encoder.backbone} is "
            "now; train again"
        )
    items = prepared.dataset.table("items")
    model.bind(Catalogue.build(items, loaded.features, vectors))
    model.renew(prepared)
    with new_folder(out) as folder:
        saved = save_run(
            folder,
            model=model,
            model_options=model.Config.model_validate(loaded.config.model_options),
            features=loaded.features,
            items=items,
            vectors=vectors,
            vector_specs=specs,
            recipe=loaded.config.recipe,
            recipe_options=loaded.config.recipe_options,
            data_card=loaded.data_card,
            card_text=(run / "README.md").read_text(encoding="utf-8"),
            histories=prepared.histories if config.with_histories else None,
        )
    known = set(loaded.catalogue.item_ids.to_pylist())
    return CatalogueReport(
        out=str(out),
        model_id=saved.model_id,
        news=len(items),
        new=sum(name not in known for name in prepared.item_ids.to_pylist()),
        users=len(prepared.histories.users) if config.with_histories else 0,
        texts=texts,
        llm_calls=calls,
        seconds=round(time.monotonic() - begin, 2),
    )


def write_news_vectors(run: Path, out: Path) -> int:
    """Write the news of a run of `news/perconet` as one Parquet file, for retrieval elsewhere.

    Columns: news_id, encoder_hash (of the model that made them), r (d float16, what the ranker
    multiplies with), z_t and z_a (normalised views of title and abstract, null where the text is
    missing or the model has no contrast), entity_ids, published_at (µs UTC). Returns how many.

    Raises:
        ArtifactError: unfinished, damaged, or another recipe.
    """
    loaded = load_run(run, indexes=False)
    model = loaded.model
    if not isinstance(model, Perconet):
        raise ArtifactError(f"{run}: {loaded.config.recipe} has no such vectors, news/perconet has")
    model.freeze()
    rows = torch.arange(FIRST, FIRST + len(loaded.items))
    with torch.inference_mode():
        r, views = model.items(rows), model.contrast_views(rows)
    table = model.table
    named = [[] for _ in rows] if table is None else [
        [table.ids[entity - 1] for entity in entities if entity]
        for entities in table.news[FIRST:].tolist()
    ]  # fmt: skip
    columns = {
        "news_id": loaded.items["item_id"],
        "encoder_hash": pa.array([loaded.config.model_id] * len(rows)),
        "r": _halves(r),
        **{
            name: _halves(z) if z is not None else pa.nulls(len(rows), pa.list_(pa.float16()))
            for name, z in zip(("z_t", "z_a"), views, strict=True)
        },
        "entity_ids": pa.array(named, pa.list_(pa.string())),
        "published_at": loaded.items["created_at"],
    }
    with scratch_folder(out) as scratch:
        pq.write_table(pa.table(columns), scratch / out.name, compression="zstd")
        fsync_tree(scratch)
        os.replace(scratch / out.name, out)
    return len(rows)


def _halves(values: torch.Tensor) -> pa.Array:
    """Rows [N, D] as lists of D float16; null where a row is zero."""
    halves = values.to(torch.float16).numpy()
    flat = pa.array(halves.reshape(-1))
    none = pa.array(~np.asarray(halves != 0).any(1))
    return pa.FixedSizeListArray.from_arrays(flat, halves.shape[1], mask=none)
